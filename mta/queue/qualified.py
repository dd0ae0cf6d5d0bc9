"""What operators said of single texts of failures; it goes before all rules, on all nodes."""

from __future__ import annotations

from typing import Final, NamedTuple

from mta.model.failure import Category, FailureType
from mta.model.outcome import Reason
from mta.queue.connection import Conn

CHANNEL: Final = "mta_failures"  # NOTIFY: something was qualified
_QUALIFIED: Final = (
    "SELECT digest, type, reason, category FROM mta.failure_text WHERE qualified_by <> '' ORDER BY digest"
)


class Qualified(NamedTuple):
    """``key``: `mta.failure.normalise.text_key`."""

    key: bytes
    type: FailureType
    reason: Reason
    category: Category


async def qualified_texts(conn: Conn) -> list[Qualified]:
    """All of them; an operator makes tens, not thousands."""
    return [
        Qualified(row[0], FailureType(row[1]), Reason(row[2]), Category(row[3])) for row in await conn.fetch(_QUALIFIED)
    ]
