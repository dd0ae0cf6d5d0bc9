"""Which egress of a pool carries the next batch (campaign-mta §3.2; §12 row 22)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Final

from mta.model.egress import Egress, EgressPool
from mta.model.masks import canonical_name, compile_masks

_CACHED_DOMAINS_MAX = 50_000  # not Final: what is compiled would not see what a test sets
# 2**64 divided by the golden ratio, odd: the most even of all additive sequences (Knuth, TAOCP 3, §6.4).
_GOLDEN_STEP: Final = 0x9E3779B97F4A7C15
_WORD: Final = 2**64


class EgressChooser:
    """Chooses egresses of one pool in proportion to their weights, evenly and without dice.

    Each choice takes the next point of the golden-ratio sequence in [0, 1) and looks on whose stretch
    of the weights it lies. The usual smooth round robin is as even over all choices, but marches in step
    with its callers: two sites that take turns would each get one of two egresses for ever. Every
    regular subsequence of this one is spread evenly too, so the weights also hold for each site.
    """

    __slots__ = ("_eligible", "_masks", "_only", "_point", "pool")

    def __init__(self, pool: EgressPool) -> None:
        self.pool = pool
        self._point = 0
        self._eligible: dict[str, tuple[Egress, ...]] = {}
        self._only: dict[str, EgressChooser] = {}
        self._masks: list[tuple[Egress, re.Pattern[str], re.Pattern[str]]] = [
            (egress, compile_masks(egress.include_domains or ("*",)), compile_masks(egress.exclude_domains))
            for egress in pool.egresses
        ]

    def eligible(self, domain: str) -> tuple[Egress, ...]:
        """The egresses that may carry mail for a recipient domain: included, then not excluded. Cached."""
        found = self._eligible.get(domain)
        if found is None:
            name = canonical_name(domain)
            found = tuple(
                egress
                for egress, includes, excludes in self._masks
                if includes.fullmatch(name) and not excludes.fullmatch(name)
            )
            if len(self._eligible) >= _CACHED_DOMAINS_MAX:
                self._eligible.clear()
            self._eligible[domain] = found
        return found

    def only(self, name: str) -> EgressChooser:
        """One that chooses this egress of the pool and no other; itself, where the pool has none of that name."""
        found = self._only.get(name)
        if found is None:
            egresses = tuple(egress for egress in self.pool.egresses if egress.name == name)
            if not egresses or len(self.pool.egresses) == 1:
                return self
            found = self._only[name] = EgressChooser(EgressPool(self.pool.name, egresses))
        return found

    def choose(self, domain: str, blocked: Sequence[Egress] = ()) -> Egress | None:
        """The egress for the next batch; None when none is eligible but those that are ``blocked``.

        Where some are left out, the others take over in proportion to their weights.
        """
        egresses = self.eligible(domain)
        if blocked:
            egresses = tuple([egress for egress in egresses if egress not in blocked])
        if len(egresses) <= 1:
            return egresses[0] if egresses else None
        self._point = (self._point + _GOLDEN_STEP) % _WORD
        mark = self._point * sum([egress.weight for egress in egresses]) // _WORD
        for egress in egresses:
            mark -= egress.weight
            if mark < 0:
                return egress
        raise AssertionError("a mark below the sum of weights lies on one of them")


@functools.lru_cache(maxsize=256)
def _chooser(pool: EgressPool) -> EgressChooser:
    return EgressChooser(pool)


def eligible(pool: EgressPool, domain: str) -> tuple[Egress, ...]:
    """As ``EgressChooser.eligible``, for who keeps no chooser."""
    return _chooser(pool).eligible(domain)
