"""Many patterns looked for at once, in time linear in the text (RE2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import re2

from mta.model.errors import BadInput

# Of one automaton. What does not fit is built anew while it matches: slower, never wrong.
MEMORY_BYTES: Final = 4 << 20


class Automaton:
    """Some numbered patterns as one, or as few: one that would need more memory than it may have is cut in two."""

    def __init__(self, numbered: Sequence[tuple[int, str]], memory_bytes: int = MEMORY_BYTES) -> None:
        """Raises BadInput for a pattern that RE2 does not take, or not in this memory."""
        self._memory_bytes = memory_bytes
        self._sets: list[tuple[re2.Set, list[int]]] = []  # with the numbers in the list, by those in the set
        if numbered:
            self._add(numbered)

    def _add(self, numbered: Sequence[tuple[int, str]]) -> None:
        found = re2.Set.SearchSet(options(self._memory_bytes))
        for _, pattern in numbered:
            try:
                found.Add(pattern)
            except re2.error:
                raise BadInput(f"pattern {pattern!a}", f"cannot be used: {pattern_fault(pattern)}") from None
        try:
            found.Compile()
        except re2.error:
            if len(numbered) == 1:
                raise BadInput(f"pattern {numbered[0][1]!a}", "is too large") from None
            half = len(numbered) // 2
            self._add(numbered[:half])
            self._add(numbered[half:])
        else:
            self._sets.append((found, [number for number, _ in numbered]))

    def match(self, text: str) -> set[int]:
        """The numbers of the patterns that are found in it."""
        if len(self._sets) == 1:
            found, numbers = self._sets[0]
            places = found.Match(text)
            return {numbers[place] for place in places} if places else set()
        return {numbers[place] for found, numbers in self._sets for place in found.Match(text) or ()}


def options(memory_bytes: int = MEMORY_BYTES) -> re2.Options:
    """Without regard to case, and silent."""
    made = re2.Options()
    made.case_sensitive = False
    made.log_errors = False
    made.max_mem = memory_bytes
    return made


def pattern_fault(pattern: str) -> str | None:
    """Why RE2 does not take a pattern, or None."""
    try:
        re2.compile(pattern, options())
    except re2.error as error:
        said = error.args[0]
        return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return None


def begins(enhanced: str, wanted: Sequence[str]) -> bool:
    """True when an enhanced code begins with one of these: ``4.7`` is how ``4.7.28`` begins, not ``4.70.1``."""
    return any(enhanced == one or enhanced.startswith(one + ".") for one in wanted)
