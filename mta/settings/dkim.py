"""``[signing]`` and ``[[dkim]]`` of ``mta.toml``: whose messages are signed, by which key files; and those files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from mta.message.dkim import Signer, SigningKey, load_key, parse_signer_name
from mta.model.address import parse_domain
from mta.model.errors import BadInput
from mta.model.limits import FRAME_BYTES_MAX
from mta.settings.toml_lines import KeyPath
from mta.settings.toml_source import TomlSource, only_owner_and_group, read_whole, shown

DKIM_ENTRIES_MAX: Final = 5_000
KEY_FILE_BYTES_MAX: Final = 8 * 1024  # an RSA key of 4096 bits has 3.3 KB, and may have a comment
# All keys go to a child in one frame.
assert DKIM_ENTRIES_MAX * (KEY_FILE_BYTES_MAX + 1024) < FRAME_BYTES_MAX


class DkimEntry(msgspec.Struct, frozen=True):
    """One ``[[dkim]]`` table: a signature of the messages of a sender domain. ``where`` is its ``file:line``."""

    domain: str  # of the mailbox in From, canonical
    selector: str
    key: Path
    d: str  # the domain that signs
    subdomains: bool
    where: str

    @property
    def name(self) -> str:
        """Where DNS has the public key."""
        return f"{self.selector}._domainkey.{self.d}"


class SigningSettings(msgspec.Struct, frozen=True):
    """What is signed. Names key files, and has read none of them."""

    required: bool = False  # a sender domain without an entry is held, not sent unsigned
    check_s: float = 600.0  # between looks whether a key file was exchanged
    entries: tuple[DkimEntry, ...] = ()


class SigningTable(msgspec.Struct):
    """What ``[signing]`` may hold."""

    required: bool = False
    check_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 600.0


class DkimTable(msgspec.Struct):
    """What a ``[[dkim]]`` table may hold."""

    domain: str
    selector: str
    key: str
    d: str | None = None
    subdomains: bool = False


def signing_settings(source: TomlSource, table: SigningTable, base: Path) -> SigningSettings:
    """The settings of ``source``; paths of keys are relative to ``base``. Raises BadInput with the line."""
    tables = source.table.get("dkim", [])
    if not isinstance(tables, list):
        raise source.fault(("dkim",), "expected an array of tables; write [[dkim]], with two brackets")
    if len(tables) > DKIM_ENTRIES_MAX:
        raise source.fault(("dkim", DKIM_ENTRIES_MAX), f"more than {DKIM_ENTRIES_MAX:,} keys")
    entries = tuple(_entry(source, ("dkim", i), one, base) for i, one in enumerate(tables))
    seen: dict[tuple[str, str], str] = {}
    for i, entry in enumerate(entries):
        first = seen.setdefault((entry.domain, entry.name), entry.where)
        if first != entry.where:
            what = f"{entry.name} signs for {entry.domain} by the entry at {first} already"
            raise source.fault(("dkim", i, "selector"), what)
    return SigningSettings(table.required, table.check_s, entries)


def _entry(source: TomlSource, path: KeyPath, table: object, base: Path) -> DkimEntry:
    raw = source.build(path, table, DkimTable)
    key = "domain"
    try:
        domain = parse_domain(raw.domain, "")
        key = "domain" if raw.d is None else "d"
        d, selector = parse_signer_name(domain if raw.d is None else raw.d, raw.selector, "")
    except BadInput as error:
        key = "selector" if error.where == ".selector" else key
        raise source.fault((*path, key), error.what) from None
    if not raw.key or "\0" in raw.key:
        raise source.fault((*path, "key"), f"{shown(raw.key)} is no path")
    return DkimEntry(domain, selector, base / Path(raw.key).expanduser(), d, raw.subdomains, source.where(path))


Stamp = tuple[int, ...]


def stamp_of(path: Path) -> Stamp | None:
    """What changes when a file is exchanged, written to, or made readable to others; None: it is not there."""
    try:
        return _stamp(os.stat(path))
    except (OSError, ValueError):
        return None


def _stamp(known: os.stat_result) -> Stamp:
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns


class KeyFile:
    """A key as its file has it. ``repr`` shows nothing of it."""

    __slots__ = ("key", "pem", "stamp")

    def __init__(self, pem: bytes, key: SigningKey, stamp: Stamp) -> None:
        self.pem = pem
        self.key = key
        self.stamp = stamp

    def signer(self, entry: DkimEntry) -> Signer:
        return Signer(entry.d, entry.selector, self.key, where=entry.where)


def read_key(entry: DkimEntry) -> KeyFile:
    """The key of an entry. Raises BadInput, with the entry's line and the file, when it cannot or must not be used."""
    try:
        pem, known = read_whole(entry.key, KEY_FILE_BYTES_MAX, only_owner_and_group("a private key"))
        key = load_key(pem, str(entry.key))
    except BadInput as error:
        raise BadInput(entry.where, f"dkim.key: {error.where} {error.what}") from None
    return KeyFile(pem, key, _stamp(known))
