"""mox: one account that has an address and a mailbox for each user, and one whose quota is used up."""

from __future__ import annotations

import imaplib
import subprocess
from collections.abc import Iterator
from typing import ClassVar

from tests.interop.packages import GoServer
from tests.interop.place import DOMAIN, HOST, HOST_ADDRESS, PORT, REFUSED, USERS, Place
from tests.interop.remote import StoredMessage

_PASSWORD = "a password for the run"
_STATIC = f"""
DataDir: ../data
LogLevel: debug
User: 65534
Hostname: {HOST}
Listeners:
	public:
		IPs:
			- {HOST_ADDRESS}
		TLS:
			KeyCerts:
				-
					CertFile: ../cert.pem
					KeyFile: ../key.pem
		SMTP:
			Enabled: true
			Port: {PORT}
			FirstTimeSenderDelay: 1ms
	local:
		IPs:
			- 127.0.0.1
		IMAP:
			Enabled: true
			NoRequireSTARTTLS: true
Postmaster:
	Account: all
	Mailbox: Postmaster
"""


class Mox(GoServer):
    name: ClassVar = "mox"
    title: ClassVar = "mox"
    how: ClassVar = (
        "a configuration with one listener and `FirstTimeSenderDelay: 1ms` (15 s by default); no junk filter; it "
        "refuses at the dot for an account without room"
    )
    outcomes_s: ClassVar = 400.0  # it takes its time for each unknown recipient
    package: ClassVar = "github.com/mjl-/mox"
    pinned: ClassVar = "v0.0.15"

    def command(self, place: Place) -> list[str]:
        config = place.write("config/mox.conf", _STATIC.lstrip())
        boxes = "".join(f"\t\t\t{name}@{DOMAIN}:\n\t\t\t\tMailbox: {name}\n" for name in USERS)
        place.write(
            "config/domains.conf",
            f"Domains:\n\t{DOMAIN}: nil\nAccounts:\n\tall:\n\t\tDomain: {DOMAIN}\n\t\tDestinations:\n{boxes}"
            f"\tfull:\n\t\tDomain: {DOMAIN}\n\t\tQuotaMessageSize: 1\n\t\tDestinations:\n"
            f"\t\t\t{REFUSED}@{DOMAIN}: nil\n",
        )
        (place.directory / "data").mkdir()
        return [str(self.program), "-config", str(config), "serve"]

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        # Also when it was set already: the server answers on its socket in data/.
        subprocess.run(
            [self.program, "-config", place.directory / "config/mox.conf", "setaccountpassword", "all"],
            input=f"{_PASSWORD}\n".encode(),
            capture_output=True,
            check=True,
        )
        with imaplib.IMAP4("127.0.0.1", 143) as imap:
            imap.login(f"{USERS[0]}@{DOMAIN}", _PASSWORD)
            for name in USERS:
                if imap.select(name, readonly=True)[0] != "OK":
                    continue  # made when its first message comes
                for item in imap.fetch("1:*", "(BODY.PEEK[])")[1]:
                    if isinstance(item, tuple):
                        yield StoredMessage(name, item[1])


SERVER = Mox()
