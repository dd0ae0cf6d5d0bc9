"""One line of ``mta.delivery_log`` in COPY text format, built where the outcome is known.

A child builds the line once; master and writer pass it on unread. So a recorded outcome costs the master nothing.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from mta.failure.triage import NOT_JUDGED

COLUMNS: Final = (
    "at",
    "delivery_id",
    "number",
    "part_id",
    "attempt",
    "status",
    "reason",
    "code",
    "enhanced",
    "address",
    "reference",
    "site",
    "mx_host",
    "peer",
    "egress",
    "reply",
    "bytes",
    "type",
    "category",
)
# Columns of a line as it was before volume was recorded, and before failures were qualified.
_BEFORE_BYTES: Final = COLUMNS.index("bytes")
_BEFORE_TYPE: Final = COLUMNS.index("type")

# PostgreSQL's COPY text format: these four would end a value or a row, NUL cannot be stored at all.
_NEEDS_ESCAPE: Final = re.compile(r"[\\\t\n\r\x00\ud800-\udfff]")
_ESCAPES: Final = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\x00": "\\\\x00"}


def escaped(text: str) -> str:
    """``text`` as a COPY text value; what UTF-8 or PostgreSQL cannot hold is shown as an escape."""
    if _NEEDS_ESCAPE.search(text) is None:
        return text
    return _NEEDS_ESCAPE.sub(lambda found: _ESCAPES.get(found[0]) or f"\\\\u{ord(found[0]):04x}", text)


def timestamp(unix_s: float) -> str:
    """A time as the log stores it: ISO 8601 in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


def session_columns(site: str, mx_host: str, peer: str, egress: str) -> str:
    """The columns that are the same for all of a session, from ``site`` to ``egress``, with their tabs."""
    return f"{escaped(site)}\t{escaped(mx_host)}\t{peer}\t{escaped(egress)}\t"


def log_line(
    at: str,
    delivery_id: int,
    number: int,
    part_id: int,
    attempt: int,
    verdict: str,
    address: str,
    reference: str | None,
    session: str,
    reply: str,
    sent_bytes: int = 0,
    judged: str = NOT_JUDGED,
) -> str:
    """One line with its newline.

    ``verdict`` is ``status<TAB>reason<TAB>code<TAB>enhanced``; ``session`` comes from `session_columns`; ``reply``
    is escaped already (a server repeats itself, so callers keep the escaped text). ``sent_bytes`` is the size of the
    message, 0 where no content was written; ``judged`` is ``type<TAB>category`` of a failure (`mta.model.failure`).
    """
    known_as = "\\N" if reference is None else escaped(reference)
    return (
        f"{at}\t{delivery_id}\t{number}\t{part_id}\t{attempt}\t{verdict}\t{escaped(address)}\t{known_as}"
        f"\t{session}{reply}\t{sent_bytes}\t{judged}\n"
    )


def completed(line: bytes) -> bytes:
    """A line of a journal as the log takes it: one written before an upgrade lacks its last columns."""
    columns = line.count(b"\t") + 1
    if columns == _BEFORE_TYPE:
        return line[:-1] + b"\t0\t0\n"
    return line[:-1] + b"\t0\t0\t0\n" if columns == _BEFORE_BYTES else line


def volume_of(line: bytes) -> tuple[int, str, int]:
    """(Unix time of its minute, egress, bytes) of a complete line, for who has nothing but the line."""
    columns = line.decode().rstrip("\n").split("\t")
    at = datetime.fromisoformat(columns[0])
    return int(at.timestamp()) // 60 * 60, columns[COLUMNS.index("egress")], int(columns[_BEFORE_BYTES])
