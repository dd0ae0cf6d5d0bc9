"""The account of a simulation: counters by row of the report, and what happened over time in a bounded memory.

Time is cut into steps; when there are too many, two become one. So a run of a second and one of a month look alike,
whatever their length.
"""

from __future__ import annotations

from typing import Final

from mta.simulation.bottleneck import Cause

STEPS_MAX: Final = 1_024
FIRST_STEP_S: Final = 0.25


class Row:
    """One line of the report: a provider."""

    __slots__ = (
        "ahead",
        "causes",
        "deferred",
        "delivered",
        "done_s",
        "expired",
        "failed",
        "first_done_s",
        "first_left",
        "left",
        "name",
        "queue",
        "queue_most",
        "recipients",
        "refused",
        "sent",
        "sites",
        "steps",
    )

    def __init__(self, name: str, sites: int) -> None:
        self.name = name
        self.sites = sites
        self.recipients = 0
        self.left = 0  # without a final outcome
        self.ahead = 0  # of them, those that are not appended yet
        self.first_left = 0  # never attempted
        self.delivered = 0
        self.failed = 0
        self.deferred = 0  # attempts
        self.expired = 0
        self.refused = 0  # attempts that met a limit or a block of the provider
        self.sent = 0  # attempts of the step under way
        self.done_s = 0.0  # when the last of them had its outcome
        self.first_done_s = 0.0  # when the last of them was attempted for the first time
        self.queue_most = 0
        self.steps: list[int] = []  # attempts by step
        self.queue: list[int] = []  # at the end of each step
        self.causes: dict[Cause, float] = {}  # what held it back, for how many seconds

    @property
    def attempts(self) -> int:
        return sum(self.steps) + self.sent

    @property
    def waiting(self) -> int:
        """Appended, and without a final outcome.

        Whose recipients a piece of a delivery has is drawn only when it is claimed, and ``ahead`` counts on its fair
        part: a few may be done before they count as appended.
        """
        return max(0, self.left - self.ahead)

    def halve(self) -> None:
        self.steps = [a + b for a, b in zip(self.steps[::2], self.steps[1::2], strict=True)]
        self.queue = self.queue[1::2]


class Tally:
    """All rows, with one clock."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.step_s = FIRST_STEP_S
        self.steps = 0

    def add_row(self, name: str, sites: int) -> Row:
        row = Row(name, sites)
        self.rows.append(row)
        return row

    @property
    def next_s(self) -> float:
        """When the step under way ends."""
        return (self.steps + 1) * self.step_s

    def end_step(self, causes: list[Cause | None]) -> None:
        """``causes``: what holds each row back now; None: nothing waits there."""
        for row, cause in zip(self.rows, causes, strict=True):
            row.steps.append(row.sent)
            row.sent = 0
            waiting = row.waiting
            row.queue.append(waiting)
            row.queue_most = max(row.queue_most, waiting)
            if cause is not None:
                row.causes[cause] = row.causes.get(cause, 0.0) + self.step_s
        self.steps += 1
        if self.steps >= STEPS_MAX:
            for row in self.rows:
                row.halve()
            self.steps //= 2
            self.step_s *= 2
