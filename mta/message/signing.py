"""Signatures made while a message is put together, without reading it again.

A template knows what relaxed form makes of its own text (RFC 6376 §3.4). So, per message, only values are brought
into that form, and what stands before the first of them is hashed once for all. That this gives what the plain
algorithm gives for the whole message rests on how bodies are encoded (``mta.message.quoted``):

- no piece of a body, static or value, ends in white space, so no run of white space goes on in the next one;
- no line ends in white space;
- only the end of a body can be empty lines: where values may leave some, its end is looked at each time.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mta.message.dkim import OVERSIGNED_HEADERS, SIGNED_HEADERS, Signer, relaxed_lines, relaxed_text
from mta.message.layout import Cell, Layout, LayoutPart, joined
from mta.model.errors import LocalFault
from mta.model.limits import HEADER_LINE_OCTETS_AIM

_WHITE_SPACE_AT_END: Final = re.compile(r"[ \t](?:\r\n|\Z)")


class BodyHash:
    """What becomes of the values of a body in ``bh=``."""

    def __init__(self, parts: Sequence[LayoutPart]) -> None:
        relaxed: list[LayoutPart] = []
        for part in joined(parts):
            if isinstance(part, str):
                if _WHITE_SPACE_AT_END.search(part) is not None:
                    raise LocalFault("a piece of a body, or a line of it, ends in white space")
                part = relaxed_lines(part)
            relaxed.append(part)
        self._may_end_empty = not _trim_end(relaxed)
        self._prefix = hashlib.sha256()
        while not self._may_end_empty and relaxed and not isinstance(head := relaxed[0], Cell):
            self._prefix.update(head.encode("ascii") if isinstance(head, str) else head)
            del relaxed[0]
        self._layout = Layout(relaxed)
        self._fixed = self._hash(()) if self._layout.is_static else None

    def text(self, values: Sequence[str]) -> str:
        """The value of ``bh=``: the hash of the body, in base64. ``values`` encoded as they are sent."""
        return self._fixed or self._hash(values)

    def _hash(self, values: Sequence[str]) -> str:
        if "  " in "\n".join(values):
            values = [relaxed_lines(value) for value in values]
        segments = self._layout.fill(values)
        if self._may_end_empty:
            # RFC 6376 §3.4.4: empty lines at the end do not count, and a body of nothing else is empty.
            body = b"".join(segments).rstrip(b"\r\n")
            segments = [body, b"\r\n"] if body else []
        hashed = self._prefix.copy()
        for segment in segments:
            hashed.update(segment)
        return base64.b64encode(hashed.digest()).decode("ascii")


def _trim_end(parts: list[LayoutPart]) -> bool:
    """Takes empty lines off the end of ``parts``; False when that cannot be done before the values are known."""
    if not parts:
        return False
    last = parts[-1]
    if isinstance(last, str):
        trimmed = last.rstrip("\r\n")
        if trimmed:
            parts[-1] = f"{trimmed}\r\n"
        return trimmed != ""
    return isinstance(last, bytes) and last != b"\r\n"


class HeaderToSign(NamedTuple):
    """A header as it goes into the hash: its name, and its text with gaps."""

    name: str
    parts: Sequence[str | Cell]


class Signatures:
    """The DKIM-Signature headers of one form of a message; one for each signer, in their order.

    ``starts`` tells for each cell where the header's text begins in it: cells may be whole lines, name and all.
    """

    def __init__(self, headers: Sequence[HeaderToSign], starts: Sequence[int], signers: Sequence[Signer]) -> None:
        there = {header.name.lower(): header for header in headers}
        signed = [there[name.lower()] for name in SIGNED_HEADERS if name.lower() in there]
        parts: list[LayoutPart] = []
        for header in signed:
            texts = header.parts
            # One that has no gap may be folded; one that has is short, and has nothing to fold but its cell.
            is_fixed = all(isinstance(text, str) for text in texts)
            parts += [
                f"{header.name.lower()}:",
                *([relaxed_text("".join(map(str, texts)))] if is_fixed else texts),
                "\r\n",
            ]
        self._headers = Layout(parts)
        self._starts = starts
        names = [header.name for header in signed]
        # Once more than there are, behind those that are: that one is signed as absent (RFC 6376 §5.4.2).
        self._heads = [_SignatureHead(signer, [*names, *OVERSIGNED_HEADERS]) for signer in signers]

    def lines(self, cells: Sequence[str], body_hash: str, signed_unix_s: int) -> str:
        """The headers, each with its CRLF. ``cells`` as they stand in the message's own header."""
        texts = [relaxed_text(cell[start:]) for cell, start in zip(cells, self._starts, strict=True)]
        hashed = hashlib.sha256()
        for segment in self._headers.fill(texts):
            hashed.update(segment)
        return "".join([head.line(hashed.copy(), body_hash, signed_unix_s) for head in self._heads])


class _SignatureHead:
    """One signer's header, all but the time, the body's hash and the signature."""

    def __init__(self, signer: Signer, names: Sequence[str]) -> None:
        self._signer = signer
        before = (
            f"DKIM-Signature: v=1; a={signer.key.algorithm}; c=relaxed/relaxed;\r\n"
            f" d={signer.domain};\r\n s={signer.selector};\r\n t="
        )
        after = f";\r\n{_folded_names(names)};\r\n bh="
        self._sent = (before, after)
        name, _, text = before.partition(":")
        self._relaxed = (f"{name.lower()}:{relaxed_text(text)}", relaxed_text(after))
        self._time: tuple[int, str, str] = (-1, "", "")

    def line(self, hashed: hashlib._Hash, body_hash: str, signed_unix_s: int) -> str:
        if self._time[0] != signed_unix_s:
            relaxed, sent = (f"{before}{signed_unix_s}{after}" for before, after in (self._relaxed, self._sent))
            self._time = (signed_unix_s, relaxed, sent)
        _, relaxed, sent = self._time
        # Without its signature and without the last CRLF (RFC 6376 §3.7).
        hashed.update(f"{relaxed}{body_hash}; b=".encode("ascii"))
        return f"{sent}{body_hash};\r\n b={self._signer.signature(hashed.digest())}\r\n"


def _folded_names(names: Sequence[str]) -> str:
    lines = [" h="]
    for name in names:
        colon = "" if lines[-1] == " h=" else ":"
        if len(lines[-1]) + len(colon) + len(name) > HEADER_LINE_OCTETS_AIM - 1:
            lines[-1] += colon
            lines.append("  ")
            colon = ""
        lines[-1] += f"{colon}{name}"
    return "\r\n".join(lines)
