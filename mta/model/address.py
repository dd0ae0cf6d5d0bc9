"""Mailboxes as RFC 5321 §4.1.2 writes them, widened by RFC 6531 §3.3, in one canonical form.

The canonical form is what is queued, counted and compared: the local part as it was given (it belongs
to its host), the domain in lower case and in A-labels (UTS #46, non-transitional), so that the U-label
and the A-label form of a domain are one domain to quotas, quarantine and suppression.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Final

import idna
import msgspec

from mta.model.errors import BadInput
from mta.model.limits import DOMAIN_OCTETS_MAX, LOCAL_PART_OCTETS_MAX, PATH_OCTETS_MAX

LABEL_OCTETS_MAX: Final = 63  # RFC 1035 §2.3.4
# A name of n octets takes n + 2 on the wire, and 255 is the bound there (RFC 1035 §3.1).
_DOMAIN_TEXT_OCTETS_MAX: Final = DOMAIN_OCTETS_MAX - 2
_MAILBOX_OCTETS_MAX: Final = PATH_OCTETS_MAX - 2  # without the angle brackets
_SHOWN_CHARS_MAX: Final = 80
_CHARS_MAX: Final = 1024  # nothing longer can become short enough, and IDNA's cost is not linear
_DIGITS: Final = frozenset("0123456789")

# Dot-string "@" Domain (RFC 5321 §4.1.2), less than the grammar: no "--" (so no A-label), a last label that
# starts with a letter. What does not fit takes the slow path. Possessive, so a mismatch costs one pass.
_PLAIN: Final = re.compile(
    r"([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++)*+)"
    r"@((?:[A-Za-z0-9]++(?:-[A-Za-z0-9]++)*+\.)*+[A-Za-z][A-Za-z0-9]*+(?:-[A-Za-z0-9]++)*+)"
)
# Below this many octets neither the local part, a label, nor the whole can exceed its bound.
_PLAIN_OCTETS_MAX: Final = min(LOCAL_PART_OCTETS_MAX, LABEL_OCTETS_MAX)

_ATOM_WIDE: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010FFFF]++"  # atext / UTF8-non-ascii (RFC 6531 §3.3)
_DOT_STRING: Final = re.compile(rf"{_ATOM_WIDE}(?:\.{_ATOM_WIDE})*+")
# Quoted-string = DQUOTE *QcontentSMTP DQUOTE, then the "@" that ends the local part.
_QUOTED_LOCAL: Final = re.compile(r'("(?:[ !#-\[\]-~\u0080-\U0010FFFF]|\\[ -~])*+")@')
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_JOINERS: Final = "\u200c\u200d"  # ZWNJ and ZWJ: letters of some scripts need them


class Mailbox(msgspec.Struct, frozen=True, gc=False):
    """A mailbox in canonical form. ``text`` is ``local@domain``; ``domain`` is ASCII or a literal in brackets."""

    local: str
    domain: str
    text: str
    needs_smtputf8: bool = False  # the local part is not ASCII (RFC 6531)


def parse_mailbox(text: str, where: str) -> Mailbox:
    """The canonical form of ``local@domain``. Raises BadInput at ``where``, showing the address with escapes."""
    if len(text) <= _PLAIN_OCTETS_MAX and (plain := _PLAIN.fullmatch(text)) is not None:
        local, domain = plain.groups()
        if domain.islower():
            return Mailbox(local, domain, text)
        domain = domain.lower()
        return Mailbox(local, domain, f"{local}@{domain}")
    try:
        return _parse_any(text)
    except _RefusedError as refused:
        raise BadInput(where, f"{shown(text)} {refused}") from None


def parse_domain(text: str, where: str) -> str:
    """The canonical form of a domain or an address literal. Raises BadInput at ``where``."""
    try:
        return _domain(text)
    except _RefusedError as refused:
        raise BadInput(where, f"{shown(text)} {refused}") from None


def is_sendable(address: str) -> bool:
    """Whether ``address`` can stand in an envelope and a header as it is: canonical, but for its domain's case."""
    if len(address) <= _PLAIN_OCTETS_MAX and _PLAIN.fullmatch(address) is not None:
        return True
    try:
        return _parse_any(address).text.lower() == address.lower()
    except _RefusedError:
        return False


def domain_of(address: str) -> str:
    """The domain of an address that is canonical already (no domain holds an "@")."""
    return address[address.rfind("@") + 1 :]


def shown(text: str) -> str:
    """``text`` for a message to people: quoted, cut, and with escapes for all that is not plain ASCII,
    so that look-alikes and control characters show."""
    return ascii(text) if len(text) <= _SHOWN_CHARS_MAX else ascii(text[:_SHOWN_CHARS_MAX]) + "..."


class _RefusedError(Exception):
    """Why a text is no mailbox; ends the sentence that starts with the text."""


