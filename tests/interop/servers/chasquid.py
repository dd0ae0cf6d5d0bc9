"""chasquid of Debian: users of its own database, mail handed to an MDA command that writes a file for each message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tests.interop.layer import WORK, Layer
from tests.interop.place import (
    DOMAIN,
    HOST,
    HOST_ADDRESS,
    MAILBOXES,
    PASSWORD,
    PORT,
    REFUSE,
    REFUSE_HEADER,
    RETURN_DOMAIN,
    SENDER_DOMAIN,
    SUBMISSION_PORT,
    USERS,
    Place,
)
from tests.interop.remote import DebianServer, StoredMessage, maildir_messages, message_to, submission

# A user has a password; nobody logs in with this one.
_PASSWORD = 'scrypt: { logN: 14 r: 8 p: 1 keyLen: 32 salt: "x" encrypted: "x" }'

# A file is seen when it is whole.
_MDA = f"""#!/bin/sh
set -e
file=$(mktemp {WORK}/mail/"$1"/XXXXXXXX)
cat > "$file"
mv "$file" {WORK}/mail/"$1"/new/
"""


class Chasquid(DebianServer):
    name: ClassVar = "chasquid"
    title: ClassVar = "chasquid"
    how: ClassVar = (
        "its own configuration (it does not start without a certificate), a `post-data` hook that refuses, an MDA that "
        "writes what it is given to a file"
    )
    warns: ClassVar = False
    waits_for_domains: ClassVar = True
    layer: ClassVar = Layer("chasquid", ["chasquid"])

    def script(self, place: Place) -> str:
        place.write(
            "chasquid.conf",
            f"""
hostname: "{HOST}"
smtp_address: "0.0.0.0:{PORT}"
data_dir: "{WORK}/data"
mail_delivery_agent_bin: "{WORK}/mda"
mail_delivery_agent_args: "%to_user%"
mail_log_path: "<stdout>"
{f'submission_address: "{HOST_ADDRESS}:{SUBMISSION_PORT}"' if place.is_relay else ""}
""",
        )
        place.write("mda", _MDA, mode=0o755)
        place.write(
            "hook",
            f'#!/bin/sh\nif grep -q "^{REFUSE_HEADER}: {REFUSE}"; then echo Not wanted here; exit 20; fi\n',
            mode=0o755,
        )
        place.write("users", "\n".join(MAILBOXES) + "\n")
        return f"""
        mkdir -p /etc/chasquid/hooks /etc/chasquid/domains/{DOMAIN} /etc/chasquid/certs/{HOST} {WORK}/data
        cp {WORK}/chasquid.conf /etc/chasquid/
        cp {WORK}/hook /etc/chasquid/hooks/post-data; chmod 755 /etc/chasquid/hooks/post-data
        cp {WORK}/cert.pem /etc/chasquid/certs/{HOST}/fullchain.pem
        cp {WORK}/key.pem /etc/chasquid/certs/{HOST}/privkey.pem
        while read user; do
            printf 'users: {{ key: "%s" value: {{ {_PASSWORD} }} }}\\n' "$user"
            mkdir -p "{WORK}/mail/$user/new"
        done < {WORK}/users > /etc/chasquid/domains/{DOMAIN}/users
        chasquid-util user-add {USERS[0]}@{DOMAIN} --password={PASSWORD}
        exec chasquid
        """

    def submit(self, place: Place, case: str, recipient: str) -> None:
        with submission(place) as session:  # it relays for its users alone
            session.sendmail(f"to-{case}@{RETURN_DOMAIN}", [recipient], message_to(recipient, f"news@{SENDER_DOMAIN}"))

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return maildir_messages(place.mail)


SERVER = Chasquid()
