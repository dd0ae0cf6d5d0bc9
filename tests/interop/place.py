"""The small internet in which a remote server and the product meet: names, addresses, users, certificates.

All of it is in a network namespace of the run's own (`tests.interop.__main__`), on its loopback interface: the
addresses are of RFC 5737, so that the product comes from outside and not from a host that the server trusts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from tests.support.keys import ed25519_signer, rsa_signer

DOMAIN: Final = "interop.test"
HOST: Final = "mx.interop.test"
HOST_ADDRESS: Final = "192.0.2.25"
PORT: Final = 25
SUBMISSION_PORT: Final = 587
PASSWORD: Final = "a-password-for-the-run"

SENDER_DOMAIN: Final = "shop.example"
SENDER_HOST: Final = "out.shop.example"
SENDER_ADDRESS: Final = "198.51.100.7"
# Where a server relays to, and where return paths lead. The address is in a network of its own (`mail_sink`): a server
# would take one of this machine's for itself.
FAR_DOMAIN: Final = "far.example"
RETURN_DOMAIN: Final = "return.example"
FAR_HOST: Final = "mx.far.example"
FAR_ADDRESS: Final = "203.0.113.25"
CLOSED_DOMAIN: Final = "closed.example"  # nothing listens there
CLOSED_ADDRESS: Final = "203.0.113.26"
NO_DOMAIN: Final = "nowhere.example"  # there is no such name
ADDRESSES: Final = (HOST_ADDRESS, SENDER_ADDRESS)

# A message with this in its header X-Interop is refused at the dot by each server, as each does that.
REFUSE_HEADER: Final = "X-Interop"
REFUSE: Final = "refuse-at-the-dot"

USERS: Final = tuple(f"good{number:02d}" for number in range(40))
UNKNOWN: Final = tuple(f"nobody{number:02d}" for number in range(40))
REFUSED: Final = "picky"  # a user that exists; what is sent there is refused at the dot
MAILBOXES: Final = (*USERS, REFUSED)


def dns_zones() -> dict[str, object]:
    """What DNS says of both sides; keys of signatures too, for servers that check them."""
    signers = (rsa_signer(), ed25519_signer())
    sender = f"v=spf1 ip4:{SENDER_ADDRESS} -all"
    zones: dict[str, object] = {
        DOMAIN: {"MX": [(10, HOST)]},
        HOST: {"A": [HOST_ADDRESS]},
        SENDER_DOMAIN: {"MX": [(10, SENDER_HOST)], "A": [SENDER_ADDRESS], "TXT": [_strings(sender)]},
        FAR_DOMAIN: {"MX": [(10, FAR_HOST)]},
        RETURN_DOMAIN: {"MX": [(10, FAR_HOST)]},
        FAR_HOST: {"A": [FAR_ADDRESS]},
        CLOSED_DOMAIN: {"MX": [(10, f"mx.{CLOSED_DOMAIN}")]},
        f"mx.{CLOSED_DOMAIN}": {"A": [CLOSED_ADDRESS]},
        SENDER_HOST: {"A": [SENDER_ADDRESS], "TXT": [_strings(sender)]},
        "7.100.51.198.in-addr.arpa": {"PTR": [f"{SENDER_HOST}."]},
        "25.2.0.192.in-addr.arpa": {"PTR": [f"{HOST}."]},
    }
    for signer in signers:
        zones[f"{signer.selector}._domainkey.{signer.domain}"] = {"TXT": [_strings(signer.key.dns_record())]}
    return zones


def _strings(text: str) -> str:
    """A TXT record's text as a zone file has it, in strings of 255 octets at most."""
    return " ".join(f'"{text[at : at + 255]}"' for at in range(0, len(text), 255))


@dataclass(frozen=True)
class Place:
    """A server's working directory, and what is in it when the server is configured."""

    directory: Path
    is_relay: bool = False  # the server sends on what comes from the sender's address, and warns after seconds

    @classmethod
    def make(cls, parent: Path, *, is_relay: bool = False) -> Place:
        """With a certificate for `HOST` that ``ca.pem`` vouches for."""
        for folder in (parent, parent.parent):
            folder.chmod(0o755)  # servers have users of their own
        directory = parent / "server"
        directory.mkdir(mode=0o755)
        place = cls(directory, is_relay)
        authority = trustme.CA()
        certificate = authority.issue_cert(HOST)
        authority.cert_pem.write_to_path(directory / "ca.pem")
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        (directory / "cert.pem").write_bytes(chain)
        (directory / "both.pem").write_bytes(certificate.private_key_pem.bytes() + chain)
        (directory / "mail").mkdir(mode=0o1777)
        (directory / "mail").chmod(0o1777)
        return place

    @property
    def mail(self) -> Path:
        """Where a server may store mail, writable for all."""
        return self.directory / "mail"

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.directory / "server.log"

    def write(self, name: str, text: str, *, mode: int = 0o644) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path
