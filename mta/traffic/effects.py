"""What is in force besides the rules: suspensions, lowered limits, and whatever else an event has brought about.

An effect is the part of a traffic event (`mta.traffic.automation`, or an operator) that decides. All nodes of a
database hold the same set, and each hands it to its schedule as a whole whenever it changes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from mta.traffic.limits import Limits


class Target(enum.StrEnum):
    """Whom an effect concerns; how ``Effect.on`` is written stands behind it."""

    PATH = "path"  # one egress and one peer address: "3|192.0.2.7"
    RULE = "rule"  # what a rule counts together: the key of its limit, "google|3"
    PROVIDER = "provider"  # what a provider counts together: the key of its limit, "provider:microsoft|3"
    EGRESS = "egress"  # an egress as a whole: its name
    SITE = "site"  # a site through any egress: its key
    DOMAIN = "domain"  # a recipient domain
    TENANT = "tenant"  # all deliveries of a sender domain
    DELIVERY = "delivery"  # its id
    ADDRESS = "address"  # a recipient, in lower case (CANCEL only)


class EffectKind(enum.StrEnum):
    """What happens."""

    SUSPEND = "suspend"  # nothing new is begun; what is under way is finished
    LOWER = "lower"  # ``limits`` hold besides the rule's: of each, the smaller
    BACKOFF = "backoff"  # the rule's twin set of limits holds instead of its own
    NO_TLS = "no-tls"  # no STARTTLS where the rule leaves it open (PATH only)
    POOL = "pool"  # what is sent to a SITE leaves from pool ``pool``
    CANCEL = "cancel"  # recipients that wait (DOMAIN, ADDRESS) end as cancelled; ``detail`` is what their log says


class Effect(msgspec.Struct, frozen=True):
    """One of them. ``key`` is its identity for as long as it is in force: who caused it and whom it concerns."""

    key: str
    name: str  # of the automation, or as an operator called it
    kind: EffectKind
    target: Target
    on: str
    until_unix_s: float  # inf: until it is cancelled
    limits: Limits = Limits()
    pool: str = ""
    detail: str = ""  # the reply that brought it about, or an operator's words

    @property
    def said(self) -> str:
        """Its name, and why where that was said."""
        return f"{self.name}: {self.detail}" if self.detail else self.name


def spread(
    effects: Iterable[Effect], counted: Callable[[], Iterable[str]], egress_ids: Collection[int]
) -> Iterator[Effect]:
    """All of them; one on a rule or a provider by its name alone for everything that is counted for it as well.

    ``counted`` tells the keys of limits and is asked only where it matters; ``egress_ids``: of all egresses here.
    """
    keys: list[str] | None = None
    for effect in effects:
        yield effect
        if effect.target in (Target.RULE, Target.PROVIDER) and "|" not in effect.on:
            if keys is None:
                keys = list(counted())
            known = {key for key in keys if key.startswith(f"{effect.on}|")}
            known.update(f"{effect.on}|{egress_id}" for egress_id in egress_ids)
            for on in sorted(known):
                yield msgspec.structs.replace(effect, on=on)


def effect_key(name: str, target: Target, on: str) -> str:
    """The identity of an effect in force."""
    return f"{name} {target} {on}"


def longest_suspension(effects: Iterable[Effect]) -> Effect | None:
    """What suspends for the longest time, if anything does."""
    suspensions = (effect for effect in effects if effect.kind is EffectKind.SUSPEND)
    return max(suspensions, key=_until, default=None)


def _until(effect: Effect) -> float:
    return effect.until_unix_s
