"""``mta dkim``: make a key for signing, and print what DNS must have."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mta.cli.terminal import AsJson, print_json
from mta.message.dkim import load_key
from mta.model.errors import BadInput
from mta.settings import load_settings
from mta.settings.dkim import DkimEntry, read_key

app = typer.Typer(help="DKIM: make keys, and print their records for DNS.", no_args_is_help=True)

NOT_ALL_EXIT: Final = 1
_TEXT_OCTETS_MAX: Final = 255  # of one string of a TXT record (RFC 6376 §3.6.2.2)


class KeyType(enum.StrEnum):
    """Kinds of keys that can be made."""

    RSA2048 = "rsa2048"
    ED25519 = "ed25519"


@app.command()
def show(
    config: Annotated[Path, typer.Option(envvar="MTA_CONFIG", help="The node's mta.toml.")],
    as_json: AsJson = False,
) -> None:
    """Print name and TXT record of each key in the settings, for a zone file; exit 1 when one cannot be used."""
    found = [(entry, *_record(entry)) for entry in load_settings(config).signing.entries]
    if as_json:
        print_json(
            [
                {"sender_domain": entry.domain, "subdomains": entry.subdomains, "name": entry.name}
                | ({"error": error} if error else {"txt": record})
                for entry, record, error in found
            ]
        )
    else:
        for entry, record, error in found:
            below = " and the domains below it" if entry.subdomains else ""
            typer.echo(f"; for {entry.domain}{below}, {entry.where}")
            typer.echo(f"; error: {error}" if error else f"{entry.name}. IN TXT {_strings(record)}")
    if any(error for _, _, error in found):
        raise typer.Exit(NOT_ALL_EXIT)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="File for the private key; must not be there yet.")],
    type: Annotated[KeyType, typer.Option(help="Kind of key.")] = KeyType.RSA2048,  # noqa: A002 - the option's name
) -> None:
    """Make a private key (mode 0600), and print the TXT record of its public half."""
    key = Ed25519PrivateKey.generate() if type is KeyType.ED25519 else rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise BadInput("--out", f"{out} is there already; a key is never written over") from None
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    typer.echo(_strings(load_key(pem, str(out)).dns_record()))


def _record(entry: DkimEntry) -> tuple[str, str]:
    """The text of an entry's record, and why there is none."""
    try:
        return read_key(entry).key.dns_record(), ""
    except BadInput as error:
        return "", str(error)


def _strings(record: str) -> str:
    """A TXT record's text as the strings of a zone file (RFC 1035 §5.1)."""
    pieces = [record[at : at + _TEXT_OCTETS_MAX] for at in range(0, len(record), _TEXT_OCTETS_MAX)]
    return "( " + " ".join(f'"{piece}"' for piece in pieces) + " )"
