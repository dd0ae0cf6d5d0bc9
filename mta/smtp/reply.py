"""Replies of an SMTP server, from bytes (RFC 5321 §4.2; enhanced codes RFC 2034 §4, RFC 3463 §2).

    Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF
    Reply-code = %x32-35 %x30-35 %x30-39

Strict about what decides (three digits, the first 2 to 5, the same code on all lines of a reply), lenient about what
does not: the second digit may be any (an unknown code counts by its first digit, RFC 5321 §4.2.1), a lone LF ends a
line as CRLF does, text may hold any bytes and is made legible, never rejected.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from mta.model.errors import RemoteProtocolError
from mta.model.reply import REPLY_TEXT_BYTES_MAX, Reply

# Caps on what of one reply is kept; the rest is counted and dropped, since its code is what decides: a message whose
# reply is too long would be in doubt. RFC 5321 §4.5.3.1.5 asks for 512 octets a line and servers exceed it. 256 lines
# are ten times the longest EHLO answer seen.
LINE_BYTES_MAX: Final = 8 * 1024
KEPT_BYTES_MAX: Final = 32 * 1024
KEPT_LINES_MAX: Final = 256
# A reply that goes on behind these has no end: nobody says as much about a message.
REPLY_BYTES_MAX: Final = 1024 * 1024
REPLY_LINES_MAX: Final = 10_000
_ENDLESS: Final = f"a reply of more than {REPLY_LINES_MAX} lines or {REPLY_BYTES_MAX} octets"

# Servers say the same few sentences; parsed ones are kept per process. Two generations bound the memory without a
# list of uses: a full young one becomes the old one, and what is still in use comes back young.
CACHED_LINES_MAX: Final = 512  # a generation
CACHED_LINE_BYTES_MAX: Final = 128

assert REPLY_TEXT_BYTES_MAX < LINE_BYTES_MAX < KEPT_BYTES_MAX < REPLY_BYTES_MAX

_LINE: Final = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?", re.DOTALL)
_ENHANCED: Final = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?= |\Z)")

_young: dict[bytes, Reply] = {}
_old: dict[bytes, Reply] = {}


class ReplyParser:
    """Bytes in, complete replies out, for one session.

    ``feed`` raises RemoteProtocolError when the server broke the grammar or a cap, and from then on always. Replies
    that were complete *before* the fault in the same bytes are returned first, with ``fault`` set, so that the
    outcome does not depend on how the network cut the bytes.
    """

    __slots__ = ("_bytes", "_code", "_count", "_is_cut", "_kept_bytes", "_lines", "_rest", "fault")

    def __init__(self) -> None:
        self._rest = b""  # an unfinished line
        self._is_cut = False  # of which no more is kept
        self._code = 0  # of the reply whose lines are being collected
        self._count = 0  # of these lines; 0 between replies
        self._lines: list[bytes] = []  # texts of the first of them
        self._kept_bytes = 0  # in these texts
        self._bytes = 0  # of the lines, and of what was dropped of the unfinished one
        self.fault: RemoteProtocolError | None = None

    @property
    def is_mid_reply(self) -> bool:
        """A reply has begun and is not complete."""
        return bool(self._rest or self._count)

    def feed(self, data: bytes) -> list[Reply]:
        """Take bytes, return the replies that they complete (often none)."""
        if self.fault is not None:
            raise self.fault
        if self._is_cut:
            end = data.find(b"\n")
            self._bytes += len(data) if end < 0 else end
            if end < 0:
                self._check_size()
                return []
            self._is_cut = False
            data = data[end:]
        lines = (self._rest + data if self._rest else data).split(b"\n")
        rest = self._rest = lines.pop()
        replies: list[Reply] = []
        try:
            for line in lines:
                # A cached line is a whole reply, unless it ends a reply of several lines.
                reply = _young.get(line) if not self._count else None
                if reply is None:
                    reply = self._line(line)
                if reply is not None:
                    replies.append(reply)
            if len(rest) > LINE_BYTES_MAX:
                self._rest = rest[:LINE_BYTES_MAX]
                self._is_cut = True
                self._bytes += len(rest) - LINE_BYTES_MAX
                self._check_size()
                if _LINE.fullmatch(self._rest) is None:
                    self._fail(f"not a reply line: {_legible(rest[:80])!r}")
        except RemoteProtocolError:
            if not replies:
                raise
        return replies

    def _check_size(self) -> None:
        if self._count > REPLY_LINES_MAX or self._bytes > REPLY_BYTES_MAX:
            self._fail(_ENDLESS)

    def _fail(self, what: str) -> NoReturn:
        self.fault = RemoteProtocolError(what)
        self._rest = b""
        self._is_cut = False
        self._lines = []
        self._count = 0
        raise self.fault

    def _line(self, line: bytes) -> Reply | None:
        """One line without its LF: the reply that it completes, if it does."""
        if not self._count:
            reply = _old.get(line)
            if reply is not None:
                return _remembered(line, reply)
        size_bytes = len(line) + 1
        if size_bytes > LINE_BYTES_MAX:
            if self._bytes + size_bytes > REPLY_BYTES_MAX:
                self._fail(_ENDLESS)
            line = line[:LINE_BYTES_MAX]
        stripped = line[:-1] if line.endswith(b"\r") else line
        match = _LINE.fullmatch(stripped)
        if match is None:
            self._fail(f"not a reply line: {_legible(line[:80])!r}")
        code_digits, separator, text = match.groups(b"")
        code = int(code_digits)
        if self._count:
            if code != self._code:
                self._fail(f"a reply with two codes, {self._code} and {code}")
        elif separator != b"-":
            self._bytes = 0
            return _remembered(line, _reply(code, _legible(text)))
        self._code = code
        self._count += 1
        self._bytes += size_bytes
        self._check_size()
        if len(self._lines) < KEPT_LINES_MAX and self._kept_bytes + len(text) <= KEPT_BYTES_MAX:
            self._lines.append(text)
            self._kept_bytes += len(text)
        if separator == b"-":
            return None
        texts, self._lines = self._lines, []
        self._count = self._bytes = self._kept_bytes = 0
        return _reply_of_lines(code, texts)


def _remembered(line: bytes, reply: Reply) -> Reply:
    global _young, _old
    if len(line) <= CACHED_LINE_BYTES_MAX:
        if len(_young) >= CACHED_LINES_MAX:
            _old, _young = _young, {}
        _young[line] = reply
    return reply


def _reply(code: int, text: str) -> Reply:
    """Split the enhanced code off, if its class is the code's (RFC 2034 §4); else it stays text."""
    match = _ENHANCED.match(text)
    if match is None or int(match[1]) != code // 100:
        return Reply(code, text)
    return Reply(code, text[match.end() :].lstrip(), match[0])


def _reply_of_lines(code: int, texts: list[bytes]) -> Reply:
    """RFC 2034 repeats the enhanced code on each line; it is kept once."""
    first = _reply(code, _legible(texts[0]))
    pieces = [first.text]
    for raw in texts[1:]:
        piece = _reply(code, _legible(raw))
        pieces.append(piece.text if piece.enhanced == first.enhanced else f"{piece.enhanced} {piece.text}".strip())
    return Reply(code, _cut(" ".join(filter(None, pieces))), first.enhanced)


def _legible(raw: bytes) -> str:
    """Text that may stand in a log: what is not printable, or not UTF-8, is escaped (threats C6, H10)."""
    text = raw.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
    return _cut(text.strip())


def _cut(text: str) -> str:
    if len(text) * 4 <= REPLY_TEXT_BYTES_MAX:
        return text
    return text.encode()[:REPLY_TEXT_BYTES_MAX].decode("utf-8", "ignore")
