"""One text for what servers say of many recipients: all that changes from one failure to the next is masked.

Addresses become ``*``; links ``#URL#``, IP addresses ``#IP#``, host and domain names ``#DOMAIN#``, dates and times
``#DATE#``, queue and message ids ``#ID#``, other numbers ``#NUMBER#`` (campaign-mta §4). The reply code at the
beginning and enhanced codes stay: they are part of what is said.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

TEXT_CHARS_MAX: Final = 1_000  # of a normalised text
_SEEN_CHARS_MAX: Final = 4_096  # of the text as it came
_PASSES_MAX: Final = 4

_DAY: Final = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_MONTH: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_ZONE: Final = r"(?: (?:[+-]\d{4}|UTC|GMT))?(?: \([A-Z]{2,5}\))?"
_MASKS: Final = (
    ("kept", rf"(?!{_DAY}|{_MONTH})[A-Za-z']++(?=[ ,;!?)]|\. |\.?\Z)"),  # most of a text: plain words
    (
        "kept",
        r"\#[A-Z]{2,6}\#|\A[245]\d\d(?=[ -])|\b[245]\d\d(?=[ -][245]\.\d)"
        r"|(?<![\w.])[245]\.\d{1,3}\.\d{1,3}(?![\w.-]*\w)",
    ),
    ("URL", r"\b(?:https?|ftp)://[^\s<>\"']++|\bwww\.[^\s<>\"']++"),
    ("address", r"<?(?<![^\s<>()\[\]\"',;:@|*\#])[^\s<>()\[\]\"',;:@|*\#]{1,128}+@[^\s<>()\[\]\"',;:@|*\#]{1,255}+>?"),
    ("DATE", r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d{1,9})?(?:Z|[ ]?[+-]\d\d:?\d\d)?)?"),
    (
        "DATE",
        rf"\b(?:{_DAY},? )?(?:\d{{1,2}} {_MONTH}|{_MONTH} \d{{1,2}})\b"
        rf"(?:,? \d{{4}})?(?: \d\d:\d\d(?::\d\d)?)?(?: \d{{4}})?{_ZONE}",
    ),
    ("DATE", r"\b\d{1,2}[/.]\d{1,2}[/.]\d{4}\b|\b\d{1,2}:\d\d(?::\d\d)?\b"),
    ("IP", r"\[?\b\d{1,3}(?:\.\d{1,3}){3}\b\]?|\[?(?:IPv6:)?\b[0-9a-f]{1,4}(?::[0-9a-f]{0,4}){2,7}+\b\]?"),
    ("DOMAIN", r"(?<![\w.-])(?:[a-z0-9_](?:[a-z0-9_-]{0,62})\.){1,10}+(?-i:[a-z][a-z0-9-]{1,23})\b(?![\w-])"),
    ("ID", r"(?<![\w=-])(?=[A-Za-z_.=-]{0,64}\d)(?=[\d.=-]{0,64}[A-Za-z_])[\w.=-]{6,255}+"),
    ("NUMBER", r"\d++(?:[.,]\d++)*+"),
)
_ALL: Final = re.compile(
    "|".join(f"(?P<{name}_{i}>{pattern})" for i, (name, pattern) in enumerate(_MASKS)), re.IGNORECASE
)


def normalise(text: str) -> str:
    """The text with all that changes masked, and its white space folded; not longer than ``TEXT_CHARS_MAX``.

    What is normalised already stays as it is.
    """
    seen = " ".join(text[:_SEEN_CHARS_MAX].split())
    # What stands beside a mask may be found only when the mask is there.
    for _ in range(_PASSES_MAX):
        masked = " ".join(_ALL.sub(_mask, seen)[:TEXT_CHARS_MAX].split())
        if masked == seen:
            break
        seen = masked
    return seen


def text_key(text: str) -> bytes:
    """16 octets that stand for a normalised text, and for all texts that are the same once they are normalised."""
    return hashlib.blake2b(normalise(text).encode("utf-8", "replace"), digest_size=16).digest()


def _mask(found: re.Match[str]) -> str:
    assert found.lastgroup is not None
    name = found.lastgroup.partition("_")[0]
    if name == "kept":
        return found[0]
    return "*" if name == "address" else f"#{name}#"
