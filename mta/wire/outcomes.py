"""Outcomes one by one, put together by batch and part as reports carry them."""

from __future__ import annotations

from typing import Final

from mta.failure.triage import Decision
from mta.model.errors import LocalFault
from mta.model.outcome import Status
from mta.wire.frames import Outcome

# Local names: an enum member looked up on its class costs more than the comparison it is for.
_DELIVERED: Final = Status.DELIVERED
_FAILED: Final = Status.FAILED
_DEFERRED: Final = Status.DEFERRED
_IN_DOUBT: Final = Status.IN_DOUBT
_SIMULATED: Final = Status.SIMULATED


class OutcomeList:
    """What came of recipients since a report was sent."""

    __slots__ = ("_by_part", "count")

    def __init__(self) -> None:
        self._by_part: dict[tuple[int, int], Outcome] = {}
        self.count = 0

    def add(
        self,
        batch: int,
        part_id: int,
        position: int,
        status: Status | None,
        limit: str,
        sent_bytes: int = 0,
        size_bytes: int = 0,
        decision: Decision | None = None,
    ) -> None:
        """``status`` None: it was never begun. ``sent_bytes``: what was written of a message of ``size_bytes``.

        ``decision``: of a failure, for what the master must know of it besides.
        """
        key = (batch, part_id)
        outcome = self._by_part.get(key)
        if outcome is None:
            outcome = self._by_part[key] = Outcome(batch, part_id, limit)
        if sent_bytes:
            outcome.size_bytes += sent_bytes
        if size_bytes > outcome.largest_bytes:
            outcome.largest_bytes = size_bytes
        if status is _DELIVERED:
            outcome.delivered.append(position)
            outcome.delivered_bytes += sent_bytes
        elif status is None:
            outcome.returned.append(position)
        elif status is _FAILED:
            outcome.failed.append(position)
            if decision is not None and decision.is_excused:
                outcome.excused.append(position)
        elif status is _DEFERRED:
            outcome.deferred.append(position)
            if decision is not None:
                _add_deferral(outcome, position, decision)
        elif status is _SIMULATED:
            outcome.simulated.append(position)
        elif status is _IN_DOUBT:
            outcome.in_doubt.append(position)
        else:
            raise LocalFault(f"{status!r} is no outcome of a session")
        self.count += 1

    def outcomes(self) -> list[Outcome]:
        return list(self._by_part.values())


def _add_deferral(outcome: Outcome, position: int, decision: Decision) -> None:
    if decision.is_greylisted:
        outcome.greylisted.append(position)
    if decision.is_put_off:
        outcome.put_off.append(position)
    if decision.is_excused:
        outcome.excused.append(position)
