"""Postfix, as Debian's "Internet Site": mail for its domain goes to mbox files of Unix users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tests.interop.layer import WORK, Layer
from tests.interop.place import DOMAIN, HOST, REFUSE, REFUSE_HEADER, SENDER_ADDRESS, Place
from tests.interop.remote import DebianServer, StoredMessage, mbox_messages

_RELAY = f"""postconf -e mynetworks={SENDER_ADDRESS}/32 delay_warning_time=2s queue_run_delay=2s \\
            minimal_backoff_time=2s maximal_backoff_time=2s
"""


class Postfix(DebianServer):
    name: ClassVar = "postfix"
    title: ClassVar = "Postfix"
    how: ClassVar = 'Debian\'s "Internet Site", `smtpd_tls_*` for a certificate, a line of `header_checks` that refuses'
    layer: ClassVar = Layer(
        "postfix",
        ["postfix"],
        [
            "postfix postfix/main_mailer_type select Internet Site",
            f"postfix postfix/mailname string {HOST}",
        ],
    )

    def script(self, place: Place) -> str:
        place.write("header_checks", f"/^{REFUSE_HEADER}:.*{REFUSE}/ REJECT Not wanted here\n")
        return f"""
        cp {WORK}/cert.pem {WORK}/key.pem {WORK}/header_checks /etc/postfix/
        cp /etc/resolv.conf /etc/hosts /etc/services /var/spool/postfix/etc/ 2>/dev/null || true
        postconf -e myhostname={HOST} mydestination={DOMAIN},{HOST},localhost mynetworks=127.0.0.0/8 \\
            inet_interfaces=all inet_protocols=ipv4 maillog_file=/dev/stdout mail_spool_directory={WORK}/mail \\
            smtpd_tls_cert_file=/etc/postfix/cert.pem smtpd_tls_key_file=/etc/postfix/key.pem \\
            header_checks=regexp:/etc/postfix/header_checks
        {_RELAY if place.is_relay else ""}
        newaliases
        exec postfix start-fg
        """

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return mbox_messages(place.mail)


SERVER = Postfix()
