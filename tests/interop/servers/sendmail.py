"""sendmail, as Debian makes its ``sendmail.mc``: mail for its domain goes to mbox files of Unix users, by procmail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tests.interop.layer import WORK, Layer
from tests.interop.place import DOMAIN, HOST, REFUSE, REFUSE_HEADER, SENDER_ADDRESS, Place
from tests.interop.remote import DebianServer, StoredMessage, mbox_messages


class Sendmail(DebianServer):
    name: ClassVar = "sendmail"
    title: ClassVar = "sendmail"
    how: ClassVar = (
        "Debian's `sendmail.mc`, listening on all addresses, a certificate in `confSERVER_CERT`, a header check that "
        "refuses"
    )
    layer: ClassVar = Layer("sendmail", ["sendmail-bin", "sendmail", "procmail"])

    def script(self, place: Place) -> str:
        place.write(
            "more.mc",
            f"""
define(`confDOMAIN_NAME', `{HOST}')dnl
define(`confCACERT_PATH', `/etc/mail/tls')dnl
define(`confCACERT', `/etc/mail/tls/ca.pem')dnl
define(`confSERVER_CERT', `/etc/mail/tls/cert.pem')dnl
define(`confSERVER_KEY', `/etc/mail/tls/key.pem')dnl
{"define(`confTO_QUEUEWARN', `2s')dnl" if place.is_relay else "dnl"}
LOCAL_CONFIG
Cw{DOMAIN}
{f"CR{SENDER_ADDRESS}" if place.is_relay else ""}
H{REFUSE_HEADER}: $>CheckInterop
LOCAL_RULESETS
SCheckInterop
R{REFUSE}\t$#error $@ 5.7.1 $: 550 Not wanted here
""",
        )
        return f"""
        cd /etc/mail
        mkdir -p tls; cp {WORK}/cert.pem {WORK}/key.pem {WORK}/ca.pem tls/; chmod 600 tls/key.pem
        sed -e "s/, Addr=127.0.0.1//; /^DAEMON_OPTIONS.*inet6/d; /^dnl/d" sendmail.mc > own.mc
        cat {WORK}/more.mc >> own.mc
        m4 own.mc > sendmail.cf
        newaliases > /dev/null
        rm -rf /var/mail; ln -s {WORK}/mail /var/mail; rm -rf /var/spool/mail; ln -s {WORK}/mail /var/spool/mail
        mkdir -p /run/sendmail/mta /run/sendmail/msp
        exec sendmail -bD -L sm-mta -q{"3s" if place.is_relay else "10m"} -X {WORK}/sessions.log
        """

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return mbox_messages(place.mail)


SERVER = Sendmail()