def _parse_any(text: str) -> Mailbox:
    if not text:
        raise _RefusedError("is empty")
    if len(text) > _CHARS_MAX:
        raise _RefusedError(f"has {len(text)} characters, {_MAILBOX_OCTETS_MAX} octets are allowed")
    if text[0] == "@":
        raise _RefusedError("has a source route or no local part")
    if text[0] == '"':
        quoted = _QUOTED_LOCAL.match(text)
        if quoted is None:
            raise _RefusedError("has a quoted local part that is not closed before the @, or holds a character refused")
        local, domain = quoted[1], text[quoted.end() :]
    else:
        local, at, domain = text.rpartition("@")
        if not at:
            raise _RefusedError("has no @")
        _check_dot_string(local)
    _check_wide_characters(local)
    octets = len(local.encode())
    if octets > LOCAL_PART_OCTETS_MAX:
        raise _RefusedError(f"has a local part of {octets} octets, {LOCAL_PART_OCTETS_MAX} are allowed")
    domain = _domain(domain)
    if octets + 1 + len(domain) > _MAILBOX_OCTETS_MAX:
        raise _RefusedError(f"has {octets + 1 + len(domain)} octets, {_MAILBOX_OCTETS_MAX} are allowed")
    return Mailbox(local, domain, f"{local}@{domain}", not local.isascii())


def _check_dot_string(local: str) -> None:
    if _DOT_STRING.fullmatch(local) is not None:
        return
    if "@" in local:
        raise _RefusedError("has more than one @")
    if not local or local[0] == "." or local[-1] == "." or ".." in local:
        raise _RefusedError("has a local part that is empty, or has a dot at its start, its end, or after a dot")
    strange = next((char for char in local if char != "." and _DOT_STRING.fullmatch(char) is None), "")
    raise _RefusedError(f"has {_named(strange)} in its local part")


def _check_wide_characters(local: str) -> None:
    """Refuses what RFC 6532 would let through but no local part needs: it hides, reorders or breaks lines."""
    if local.isascii():
        return
    for char in local:
        if char.isascii() or char in _JOINERS:
            continue
        # Cc: C1 controls; Cf: invisible or bidirectional marks; Cs: lone surrogates; Zs, Zl, Zp: spaces, line ends.
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"):
            raise _RefusedError(f"has {_named(char)} in its local part")


def _domain(text: str) -> str:
    if text.startswith("["):
        return _literal(text)
    if not text:
        raise _RefusedError("has no domain")
    if len(text) > _CHARS_MAX:
        raise _RefusedError(f"has a domain of {len(text)} characters, {_DOMAIN_TEXT_OCTETS_MAX} octets are allowed")
    domain = text.lower() if text.isascii() else _mapped(text)
    if domain.endswith("."):
        raise _RefusedError("has a dot at the end of its domain")
    domain = ".".join([_label(label) for label in domain.split(".")])
    if len(domain) > _DOMAIN_TEXT_OCTETS_MAX:
        raise _RefusedError(f"has a domain of {len(domain)} octets, {_DOMAIN_TEXT_OCTETS_MAX} are allowed")
    if _DIGITS.issuperset(domain[domain.rfind(".") + 1 :]):
        raise _RefusedError("has a domain that ends in a number (an IP address stands in brackets)")
    return domain


def _mapped(text: str) -> str:
    try:
        return idna.uts46_remap(text, std3_rules=False, transitional=False)
    except (idna.IDNAError, UnicodeError) as refused:
        raise _RefusedError(f"has a domain that IDNA refuses: {_plain_words(refused)}") from None


def _label(label: str) -> str:
    """One label, mapped and lower-cased, as an A-label or as letters, digits and hyphens (RFC 5321 §4.1.2)."""
    if not label:
        raise _RefusedError("has an empty label in its domain")
    if not label.isascii() or label.startswith("xn--"):
        try:
            label = idna.alabel(label).decode("ascii")
        except (idna.IDNAError, UnicodeError) as refused:
            raise _RefusedError(f"has a label that IDNA refuses: {_plain_words(refused)}") from None
    elif _LABEL.fullmatch(label) is None:
        strange = next((char for char in label if char != "-" and _LABEL.fullmatch(char) is None), None)
        raise _RefusedError(
            "has a label that starts or ends with a hyphen"
            if strange is None
            else f"has {_named(strange)} in its domain"
        )
    if len(label) > LABEL_OCTETS_MAX:
        raise _RefusedError(f"has a label of {len(label)} octets, {LABEL_OCTETS_MAX} are allowed")
    return label


def _literal(text: str) -> str:
    """Address literals (RFC 5321 §4.1.3): IPv4, and IPv6 under its tag; General-address-literal has no use."""
    inner = text[1:-1]
    try:
        if not text.endswith("]") or not inner.isascii() or "%" in inner or "/" in inner:
            raise ValueError
        if inner[:5].lower() == "ipv6:":
            return f"[IPv6:{ipaddress.IPv6Address(inner[5:]).compressed}]"
        return f"[{ipaddress.IPv4Address(inner)}]"
    except ValueError:
        raise _RefusedError(
            "has an address literal that is neither [192.0.2.1] nor [IPv6:2001:db8::1] in form"
        ) from None


def _named(char: str) -> str:
    return f"the character U+{ord(char):04X}" if not "!" <= char <= "~" else f"the character {char}"


def _plain_words(refused: Exception) -> str:
    return ascii(str(refused))[1:-1]
