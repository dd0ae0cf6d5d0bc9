"""A line in which somebody waits: first come, first served, and whoever is in it may leave it from anywhere.

Places are linked to each other, so joining and leaving touch two neighbours and look nothing up. An ordered dictionary
does the same, at three times the cost where this is compiled, and it is done several times for each batch.
"""

from __future__ import annotations

from typing import Generic, TypeVar, cast


class Place:
    """Somebody's place. It is in one line at a time, or in none; `Line` links it."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: Place | None = None
        self.after: Place | None = None


PlaceT = TypeVar("PlaceT", bound=Place)


class Line(Generic[PlaceT]):
    """``first`` has waited longest."""

    __slots__ = ("count", "first", "last")

    def __init__(self) -> None:
        self.first: PlaceT | None = None
        self.last: PlaceT | None = None
        self.count = 0

    def join(self, place: PlaceT) -> None:
        """At the end. The place is in no line."""
        last = self.last
        place.before = last
        if last is None:
            self.first = place
        else:
            last.after = place
        self.last = place
        self.count += 1

    def leave(self, place: PlaceT) -> None:
        """The place is in this line."""
        before, after = place.before, place.after
        if before is None:
            self.first = cast("PlaceT | None", after)
        else:
            before.after = after
        if after is None:
            self.last = cast("PlaceT | None", before)
        else:
            after.before = before
        place.before = place.after = None
        self.count -= 1
