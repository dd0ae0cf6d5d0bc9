"""What the sink's name server knows: names with their records, rules that make names up, faults.

As a Python dict::

    {"example.test":     {"MX": [(10, "mx1.example.test")]},
     "mx1.example.test": {"A": ["127.0.0.2"], "AAAA": ["::1"], "ttl": 60},
     "*.bulk.test":      {"MX": [(10, "mx.bulk.test")]},       # any name below, where no other entry fits
     "alias.test":       {"CNAME": "example.test"},
     "nomail.test":      {"MX": [(0, ".")]},                   # null MX (RFC 7505)
     "broken.test":      {"fault": "servfail"},
     "half.test":        {"A": ["127.0.0.1"], "fault": {"MX": "silent"}},
     "signed.test":      {"A": ["127.0.0.1"], "secure": True},  # it and all below it that has no entry, or says so too
     "_25._tcp.signed.test": {"TLSA": ["3 1 1 00112233..."], "secure": True}}

A TOML file holds the same under ``[names]``, and rules for many names under ``[[spread]]``::

    [names."example.test"]
    MX = [[10, "mx1.example.test"]]

    [[spread]]                       # d0.bench.test ... d99999.bench.test over mx0 ... mx49.bench.test
    suffix = "bench.test"
    domains = 100000
    hosts = 50
    addresses = ["127.0.0.2", "127.0.0.3"]   # mxN has the (N modulo 2)th
    first_share = 0.5                # half of the domains on mx0, the others over the rest; 0: even

Faults: ``servfail`` and ``refused`` (the response code), ``silent`` (no answer), ``truncated`` (over UDP; TCP
gives all), ``wrong-id`` (an answer to some other question's id), ``nxdomain``. ``secure``: whoever asks is told that
the answer was validated (AD), as by a resolver that does so; nothing is signed here.
"""

from __future__ import annotations

import enum
import functools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import msgspec

from mta.model.errors import BadInput

TTL_S: Final = 300
CNAME_CHAIN_MAX: Final = 8

RecordSet = Mapping[str, Any]
"""The entry of one name, as in the module's example."""


class Fault(enum.StrEnum):
    """How a question goes wrong."""

    SERVFAIL = "servfail"
    REFUSED = "refused"
    SILENT = "silent"
    TRUNCATED = "truncated"
    WRONG_ID = "wrong-id"
    NXDOMAIN = "nxdomain"


class Entry:
    """One name's records as rdata by type, its faults by type (``ANY``: every type), its TTL, and if it is signed."""

    __slots__ = ("faults", "is_secure", "rdatas", "ttl_s")

    def __init__(self, where: str, records: RecordSet) -> None:
        self.ttl_s = _read_ttl(f"{where}.ttl", records.get("ttl", TTL_S))
        self.is_secure = _read_secure(f"{where}.secure", records.get("secure", False))
        self.faults = _read_faults(f"{where}.fault", records.get("fault", {}))
        self.rdatas: dict[str, tuple[dns.rdata.Rdata, ...]] = {}
        for kind, values in records.items():
            if kind not in ("ttl", "fault", "secure"):
                self.rdatas[kind.upper()] = _read_rdatas(f"{where}.{kind}", kind, values)
        if "CNAME" in self.rdatas and len(self.rdatas) > 1:
            raise BadInput(f"{where}.CNAME", "a name with a CNAME has no other records (RFC 1034 §3.6.2)")

    def fault(self, kind: str) -> Fault | None:
        return self.faults.get(kind) or self.faults.get("ANY")


def _read_ttl(where: str, ttl_s: object) -> int:
    if not isinstance(ttl_s, int) or isinstance(ttl_s, bool) or not 0 <= ttl_s < 1 << 31:
        raise BadInput(where, f"{ttl_s!r} is not a number of seconds")
    return ttl_s


def _read_secure(where: str, is_secure: object) -> bool:
    if not isinstance(is_secure, bool):
        raise BadInput(where, f"{is_secure!r} is neither true nor false")
    return is_secure


def _read_faults(where: str, faults: object) -> dict[str, Fault]:
    try:
        if isinstance(faults, str):
            return {"ANY": Fault(faults)}
        if isinstance(faults, Mapping):
            return {str(kind).upper(): Fault(fault) for kind, fault in faults.items()}
    except ValueError as error:
        raise BadInput(where, f"{error}; there are {', '.join(Fault)}") from error
    raise BadInput(where, f"{faults!r} is neither a fault nor a table of faults by type")


