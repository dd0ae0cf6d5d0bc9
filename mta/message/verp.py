"""Return paths that tell which recipient a bounce is for, and that nobody else can make (VERP).

The local part is ``b-{number}-{mac}``: the recipient's number in base 36, and 64 bits of an HMAC-SHA256
(RFC 2104) of it in hexadecimal. A recipient's number is unique over all deliveries, so the delivery need
not be in it. It holds nothing that changes meaning with case, for some servers change case.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from mta.model.errors import LocalFault

NUMBER_MAX: Final = (1 << 63) - 1  # a bigint
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = tuple(high + low for high in _DIGITS for low in _DIGITS)
_MAC_DIGITS: Final = 16  # a guess is right once in 2**64; a forged bounce costs its sender a message each
_NUMBER_DIGITS_MAX: Final = 13  # 36**13 > 2**63
LOCAL_PART_OCTETS: Final = len("b-") + _NUMBER_DIGITS_MAX + 1 + _MAC_DIGITS
_LOCAL_PART: Final = re.compile(rf"b-(0|[1-9a-z][0-9a-z]{{0,{_NUMBER_DIGITS_MAX - 1}}})-([0-9a-f]{{{_MAC_DIGITS}}})")

_BLOCK_OCTETS: Final = 64  # of SHA-256
_KEY_OCTETS_MIN: Final = 16


def base36(number: int) -> str:
    """``number`` (0 or more) in base 36, lower case, without leading zeros."""
    text = ""
    while number >= 1296:
        number, pair = divmod(number, 1296)
        text = _PAIRS[pair] + text
    return (_PAIRS[number] if number >= 36 else _DIGITS[number]) + text


class ReturnPathSigner:
    """Makes the local parts of return paths. The key's share of the HMAC is computed once (RFC 2104 §4)."""

    def __init__(self, key: bytes) -> None:
        if len(key) < _KEY_OCTETS_MIN:
            raise LocalFault(f"a VERP key has {_KEY_OCTETS_MIN} octets or more, not {len(key)}")
        if len(key) > _BLOCK_OCTETS:
            key = hashlib.sha256(key).digest()
        key = key.ljust(_BLOCK_OCTETS, b"\0")
        self._inner = hashlib.sha256(bytes(octet ^ 0x36 for octet in key))
        self._outer = hashlib.sha256(bytes(octet ^ 0x5C for octet in key))

    def local_part(self, number_base36: str) -> str:
        """The return path's local part for the recipient whose number is ``number_base36``."""
        inner = self._inner.copy()
        inner.update(number_base36.encode("ascii"))
        outer = self._outer.copy()
        outer.update(inner.digest())
        return f"b-{number_base36}-{outer.hexdigest()[:_MAC_DIGITS]}"


def parse_verp(local: str, key: bytes) -> int | None:
    """The recipient's number in a return path's local part; None when it is none of ours (or not intact)."""
    parts = _LOCAL_PART.fullmatch(local.lower())
    if parts is None:
        return None
    mac = hmac.digest(key, parts[1].encode("ascii"), "sha256").hex()[:_MAC_DIGITS]
    if not hmac.compare_digest(mac, parts[2]):
        return None
    number = int(parts[1], 36)
    return number if number <= NUMBER_MAX else None
