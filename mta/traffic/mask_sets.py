"""What masks fit together: does a set of masks leave any name over that another mask fits?

Masks are small automata; the question is one of inclusion of regular languages, answered by a search for a name that
the one fits and the others do not. It is exact within a bound of work, beyond which nothing is claimed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from mta.model.masks import canonical, compile_masks
from mta.model.masks import covers as is_wider

WORK_MAX: Final = 100_000  # places of masks that are looked at in one search
# A character that no mask names. It comes first: what no mask covers is found by it soonest.
_OTHER: Final = "\0"
_Place: TypeAlias = tuple[int, int]  # number of the mask, position in it
_Places: TypeAlias = frozenset[_Place]


class _Masks:
    """Masks as one automaton whose states are sets of places."""

    def __init__(self, masks: Iterable[str]) -> None:
        self._masks = [canonical(mask) for mask in masks]
        self.letters = {char for mask in self._masks for char in mask if char not in "*?"}

    def start(self) -> _Places:
        return frozenset(place for number in range(len(self._masks)) for place in self._reached(number, 0))

    def _reached(self, number: int, at: int) -> list[_Place]:
        """A star may also stand for nothing; stars never follow one another."""
        mask = self._masks[number]
        return [(number, at), (number, at + 1)] if mask[at : at + 1] == "*" else [(number, at)]

    def step(self, places: _Places, char: str) -> _Places:
        found: set[_Place] = set()
        for number, at in places:
            wanted = self._masks[number][at : at + 1]
            if wanted == "*":
                found.add((number, at))
                found.add((number, at + 1))
            elif wanted in ("?", char):
                found.update(self._reached(number, at + 1))
        return frozenset(found)

    def accepts(self, places: _Places) -> bool:
        return any(at == len(self._masks[number]) for number, at in places)

    def accepts_all(self, places: _Places) -> bool:
        """Whatever follows fits."""
        return any(self._masks[number][at:] == "*" for number, at in places)


def uncovered_name(mask: str, covers: Sequence[str], *, are_names: bool = True) -> str | None:
    """A name that ``mask`` fits and none of ``covers`` does; None when there is none.

    A NUL in it stands for any character that no mask holds. ``are_names``: only names without empty labels count, as
    there are no others. When the bound of work is reached the answer is "?": there may be one, or not.
    """
    narrow, wide = _Masks([mask]), _Masks(covers)
    alphabet = [_OTHER, *sorted(narrow.letters | wide.letters | {"."})]
    start = (narrow.start(), wide.start(), False)
    seen = {start}
    waiting = [("", *start)]
    work = 0
    for name, inside, outside, in_label in waiting:  # grows: breadth first, so the shortest name is found
        if (in_label or not are_names) and narrow.accepts(inside) and not wide.accepts(outside):
            return name
        for char in alphabet:
            if are_names and char == "." and not in_label:
                continue
            work += len(inside) + len(outside)
            if work > WORK_MAX:
                return "?"
            state = (narrow.step(inside, char), wide.step(outside, char), char != ".")
            if state not in seen and state[0] and not wide.accepts_all(state[1]):
                seen.add(state)
                waiting.append((name + char, *state))
    return None


def is_covered(mask: str, covers: Sequence[str], *, are_names: bool = True) -> bool:
    """True when it is certain that every name that ``mask`` fits is fitted by one of ``covers``."""
    sample = canonical(mask).replace("*", _OTHER).replace("?", _OTHER)
    is_name = not are_names or all(sample.split("."))
    if is_name and not any(_compiled(one).fullmatch(sample) for one in covers):
        return False
    if any(is_wider(_compiled(one), mask) for one in covers):
        return True
    return uncovered_name(mask, covers, are_names=are_names) is None


@functools.lru_cache(maxsize=10_000)
def _compiled(mask: str) -> re.Pattern[str]:
    return compile_masks([mask])


def can_fit(mask: str) -> bool:
    """False when no host or domain name could ever fit."""
    return uncovered_name(mask, ()) is not None
