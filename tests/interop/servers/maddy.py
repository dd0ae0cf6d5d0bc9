"""maddy: its own configuration without submission and IMAP; mail goes to its own storage."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import ClassVar

from tests.interop.packages import GoServer
from tests.interop.place import DOMAIN, HOST, MAILBOXES, PORT, REFUSE, REFUSE_HEADER, Place
from tests.interop.remote import StoredMessage

_CONFIG = """
state_dir DIRECTORY/state
runtime_dir DIRECTORY/run
hostname HOST
tls file DIRECTORY/cert.pem DIRECTORY/key.pem

storage.imapsql local_mailboxes {
    driver sqlite3
    dsn imapsql.db
}

smtp tcp://0.0.0.0:PORT {
    limits {
        all rate 20 1s
        all concurrency 10
    }
    dmarc yes
    check {
        require_mx_record
        dkim
        spf
        command DIRECTORY/refuse {
            run_on body
            code 1 reject
        }
    }
    default_source {
        destination DOMAIN {
            deliver_to &local_mailboxes
        }
        default_destination {
            reject 550 5.1.1 "User doesn't exist"
        }
    }
}
"""


class Maddy(GoServer):
    name: ClassVar = "maddy"
    title: ClassVar = "maddy"
    how: ClassVar = (
        "its own `maddy.conf` without submission and IMAP (20 messages a second), a `command` check that refuses"
    )
    package: ClassVar = "github.com/foxcpp/maddy/cmd/maddy"
    pinned: ClassVar = "v0.8.1"
    replace: ClassVar = (
        "github.com/emersion/go-imap => github.com/foxcpp/go-imap v1.0.0-beta.1.0.20220623182312-df940c324887",
        "github.com/emersion/go-smtp => github.com/foxcpp/go-smtp v1.21.4-0.20250124171104-c8519ae4fb23",
        "github.com/libdns/gandi => github.com/foxcpp/libdns-gandi v1.0.4-0.20240127130558-4782f9d5ce3e",
    )

    def command(self, place: Place) -> list[str]:
        text = _CONFIG.replace("DIRECTORY", str(place.directory)).replace("HOST", HOST)
        config = place.write("maddy.conf", text.replace("PORT", str(PORT)).replace("DOMAIN", DOMAIN))
        place.write("refuse", f'#!/bin/sh\nif grep -q "^{REFUSE_HEADER}: {REFUSE}"; then exit 1; fi\n', mode=0o755)
        for folder in ("state", "run"):
            (place.directory / folder).mkdir()
        for name in MAILBOXES:
            self._run(place, "imap-acct", "create", f"{name}@{DOMAIN}")
        return [str(self.program), "--config", str(config), "run"]

    def _run(self, place: Place, *arguments: str) -> bytes:
        command = [self.program, "--config", place.directory / "maddy.conf", *arguments]
        return subprocess.run(command, check=False, capture_output=True, cwd=place.directory).stdout

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        for name in MAILBOXES:
            user = f"{name}@{DOMAIN}"
            for line in self._run(place, "imap-msgs", "list", user, "INBOX").splitlines():
                if line.startswith(b"UID "):
                    uid = line.split()[1].rstrip(b":").decode()
                    yield StoredMessage(name, self._run(place, "imap-msgs", "dump", "--uid", user, "INBOX", uid))


SERVER = Maddy()
