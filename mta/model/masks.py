"""Masks with ``*`` (any run of characters) and ``?`` (exactly one), without regard to case.

A mask is translated to one regular expression whose runs are atomic, so that matching costs
O(length of mask x length of text) for every mask, also for ``*a*a*a*a*b``: a host name comes
from a stranger's DNS, and must not be able to buy more of our time than that.

No name ever contains ``*``. So the expression lets ``?`` stand for anything *but* ``*``, and then
the same expression answers a second question: does one mask cover all that another one fits?
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mta.model.limits import DOMAIN_OCTETS_MAX

_RUN = re.compile(r"[*?]+")
_ALLOWED = re.compile(r"[A-Za-z0-9._*?-]+")


def split_masks(text: str) -> tuple[str, ...]:
    """The masks of a comma separated list, in order; empty pieces are left out."""
    return tuple(piece for piece in (piece.strip() for piece in text.split(",")) if piece)


def mask_fault(mask: str) -> str | None:
    """What is wrong with a mask, or None. Refuses also what could be written but could never fit."""
    if not mask:
        return "a mask must not be empty"
    if len(mask) > DOMAIN_OCTETS_MAX:
        return f"a mask has at most {DOMAIN_OCTETS_MAX} characters"
    if not mask.isascii():
        return f"{mask!a}: names are compared in their ASCII form; write the A-label (xn--...)"
    if not _ALLOWED.fullmatch(mask):
        return f"{mask!r}: a mask holds letters, digits, '.', '-', '_', '*' and '?' only"
    if mask.endswith("."):
        return f"{mask!r} can never fit: names are compared without their trailing dot"
    if mask.startswith("."):
        return f"{mask!r} can never fit: no name begins with a dot; write {'*' + mask!r}"
    if ".." in mask:
        return f"{mask!r} can never fit: no name has two dots in a row"
    return None


def canonical(mask: str) -> str:
    """The same mask in lower case, with each run of wildcards written one way: its ``?``, then one ``*``."""
    return _RUN.sub(lambda run: "?" * run[0].count("?") + ("*" if "*" in run[0] else ""), mask.lower())


def _expression(mask: str) -> str:
    pieces = ["".join("[^*]" if char == "?" else re.escape(char) for char in piece) for piece in mask.split("*")]
    if len(pieces) == 1:
        return pieces[0]
    first, *middle, last = pieces
    # Leftmost is always good enough for a piece between two stars, so its choice is never taken back.
    return first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last


def compile_masks(masks: Iterable[str]) -> re.Pattern[str]:
    """One expression that fits (``fullmatch``, on lower case) what any of ``masks`` fits; none of them fits nothing."""
    expressions = [_expression(canonical(mask)) for mask in masks]
    return re.compile("|".join(f"(?:{e})" for e in expressions) if expressions else r"(?!)", re.DOTALL)


def covers(wide: re.Pattern[str], narrow: str) -> bool:
    """True when every name that mask ``narrow`` fits is also fitted by one and the same mask of ``wide``.

    Sound, and complete for single masks; a mask covered only by several others together is not noticed.
    """
    return wide.fullmatch(canonical(narrow)) is not None


def canonical_name(name: str) -> str:
    """A host or domain name as masks compare it: lower case, no trailing dot."""
    return name.lower().removesuffix(".")
