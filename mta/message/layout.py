"""Text with gaps: static text joined once, gaps filled for each message, cut into segments to be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Final, NamedTuple

# Static text from this size on is a segment of its own, shared between messages. Below, copying it costs less
# than one more buffer to write.
SHARED_OCTETS_MIN: Final = 4096


class Cell(NamedTuple):
    """A gap, and which of the cells handed to ``Layout.fill`` goes there."""

    cell: int


# Text; ASCII octets that stay one object wherever they are used; a gap.
LayoutPart = str | bytes | Cell


class Layout:
    """Parts as they stand in a message, ready to be filled. Immutable.

    Held as static text at even places and gaps at odd ones, cut into segments: a slice of these, or octets.
    """

    def __init__(self, parts: Sequence[LayoutPart]) -> None:
        self._parts: list[str] = []
        self._segments: list[tuple[int, int, bytes | None]] = []
        self._start = 0
        cells: list[int] = []
        run: list[str | bytes] = []
        for part in joined(parts):
            if isinstance(part, Cell):
                self._end_run(run)
                cells.append(part.cell)
                self._parts.append("")
                run = []
            else:
                run.append(part)
        self._end_run(run)
        if self._has_begun():
            self._segments.append((self._start, len(self._parts), None))
        self._order = picker(cells)
        self.is_static = not cells

    def fill(self, cells: Sequence[str]) -> list[bytes]:
        """The segments with ``cells`` in the gaps."""
        parts = self._parts.copy()
        parts[1::2] = self._order(cells)
        return [shared or "".join(parts[start:stop]).encode() for start, stop, shared in self._segments]

    def _end_run(self, run: list[str | bytes]) -> None:
        """Puts in place what stands between two gaps. What is shared ends a segment, and so does what follows it."""
        has_text = bool(run) and isinstance(run[0], str) and len(run[0]) < SHARED_OCTETS_MIN
        self._parts.append(str(run.pop(0)) if has_text else "")
        if not run:
            return
        if self._has_begun():
            self._segments.append((self._start, len(self._parts), None))
        shared = [piece.encode("ascii") if isinstance(piece, str) else piece for piece in run]
        self._segments += [(0, 0, octets) for octets in shared]
        self._start = len(self._parts)

    def _has_begun(self) -> bool:
        return len(self._parts) - self._start > 1 or any(self._parts[self._start :])


def joined(parts: Iterable[LayoutPart]) -> list[LayoutPart]:
    """``parts`` with texts, and octets too few to be shared, made one where they meet; nothing empty."""
    found: list[LayoutPart] = []
    pending: list[str] = []
    for part in parts:
        if isinstance(part, str):
            pending.append(part)
        elif isinstance(part, bytes) and len(part) < SHARED_OCTETS_MIN:
            pending.append(part.decode("ascii"))
        else:
            if text := "".join(pending):
                found.append(text)
            pending = []
            found.append(part)
    return [*found, text] if (text := "".join(pending)) else found


def picker(indices: Sequence[int]) -> Callable[[Sequence[str]], Sequence[str]]:
    """What picks ``indices`` out of a sequence; itemgetter alone gives no sequence for fewer than two."""
    if len(indices) >= 2:
        return itemgetter(*indices)
    if not indices:
        return lambda row: ()
    index = indices[0]
    return lambda row: (row[index],)
