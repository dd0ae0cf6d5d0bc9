"""An egress in one address family: what rests when this machine cannot connect from there."""

from __future__ import annotations

import math
from typing import Final

from mta.model.egress import Egress
from mta.traffic.backoff import PathBackoff
from mta.traffic.gates import Gate

# A trial asks this machine only, so it may come often: whoever has put an address back does not wait for long.
REST_S_MAX: Final = 60.0
# Who was connected so lately can connect: a fault that may be one peer's is that peer's.
PROVEN_S: Final = 60.0


class Source(Gate):
    """One egress in one address family. While it fails, one session at a time tries it; the others follow."""

    __slots__ = ("backoff", "egress", "failed_s", "fault", "is_ipv6", "proven_s", "trials")

    def __init__(self, egress: Egress, is_ipv6: bool) -> None:
        super().__init__()
        self.egress = egress
        self.is_ipv6 = is_ipv6
        self.backoff = PathBackoff()
        self.fault = ""  # what is wrong, and what to do
        self.failed_s = -math.inf  # when it failed last
        self.proven_s = -math.inf  # when a peer was last heard through it
        self.trials = 0  # sessions that try it after a failure

    @property
    def address(self) -> str | None:
        """None: the kernel chooses."""
        return self.egress.source_ipv6 if self.is_ipv6 else self.egress.source_ipv4

    @property
    def family(self) -> str:
        return "IPv6" if self.is_ipv6 else "IPv4"

    @property
    def unit(self) -> str:
        """As the book of faults names it."""
        return f"{self.egress.name} {self.family}"

    def is_failing(self, now_s: float) -> bool:
        """True when its next session is a trial."""
        return self.backoff.failures(now_s) > 0

    def is_open(self, now_s: float) -> bool:
        return not self.trials and self.backoff.is_available(now_s)

    def is_proven(self, now_s: float) -> bool:
        return now_s - self.proven_s < PROVEN_S

    def failed(self, fault: str, now_s: float) -> float:
        """This machine could not connect; until when nobody tries."""
        self.fault = fault
        self.failed_s = now_s
        return self.backoff.failed(now_s, REST_S_MAX)

    def worked(self, ordered_s: float, now_s: float) -> bool:
        """A session that was ordered then has reached its peer. True when that ends a rest."""
        self.proven_s = now_s
        if not self.fault or ordered_s < self.failed_s:  # it may have been connected before
            return False
        self._recover()
        return True

    def recovered(self, now_s: float) -> bool:
        """True when a rest ends as it was heard through since the failure, by sessions that were ordered before."""
        if not self.fault or self.proven_s <= self.failed_s or now_s < self.backoff.until_s:
            return False
        self._recover()
        return True

    def _recover(self) -> None:
        self.fault = ""
        self.backoff.succeeded()
