"""Which egress of a pool carries the next batch (campaign-mta §3.2; §12 row 22)."""

from __future__ import annotations

import functools
import re
from typing import Final

from mta.model.egress import Egress, EgressPool
from mta.model.masks import canonical_name, compile_masks

_CACHED_DOMAINS_MAX = 50_000  # not Final: what is compiled would not see what a test sets
# One divided by the golden ratio: the most even of all additive sequences (Knuth, TAOCP 3, §6.4).
_GOLDEN_STEP: Final = 0.6180339887498949


def is_among(egress: Egress, others: list[Egress]) -> bool:
    """As ``in``, for egresses of one pool, which are told apart by what they are and not by what they say."""
    return any(other is egress for other in others)


class _Eligible:
    """Egresses that may carry mail for some domains, with their names in one text and their weights beside them."""

    __slots__ = ("egresses", "names", "weights", "whole")

    def __init__(self, egresses: tuple[Egress, ...]) -> None:
        self.egresses = egresses
        self.names = "\n".join([egress.name for egress in egresses])
        self.weights = [egress.weight for egress in egresses]
        self.whole = sum(self.weights)


class EgressChooser:
    """Chooses egresses of one pool in proportion to their weights, evenly and without dice.

    Each choice takes the next point of the golden-ratio sequence in [0, 1) and looks on whose stretch
    of the weights it lies. The usual smooth round robin is as even over all choices, but marches in step
    with its callers: two sites that take turns would each get one of two egresses for ever. Every
    regular subsequence of this one is spread evenly too, so the weights also hold for each site.
    """

    __slots__ = ("_eligible", "_kinds", "_masks", "_only", "_point", "pool", "whole")

    def __init__(self, pool: EgressPool) -> None:
        self.pool = pool
        self.whole: EgressChooser | None = None  # of the pool that this is one egress of
        self._point = 0.0
        self._eligible: dict[str, _Eligible] = {}
        self._kinds: dict[tuple[Egress, ...], _Eligible] = {}  # most domains may use the same
        self._only: dict[str, EgressChooser] = {}
        self._masks: list[tuple[Egress, re.Pattern[str], re.Pattern[str]]] = [
            (egress, compile_masks(egress.include_domains or ("*",)), compile_masks(egress.exclude_domains))
            for egress in pool.egresses
        ]

    def eligible(self, domain: str) -> tuple[Egress, ...]:
        """The egresses that may carry mail for a recipient domain: included, then not excluded. Cached."""
        return self._eligible_for(domain).egresses

    def eligible_names(self, domain: str) -> str:
        """The names of `eligible`, a line each: as a key it is cheaper than they are."""
        return self._eligible_for(domain).names

    def _eligible_for(self, domain: str) -> _Eligible:
        found = self._eligible.get(domain)
        if found is None:
            name = canonical_name(domain)
            egresses = tuple(
                egress
                for egress, includes, excludes in self._masks
                if includes.fullmatch(name) and not excludes.fullmatch(name)
            )
            found = self._kinds.get(egresses)
            if found is None:
                found = self._kinds[egresses] = _Eligible(egresses)
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
            found.whole = self
        return found

    def choose(self, domain: str, blocked: list[Egress] | None = None) -> Egress | None:
        """The egress for the next batch; None when none is eligible but those that are ``blocked``.

        Where some are left out, the others take over in proportion to their weights.
        """
        given = self._eligible_for(domain)
        egresses, weights, whole = given.egresses, given.weights, given.whole
        if blocked:
            free = [at for at, egress in enumerate(egresses) if not is_among(egress, blocked)]
            egresses, weights = tuple([egresses[at] for at in free]), [weights[at] for at in free]
            whole = sum(weights)
        if len(egresses) <= 1:
            return egresses[0] if egresses else None
        self._point += _GOLDEN_STEP
        if self._point >= 1.0:
            self._point -= 1.0
        mark = self._point * whole
        for at, weight in enumerate(weights):
            mark -= weight
            if mark < 0.0:
                return egresses[at]
        return egresses[-1]  # a mark just below the sum of weights, rounded up


@functools.lru_cache(maxsize=256)
def _chooser(pool: EgressPool) -> EgressChooser:
    return EgressChooser(pool)


def eligible(pool: EgressPool, domain: str) -> tuple[Egress, ...]:
    """As ``EgressChooser.eligible``, for who keeps no chooser."""
    return _chooser(pool).eligible(domain)
