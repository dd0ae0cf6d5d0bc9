"""MTA-STS (RFC 8461) as text: the record that says that a domain has a policy, the policy, and which hosts it names.

A *policy* is a domain's word on which hosts take its mail, and that their certificates are to be verified.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Final

import msgspec

POLICY_BYTES_MAX: Final = 64 * 1024  # RFC 8461 §3.3
MAX_AGE_S_MAX: Final = 31_557_600  # RFC 8461 §3.2: about a year
HOSTS_MAX: Final = 1_000  # patterns of one policy; a policy of 64 KB could hold ten times as many

_VERSION: Final = "STSv1"
# RFC 8461 §3.1, sts-id and sts-extension; letters of ABNF's ALPHA only.
_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_VALUE: Final = re.compile(r"[\x21-\x3a\x3c\x3e-\x7e]+")
_SECONDS: Final = re.compile(r"[0-9]{1,10}")
_LINE_END: Final = re.compile(r"\r?\n")
_PATTERN: Final = re.compile(r"(?:\*\.)?(?!-)[a-z0-9-]{1,63}(?<!-)(?:\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_PATTERN_CHARS_MAX: Final = 255


class BadPolicy(Exception):  # noqa: N818 - says what was received
    """This is no policy; nothing of it may be used."""


class Mode(enum.StrEnum):
    """How a policy wants to be applied (RFC 8461 §5)."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


class Policy(msgspec.Struct, frozen=True):
    """``hosts``: names or ``*.name``, in lower case, without repetition."""

    mode: Mode
    max_age_s: int
    hosts: tuple[str, ...] = ()

    def names(self, host: str) -> bool:
        """Whether the policy names an MX host (lower case, no trailing dot).

        RFC 8461 §4.1: as in certificates; a wildcard stands for the whole left-most label, and for no more.
        """
        if host in self.hosts:
            return True
        _, dot, parent = host.partition(".")
        return bool(dot) and f"*.{parent}" in self.hosts


def parse_record(texts: Iterable[bytes]) -> str | None:
    """The id in the TXT records of ``_mta-sts.DOMAIN``, each with its strings joined; None: no policy is announced.

    RFC 8461 §3.1: what does not begin as a record of this version is passed over; of the others there must be one.
    """
    begun = [text for text in texts if _begins(text)]
    if len(begun) != 1:
        return None
    try:
        fields = begun[0].decode("ascii").split(";")
    except UnicodeDecodeError:
        return None
    if not fields[-1].strip(" \t"):
        fields.pop()  # the last delimiter may be there or not
    found: str | None = None
    for field in fields[1:]:
        name, equals, value = field.strip(" \t").partition("=")
        if not (equals and _NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            return None
        if name == "id" and found is None:  # RFC 8461 §3.2: of a field that is there twice the first counts
            if not _ID.fullmatch(value):
                return None
            found = value
    return found


def _begins(text: bytes) -> bool:
    return text.partition(b";")[0].rstrip(b" \t") == b"v=STSv1"


def parse_policy(octets: bytes) -> Policy:
    """A policy file (RFC 8461 §3.2). BadPolicy says what is wrong with it."""
    if len(octets) > POLICY_BYTES_MAX:
        raise BadPolicy(f"the policy is larger than {POLICY_BYTES_MAX:,} bytes")
    try:
        lines = _LINE_END.split(octets.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadPolicy("the policy is not UTF-8") from error
    first: dict[str, str] = {}
    hosts: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip(" \t"):
            continue
        key, value = _field(number, line)
        if key == "mx":
            hosts[_host(number, value)] = None
            if len(hosts) > HOSTS_MAX:
                raise BadPolicy(f"the policy names more than {HOSTS_MAX:,} hosts")
        else:
            first.setdefault(key, value)
    return _policy(first, tuple(hosts))


def _field(number: int, line: str) -> tuple[str, str]:
    key, colon, value = line.partition(":")
    if not colon or not _NAME.fullmatch(key):
        raise BadPolicy(f"line {number} of the policy is no key and value: {line[:60]!a}")
    return key, value.strip(" \t")


def _host(number: int, value: str) -> str:
    pattern = value.lower()
    if len(pattern) > _PATTERN_CHARS_MAX or not _PATTERN.fullmatch(pattern):
        raise BadPolicy(
            f"line {number} of the policy: {value[:60]!a} is no host name, with or without a first label '*'"
        )
    return pattern


def _policy(fields: dict[str, str], hosts: tuple[str, ...]) -> Policy:
    for key in ("version", "mode", "max_age"):
        if key not in fields:
            raise BadPolicy(f"the policy has no {key}")
    if fields["version"] != _VERSION:
        raise BadPolicy(f"the policy is of version {fields['version'][:20]!a}, which is not known")
    try:
        mode = Mode(fields["mode"])
    except ValueError as error:
        raise BadPolicy(f"the policy has the unknown mode {fields['mode'][:20]!a}") from error
    if not _SECONDS.fullmatch(fields["max_age"]) or int(fields["max_age"]) > MAX_AGE_S_MAX:
        raise BadPolicy(f"the policy's max_age {fields['max_age'][:20]!a} is not 0 to {MAX_AGE_S_MAX} seconds")
    if mode is not Mode.NONE and not hosts:
        raise BadPolicy(f"the policy is to be applied ({mode.value}) and names no host")
    return Policy(mode, int(fields["max_age"]), hosts)
