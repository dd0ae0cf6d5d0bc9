"""Which automations a reply is meant by: all patterns of a rule at once, in time linear in the reply (RE2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from mta.failure.automaton import Automaton, begins, pattern_fault
from mta.model.errors import BadInput
from mta.smtp.envelope import Stage

_SETS_KEPT: Final = 16  # of those that were used last
_KEPT: Final = 2_000  # servers say the same few sentences
REFUSAL_MIN: Final = 400


class Wanted(NamedTuple):
    """One kind of reply: all that is given must fit. See `mta.traffic.automations.ReplyMatch`."""

    codes: tuple[str, ...]
    enhanced: tuple[str, ...]
    pattern: str
    stages: tuple[str, ...]


class ReplyPatterns:
    """Finds the numbers (places in the list) of the kinds that a reply is of. Memory is bounded.

    Automatons are made when they are first needed, one for each rule whose replies are looked at: so nothing waits for
    the patterns of five hundred rules when rules are reloaded.
    """

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        """Raises BadInput for a pattern that RE2 does not take."""
        self._wanted = tuple(wanted)
        self._all = tuple(range(len(self._wanted)))
        self._automatons: OrderedDict[tuple[int, ...], Automaton] = OrderedDict()
        self._kept: dict[tuple[tuple[int, ...], int, str, str, Stage], tuple[int, ...]] = {}
        for one in self._wanted:
            if fault := pattern_fault(one.pattern):
                raise BadInput(f"pattern {one.pattern!a}", f"cannot be used: {fault}")

    def __len__(self) -> int:
        return len(self._wanted)

    def match(
        self, code: int, enhanced: str, text: str, stage: Stage, among: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """Of the kinds ``among`` (None: all), in their order, those that the reply is of.

        ``code`` 0: there was no reply; ``text`` then says what happened. A reply that is no refusal fits nothing.
        """
        numbers = self._all if among is None else among
        if 0 < code < REFUSAL_MIN or not numbers:
            return ()
        key = (numbers, code, enhanced, text, stage)
        found = self._kept.get(key)
        if found is None:
            found = self._match(code, enhanced, text, stage.name.lower(), numbers)
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[key] = found
        return found

    def _match(self, code: int, enhanced: str, text: str, stage: str, numbers: tuple[int, ...]) -> tuple[int, ...]:
        fitting = [number for number in numbers if _fits(self._wanted[number], str(code), enhanced, stage)]
        said: set[int] = set()
        if any(self._wanted[number].pattern for number in fitting):
            said = self._automaton(numbers).match(text)
        return tuple(number for number in fitting if not self._wanted[number].pattern or number in said)

    def _automaton(self, numbers: tuple[int, ...]) -> Automaton:
        found = self._automatons.get(numbers)
        if found is None:
            patterns = [(number, self._wanted[number].pattern) for number in numbers]
            found = self._automatons[numbers] = Automaton([one for one in patterns if one[1]])
            if len(self._automatons) > _SETS_KEPT:
                self._automatons.popitem(last=False)
        self._automatons.move_to_end(numbers)
        return found


def _fits(one: Wanted, code: str, enhanced: str, stage: str) -> bool:
    """All but the text."""
    return (
        (not one.codes or code.startswith(one.codes))
        and (not one.enhanced or begins(enhanced, one.enhanced))
        and (not one.stages or stage in one.stages)
    )