def _read_rdatas(where: str, kind: str, values: object) -> tuple[dns.rdata.Rdata, ...]:
    listed = values if isinstance(values, (list, tuple)) else [values]
    texts = [" ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value) for value in listed]
    try:
        return tuple(_read_rdata(kind.upper(), text) for text in texts)
    except (dns.exception.DNSException, ValueError) as error:
        raise BadInput(where, f"{', '.join(texts)}: {error}") from error


@functools.lru_cache(maxsize=10_000)  # rules make the same few hosts up for each of many names
def _read_rdata(kind: str, text: str) -> dns.rdata.Rdata:
    quoted = f'"{text}"' if kind == "TXT" and not text.startswith('"') else text
    rdtype = dns.rdatatype.from_text(kind)
    return dns.rdata.from_text(dns.rdataclass.IN, rdtype, quoted, origin=dns.name.root, relativize=False)


def canonical(name: str) -> str:
    """Lower case, no dot at the end; how names are kept and counted."""
    return name.rstrip(".").lower()


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule for many names, see the module's ``[[spread]]``."""

    suffix: str
    domains: int
    hosts: int
    addresses: tuple[str, ...]
    first_share: float = 0.0
    ttl: int = TTL_S

    def host_of(self, number: int) -> int:
        """The number of the MX host that serves a domain."""
        first = int(self.domains * self.first_share)
        if number < first:
            return 0
        return number % self.hosts if first == 0 else 1 + (number - first) % max(1, self.hosts - 1)

    def __call__(self, name: str) -> RecordSet | None:
        label, _, suffix = name.partition(".")
        if suffix != self.suffix:
            return {} if name == self.suffix else None
        number = _number_after("d", label)
        if number is not None and number < self.domains:
            return {"MX": [(10, f"mx{self.host_of(number)}.{self.suffix}")], "ttl": self.ttl}
        number = _number_after("mx", label)
        if number is not None and number < self.hosts:
            address = self.addresses[number % len(self.addresses)]
            return {"AAAA" if ":" in address else "A": [address], "ttl": self.ttl}
        return None


def _number_after(prefix: str, label: str) -> int | None:
    digits = label.removeprefix(prefix)
    if digits == label or not digits.isascii() or not digits.isdigit() or (digits[0] == "0" and digits != "0"):
        return None
    return int(digits)


Synthetic = Callable[[str], RecordSet | None]
"""A rule: canonical name -> its records, {} for a name without any, None for a name it does not know."""


class Zones:
    """All names of a server. Lookup order: the name itself, the rules, the closest wildcard."""

    def __init__(self, names: Mapping[str, RecordSet], synthetic: tuple[Synthetic, ...] = ()) -> None:
        self._entries = {canonical(name): Entry(f"names.{name}", records) for name, records in names.items()}
        self._synthetic = synthetic
        # Names above a name exist too, with no records: NODATA instead of NXDOMAIN (RFC 8020).
        self._above = {parent for name in self._entries for parent in _parents(name.removeprefix("*."))}

    def find(self, name: str) -> Entry | None:
        """The entry of a canonical name, None for a name that does not exist."""
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        for rule in self._synthetic:
            records = rule(name)
            if records is not None:
                return Entry(name, records)
        if name in self._above or f"*.{name}" in self._entries:
            return _NOTHING
        for parent in _parents(name):
            entry = self._entries.get(f"*.{parent}")
            if entry is not None:
                return entry
            if parent in self._entries:
                return None  # the closest encloser hides the wildcards above it (RFC 4592 §3.3)
        return None

    def is_secure(self, name: str) -> bool:
        """Whether answers about a canonical name are validated; that there is none as those about the next above."""
        entry = self.find(name)
        if entry is not None and entry is not _NOTHING:
            return entry.is_secure
        return next((self._entries[above].is_secure for above in _parents(name) if above in self._entries), False)


_NOTHING: Final = Entry("", {})


def _parents(name: str) -> list[str]:
    labels = name.split(".")
    return [".".join(labels[at:]) for at in range(1, len(labels))]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    names: dict[str, dict[str, Any]] = {}
    spread: list[Spread] = []


def read_zones(path: Path) -> Zones:
    """Reads and checks a zones file; BadInput names the file, the name and the type."""
    try:
        written = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise BadInput(str(path), str(error)) from error
    for number, spread in enumerate(written.spread, 1):
        if spread.domains < 1 or spread.hosts < 1 or not spread.addresses or not 0 <= spread.first_share <= 1:
            raise BadInput(f"{path}: spread {number}", "needs a domain, a host, an address, and a share within 0 and 1")
    try:
        return Zones(written.names, tuple(written.spread))
    except BadInput as error:
        raise BadInput(f"{path}: {error.where}", error.what) from error
