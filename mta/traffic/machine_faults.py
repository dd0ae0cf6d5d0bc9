"""The faults of this machine that are open: told of once when they begin, and once when they are over.

One for each egress and cause. Of children there is one for each cause: they share their machine.
"""

from __future__ import annotations

from typing import Final

from mta.model.machine_fault import FaultCause, MachineFault, RestUnit

# Nobody has met it for so long: nothing is sent that way any more, and nobody knows whether it is over.
FORGOTTEN_S: Final = 3_600.0


class OpenFault:
    """``egress`` empty: of the children, or of the node. ``units``: those in which it was met and is not over."""

    __slots__ = ("cause", "egress", "met", "remedy", "seen_s", "since_s", "units", "what")

    def __init__(self, egress: str, cause: FaultCause, what: str, remedy: str, now_s: float) -> None:
        self.egress = egress
        self.cause = cause
        self.what = what
        self.remedy = remedy
        self.since_s = self.seen_s = now_s
        self.met = 0  # sessions that were not opened, or questions not asked
        self.units: set[str] = set()


class FaultBook:
    """``begun`` and ``over`` are what nobody has told of yet; their reader empties them."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, FaultCause], OpenFault] = {}
        self.begun: list[OpenFault] = []
        self.over: list[OpenFault] = []

    @property
    def has_news(self) -> bool:
        return bool(self.begun or self.over)

    def failed(self, fault: MachineFault, egress: str, unit: str, what: str, remedy: str, now_s: float) -> None:
        """``unit`` has met it; ``what`` and ``remedy`` in words, with its names in them."""
        egress = "" if fault.unit is RestUnit.CHILD else egress
        key = (egress, fault.cause)
        found = self.open.get(key)
        if found is None:
            found = self.open[key] = OpenFault(egress, fault.cause, what, remedy, now_s)
            self.begun.append(found)
        found.seen_s = now_s
        found.met += 1
        found.units.add(unit)

    def worked(self, unit: str) -> None:
        """What was met there is over there."""
        for key, found in list(self.open.items()):
            if unit in found.units:
                found.units.discard(unit)
                if not found.units:
                    del self.open[key]
                    self.over.append(found)

    def forget(self, now_s: float) -> None:
        """Drops what nobody has met for long."""
        for key, found in list(self.open.items()):
            if now_s - found.seen_s > FORGOTTEN_S:
                del self.open[key]
                self.over.append(found)


def said_of(fault: MachineFault, egress: str, source: str | None, peer: str) -> tuple[str, str]:
    """What is wrong and what to do, with the names in them."""
    family = "IPv6" if ":" in peer else "IPv4"
    names = {"source": source or "", "peer": peer, "family": family}
    what = fault.what.format(**names)
    return (what if fault.unit is RestUnit.CHILD else f"egress {egress}: {what}"), fault.remedy.format(**names)
