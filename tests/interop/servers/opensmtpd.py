"""OpenSMTPD, as it comes: mail for its domain goes to mbox files of Unix users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tests.interop.layer import WORK, Layer
from tests.interop.place import DOMAIN, HOST, REFUSE, REFUSE_HEADER, Place
from tests.interop.remote import DebianServer, StoredMessage, mbox_messages

# Speaks the protocol of smtpd-filters(7): lines in, lines out. 0.5 and later: session, then token.
_FILTER = rf"""#!/usr/bin/awk -f
BEGIN {{ FS = "|" }}
/^config\|ready/ {{
    print "register|filter|smtp-in|data-line"; print "register|filter|smtp-in|commit"; print "register|ready"; fflush()
}}
$1 == "filter" && $5 == "data-line" {{
    line = $0; for (i = 1; i < 8; i++) sub(/^[^|]*\|/, "", line)
    if (line ~ /^{REFUSE_HEADER}:.*{REFUSE}/) refused[$6] = 1
    print "filter-dataline|" $6 "|" $7 "|" line; fflush()
}}
$1 == "filter" && $5 == "commit" {{
    if ($6 in refused) {{ delete refused[$6]; print "filter-result|" $6 "|" $7 "|reject|550 5.7.1 Not wanted here" }}
    else print "filter-result|" $6 "|" $7 "|proceed"
    fflush()
}}
"""


class OpenSmtpd(DebianServer):
    name: ClassVar = "opensmtpd"
    title: ClassVar = "OpenSMTPD"
    how: ClassVar = "its own `smtpd.conf` for one domain, `tls` with a certificate, a filter that refuses at `commit`"
    layer: ClassVar = Layer("opensmtpd", ["opensmtpd"])

    def script(self, place: Place) -> str:
        place.write("refuse.awk", _FILTER, mode=0o755)
        place.write(
            "smtpd.conf",
            f"""
pki here cert "/etc/cert.pem"
pki here key "/etc/key.pem"
filter refuse proc-exec "/usr/local/refuse.awk"
table aliases file:/etc/aliases
listen on 0.0.0.0 hostname {HOST} tls pki here filter refuse
action "local" mbox alias <aliases>
match from any for domain "{DOMAIN}" action "local"
""",
        )
        return f"""
        cp {WORK}/smtpd.conf /etc/smtpd.conf
        cp {WORK}/cert.pem {WORK}/key.pem /etc/; chmod 600 /etc/key.pem
        cp {WORK}/refuse.awk /usr/local/refuse.awk; chmod 755 /usr/local/refuse.awk
        touch /etc/aliases
        rm -rf /var/mail; ln -s {WORK}/mail /var/mail; rm -rf /var/spool/mail; ln -s {WORK}/mail /var/spool/mail
        mkdir -p /var/empty /run/smtpd
        exec smtpd -d
        """

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return mbox_messages(place.mail)


SERVER = OpenSmtpd()
