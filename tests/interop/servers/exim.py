"""Exim, as Debian's "internet site": mail for its domain goes to mbox files of Unix users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tests.interop.layer import WORK, Layer
from tests.interop.place import DOMAIN, HOST, REFUSE, REFUSE_HEADER, SENDER_ADDRESS, Place
from tests.interop.remote import DebianServer, StoredMessage, mbox_messages

# It warns of what was tried again, which a quarter of an hour would keep from this run.
_RETRY = "sed -i 's/F,2h,15m/F,2h,2s/' /etc/exim4/exim4.conf.template"


class Exim(DebianServer):
    name: ClassVar = "exim"
    title: ClassVar = "Exim"
    how: ClassVar = (
        'Debian\'s "internet site", `MAIN_TLS_ENABLE` with a certificate, a condition of `acl_check_data` that '
        "refuses; a queue run each 5 s, for it queues what comes after the tenth message of a connection"
    )
    layer: ClassVar = Layer("exim", ["exim4-daemon-heavy"])

    def script(self, place: Place) -> str:
        place.write(
            "update-exim4.conf.conf",
            f"""
dc_eximconfig_configtype='internet'
dc_other_hostnames='{DOMAIN}'
dc_local_interfaces='0.0.0.0'
dc_readhost=''
dc_relay_domains=''
dc_minimaldns='false'
dc_relay_nets='{SENDER_ADDRESS if place.is_relay else ""}'
dc_smarthost=''
CFILEMODE='644'
dc_use_split_config='false'
dc_hide_mailname=''
dc_mailname_in_oh='true'
dc_localdelivery='mail_spool'
""",
        )
        place.write(
            "exim4.conf.localmacros",
            """
MAIN_TLS_ENABLE = true
MAIN_TLS_CERTIFICATE = /etc/exim4/cert.pem
MAIN_TLS_PRIVATEKEY = /etc/exim4/key.pem
CHECK_DATA_LOCAL_ACL_FILE = /etc/exim4/refuse
"""
            + ("delay_warning = 2s\n" if place.is_relay else ""),
        )
        place.write(
            "refuse",
            f"deny message = Not wanted here\n  condition = ${{if match{{$h_{REFUSE_HEADER}:}}{{{REFUSE}}}}}\n",
        )
        return f"""
        echo {HOST} > /etc/mailname
        cd {WORK}; cp update-exim4.conf.conf exim4.conf.localmacros refuse cert.pem key.pem /etc/exim4/
        chown Debian-exim /etc/exim4/key.pem
        rm -rf /var/mail; ln -s {WORK}/mail /var/mail
        mkdir -p /run/exim4 && chown Debian-exim: /run/exim4
        chown -R Debian-exim: /var/spool/exim4 /var/log/exim4
        {_RETRY if place.is_relay else ""}
        update-exim4.conf
        touch /var/log/exim4/mainlog /var/log/exim4/paniclog; chown Debian-exim /var/log/exim4/*
        tail -F /var/log/exim4/mainlog /var/log/exim4/paniclog &
        exec exim4 -bdf -q5s
        """

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return mbox_messages(place.mail)


SERVER = Exim()
