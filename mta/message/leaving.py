"""Tokens by which a recipient leaves: in the address or the subject of a mail, or in a URL (RFC 8058).

``u-{number}-{mac}``, made like a return path (`mta.message.verp`) and with the same key, but no return path is one:
whoever sees where bounces go must not be able to unsubscribe with it.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

from mta.message.verp import NUMBER_MAX, base36

_MAC_DIGITS: Final = 16
TOKEN: Final = re.compile(rf"\bu-(0|[1-9a-z][0-9a-z]{{0,12}})-([0-9a-f]{{{_MAC_DIGITS}}})(?![0-9a-z])")


def leaving_token(number: int, key: bytes) -> str:
    """The token of the recipient ``number``."""
    number36 = base36(number)
    return f"u-{number36}-{_mac(number36, key)}"


def parse_leaving_token(text: str, key: bytes) -> int | None:
    """The number in the first token of ours within ``text``; None when it has none that is intact."""
    for found in TOKEN.finditer(text.lower()):
        if hmac.compare_digest(_mac(found[1], key), found[2]):
            number = int(found[1], 36)
            return number if number <= NUMBER_MAX else None
    return None


def _mac(number36: str, key: bytes) -> str:
    return hmac.digest(key, b"unsubscribe:" + number36.encode("ascii"), "sha256").hex()[:_MAC_DIGITS]
