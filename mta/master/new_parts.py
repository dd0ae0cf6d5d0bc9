"""Parts for the recipients that come back: deferred ones, surplus, and what goes again after a doubt."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from mta.queue.settle import NewPart, Row

SITE_PART_MIN: Final = 8  # recipients of one site in a flush that make a part of their own
NEW_PART_RECIPIENTS_MAX: Final = 2_000  # what a node takes into memory at once when it comes back


class Later(NamedTuple):
    """What recipients must share to come back in one part."""

    delivery_id: int
    fields: tuple[str, ...]
    attempt: int
    held: bool
    appended_at: datetime
    due_in_s: int
    site: str
    egress: str = ""  # that they are to leave from
    in_doubt: bool = False
    dated_unix_s: int = 0  # of their first hand-out; 0: there was none yet


def new_parts(later: dict[Later, tuple[list[int], list[Row]]]) -> list[NewPart]:
    """One a site where there are enough, the rest of a kind together."""
    merged: dict[Later, tuple[list[int], list[Row]]] = {}
    for key, (numbers, rows) in later.items():
        own = key if len(rows) >= SITE_PART_MIN else key._replace(site="")
        into = merged.setdefault(own, ([], []))
        into[0].extend(numbers)
        into[1].extend(rows)
    parts = []
    for key, (numbers, rows) in merged.items():
        for start in range(0, len(rows), NEW_PART_RECIPIENTS_MAX):
            end = start + NEW_PART_RECIPIENTS_MAX
            parts.append(
                NewPart(
                    key.delivery_id,
                    key.site or None,
                    key.attempt,
                    key.held,
                    key.appended_at,
                    key.fields,
                    numbers[start:end],
                    rows[start:end],
                    float(key.due_in_s),
                    key.egress or None,
                    key.in_doubt,
                    key.dated_unix_s,
                )
            )
    return parts
