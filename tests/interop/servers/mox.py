"""mox: one account that has an address and a mailbox for each user, and one whose quota is used up."""

from __future__ import annotations

import imaplib
import subprocess
from collections.abc import Iterable, Iterator
from typing import ClassVar

from tests.interop.mail_sink import MailSink
from tests.interop.packages import GoServer
from tests.interop.place import DOMAIN, HOST, HOST_ADDRESS, PASSWORD, PORT, REFUSED, SUBMISSION_PORT, USERS, Place
from tests.interop.remote import StoredMessage, message_to, submission

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
		Submission:
			Enabled: true
			Port: {SUBMISSION_PORT}
			NoRequireSTARTTLS: true
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

_USERS_OF_CASES = dict(zip(("unknown", "full", "later", "nowhere", "closed"), USERS, strict=False))


class Mox(GoServer):
    name: ClassVar = "mox"
    title: ClassVar = "mox"
    how: ClassVar = (
        "a configuration with one listener and `FirstTimeSenderDelay: 1ms` (15 s by default); no junk filter; it "
        "refuses at the dot for an account without room"
    )
    warns: ClassVar = False
    waits_for_domains: ClassVar = True
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

    def submit(self, place: Place, case: str, recipient: str) -> None:
        """It relays for its users alone, whose addresses are the only return paths that it takes."""
        self._set_password(place)
        sender = f"{_USERS_OF_CASES[case]}@{DOMAIN}"
        with submission(place) as session:
            session.sendmail(sender, [recipient], message_to(recipient, sender))

    def came_back(self, place: Place, sink: MailSink, case: str) -> list[bytes]:
        """Reports go to the account's Inbox, whichever mailbox the address has."""
        to = f"\nTo: <{_USERS_OF_CASES[case]}@{DOMAIN}>".encode()
        return [mail.octets for mail in self._stored_in(place, ["Inbox"]) if to in mail.octets]

    def _set_password(self, place: Place) -> None:
        """Also when it was set already: the server answers on its socket in data/."""
        subprocess.run(
            [self.program, "-config", place.directory / "config/mox.conf", "setaccountpassword", "all"],
            input=f"{PASSWORD}\n".encode(),
            capture_output=True,
            check=True,
        )

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return self._stored_in(place, USERS)

    def _stored_in(self, place: Place, mailboxes: Iterable[str]) -> Iterator[StoredMessage]:
        self._set_password(place)
        with imaplib.IMAP4("127.0.0.1", 143) as imap:
            imap.login(f"{USERS[0]}@{DOMAIN}", PASSWORD)
            for name in mailboxes:
                if imap.select(name, readonly=True)[0] != "OK":
                    continue  # made when its first message comes
                for item in imap.fetch("1:*", "(BODY.PEEK[])")[1]:
                    if isinstance(item, tuple):
                        yield StoredMessage(name, item[1])


SERVER = Mox()
