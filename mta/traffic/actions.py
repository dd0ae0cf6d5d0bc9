"""What the schedule tells its owner to do, and the bounds that the owner sets.

Actions are made for every batch: they are classes of their own, as a tuple with names costs several times as much to
make and to read where this is compiled.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from mta.traffic.lanes import Lane
from mta.traffic.ready import Stream, Taken
from mta.traffic.sessions import Session

PartT = TypeVar("PartT")


class OpenSession:
    """Tell the child to open this session."""

    __slots__ = ("session",)

    def __init__(self, session: Session) -> None:
        self.session = session


class HandOut(Generic[PartT]):
    """Give the session these recipients, all of one stream."""

    __slots__ = ("amount", "lane", "session", "stream", "taken")

    def __init__(self, session: Session, lane: Lane[PartT], stream: Stream, taken: Taken[PartT], amount: int) -> None:
        self.session = session
        self.lane = lane
        self.stream = stream
        self.taken = taken
        self.amount = amount


class CloseSession:
    """Tell the child to end this session when it has sent what it has; ``gives_back``: or only what it has begun."""

    __slots__ = ("gives_back", "session")

    def __init__(self, session: Session, gives_back: bool = False) -> None:
        self.session = session
        self.gives_back = gives_back


class GiveBack(Generic[PartT]):
    """These recipients leave the memory. ``is_attempt``: their site failed, they are deferred by the retry
    schedule; else they are surplus, due again in ``due_in_s``."""

    __slots__ = ("cause", "due_in_s", "is_attempt", "lane", "part", "positions", "stream")

    def __init__(
        self,
        lane: Lane[PartT],
        stream: Stream,
        part: PartT,
        positions: list[int],
        due_in_s: float,
        is_attempt: bool,
        cause: str,
    ) -> None:
        self.lane = lane
        self.stream = stream
        self.part = part
        self.positions = positions
        self.due_in_s = due_in_s
        self.is_attempt = is_attempt
        self.cause = cause


Action = OpenSession | HandOut[PartT] | CloseSession | GiveBack[PartT]
SessionAction = OpenSession | CloseSession


class Bounds(NamedTuple):
    """Bounds of the schedule itself, from the settings."""

    batch_recipients: int = 50
    sessions_per_child_max: int = 1000
    ready_per_lane_max: int = 5_000
    ready_max: int = 100_000
    # All paths of a lane have failed for so long: its recipients are deferred. A dead site must not fill the
    # memory, and its retries belong to the delivery's schedule.
    patience_s: float = 30.0
    # campaign-mta §1, maxAgeSec: what could not go for so long returns to the queue.
    message_age_s: float = 600.0
    # Of a site that takes no message, so many addresses are tried in one attempt, and so many whose sessions open
    # but end before they take one (see `mta.traffic.reach`).
    addresses_per_attempt_max: int = 5
    sessions_per_attempt_max: int = 2
