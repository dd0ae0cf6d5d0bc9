"""OpenSMTPD, as it comes: mail for its domain goes to mbox files of Unix users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tests.interop.layer import WORK, Layer
from tests.interop.place import DOMAIN, HOST, REFUSE, REFUSE_HEADER, SENDER_ADDRESS, Place
from tests.interop.remote import DebianServer, StoredMessage, mbox_messages

# Speaks the protocol of smtpd-filters(7): lines in, lines out; a line names first the session, then the token.
_FILTER = rf"""#!/bin/sh
while IFS= read -r line; do
    case $line in
        "config|ready"*)
            echo "register|filter|smtp-in|data-line"; echo "register|filter|smtp-in|commit"; echo "register|ready" ;;
        "filter|"*"|smtp-in|data-line|"*)
            rest=${{line#*|*|*|*|*|}}; session=${{rest%%|*}}; rest=${{rest#*|}}; token=${{rest%%|*}}; text=${{rest#*|}}
            case $text in "{REFUSE_HEADER}: {REFUSE}"*) refused=$refused,$session ;; esac
            printf 'filter-dataline|%s|%s|%s\n' "$session" "$token" "$text" ;;
        "filter|"*"|smtp-in|commit|"*)
            rest=${{line#*|*|*|*|*|}}; session=${{rest%%|*}}; token=${{rest#*|}}; token=${{token%%|*}}
            case $refused in
                *,$session*)
                    refused=
                    echo "filter-result|$session|$token|reject|550 5.7.1 Not wanted here" ;;
                *) echo "filter-result|$session|$token|proceed" ;;
            esac ;;
    esac
done
"""

_RELAY = f"""
bounce warn-interval 2s
action "out" relay
match from src {SENDER_ADDRESS} for any action "out"
match from local for any action "out"
"""


class OpenSmtpd(DebianServer):
    name: ClassVar = "opensmtpd"
    title: ClassVar = "OpenSMTPD"
    how: ClassVar = "its own `smtpd.conf` for one domain, `tls` with a certificate, a filter that refuses at `commit`"
    layer: ClassVar = Layer("opensmtpd", ["opensmtpd"])
    tls_fails: ClassVar = "6.8.0 and OpenSSL 3 do not go together: each handshake ends with the alert `internal error`"

    def script(self, place: Place) -> str:
        place.write("refuse.sh", _FILTER, mode=0o755)
        place.write(
            "smtpd.conf",
            f"""
pki here cert "/etc/cert.pem"
pki here key "/etc/key.pem"
filter refuse proc-exec "/usr/local/refuse.sh"
table aliases file:/etc/aliases
listen on 0.0.0.0 hostname {HOST} tls pki here filter refuse
action "local" mbox alias <aliases>
match from any for domain "{DOMAIN}" action "local"
"""
            + (_RELAY if place.is_relay else ""),
        )
        return f"""
        cp {WORK}/smtpd.conf /etc/smtpd.conf
        cp {WORK}/cert.pem {WORK}/key.pem /etc/; chmod 600 /etc/key.pem
        cp {WORK}/refuse.sh /usr/local/refuse.sh; chmod 755 /usr/local/refuse.sh
        touch /etc/aliases
        rm -rf /var/mail; ln -s {WORK}/mail /var/mail; rm -rf /var/spool/mail; ln -s {WORK}/mail /var/spool/mail
        mkdir -p /var/empty /run/smtpd
        exec smtpd -d
        """

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return mbox_messages(place.mail)


SERVER = OpenSmtpd()
