"""What traffic events hold back before the schedule sees it: recipient domains, tenants, deliveries; and other pools.

Also which recipients an operator takes out of the queue (`EffectKind.CANCEL`).

Paths, limits, egresses and sites are the schedule's own (`mta.traffic.schedule.Schedule.set_effects`). What is here is
asked where work is taken in, so that nothing of it waits in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from mta.model.address import domain_of
from mta.model.site import Site
from mta.traffic.effects import Effect, EffectKind, Target
from mta.traffic.egress import EgressChooser
from mta.traffic.rules import RuleSet

KeyT = TypeVar("KeyT")
_HELD: Final = (Target.DOMAIN, Target.TENANT, Target.DELIVERY)


class Changes(NamedTuple):
    """What is otherwise than before."""

    domains: frozenset[str]  # held back from now on
    released: frozenset[str]  # domains that are held back no more
    sites: frozenset[str]  # that leave from another pool
    has_deliveries: bool  # deliveries or tenants: held back, or no more
    cancelled: frozenset[str]  # domains of which all or some recipients are taken out of the queue, from now on


class Holds:
    """Owned by whoever takes work in; asked for each domain of each part, so it costs a look-up at most."""

    def __init__(
        self, choosers: Mapping[str, EgressChooser], on_unknown_pool: Callable[[str], None] | None = None
    ) -> None:
        """``choosers``: one for each pool that there is here, by name. ``on_unknown_pool`` hears once of any other that
        is asked for."""
        self._choosers = choosers
        self._on_unknown_pool = on_unknown_pool
        self._held: dict[tuple[Target, str], Effect] = {}
        self._cancelled: dict[str, Effect] = {}  # by domain, or by address
        self._pools: dict[str, Effect] = {}  # site -> the event that names its pool
        self._rules = RuleSet()
        self._has_rule_pools = False
        self._unknown: set[str] = set()  # pools that were told of

    # --- what is in force ---------------------------------------------------------------------

    def set_rules(self, rules: RuleSet) -> None:
        """For the pools that rules name. What is in memory leaves from where it was to leave from."""
        self._rules = rules
        self._has_rule_pools = any(rule.pool for rule in rules.rules)

    def set_effects(self, effects: Iterable[Effect]) -> Changes:
        """All that is in force, from now on."""
        held, pools, cancelled = self._held, self._pools, self._cancelled
        self._held, self._pools, self._cancelled = {}, {}, {}
        for effect in effects:
            if effect.kind is EffectKind.SUSPEND and effect.target in _HELD:
                _keep_longest(self._held, (effect.target, effect.on), effect)
            elif effect.kind is EffectKind.POOL and effect.target is Target.SITE and self._is_known(effect.pool):
                _keep_longest(self._pools, effect.on, effect)
            elif effect.kind is EffectKind.CANCEL:
                self._cancelled[effect.on] = effect
        # One that was made to last longer counts as new: what came back meanwhile is looked through once more.
        taken_out = {on for on, effect in self._cancelled.items() if cancelled.get(on) != effect}
        begun, over = self._held.keys() - held.keys(), held.keys() - self._held.keys()
        moved = {
            site for site in pools.keys() | self._pools.keys() if _pool(pools.get(site)) != _pool(self._pools.get(site))
        }
        return Changes(
            _domains(begun),
            _domains(over),
            frozenset(moved),
            any(target is not Target.DOMAIN for target, _ in begun | over),
            frozenset(domain_of(on) if "@" in on else on for on in taken_out),
        )

    # --- what is asked ------------------------------------------------------------------------

    def domain(self, domain: str) -> Effect | None:
        """What holds the recipients of a domain back."""
        return self._held.get((Target.DOMAIN, domain)) if self._held else None

    @property
    def cancels(self) -> bool:
        """Whether `cancelled` may have an answer: it costs something for each recipient."""
        return bool(self._cancelled)

    def cancelled(self, address: str, domain: str) -> Effect | None:
        """What takes a recipient out of the queue."""
        return self._cancelled.get(domain) or self._cancelled.get(address.lower())

    def delivery(self, delivery_id: int, sender_domain: str) -> Effect | None:
        """What holds a delivery back, as itself or as one of its tenant's."""
        if not self._held:
            return None
        own = self._held.get((Target.DELIVERY, str(delivery_id)))
        return own or (self._held.get((Target.TENANT, sender_domain)) if sender_domain else None)

    def chooser(self, given: EgressChooser, site: Site, domain_class: str) -> EgressChooser:
        """Of the pool from which what is sent to a site leaves; ``given`` is that of its delivery.

        An event goes before the rule that holds for the site's most preferred host through the first egress of the
        delivery's pool.
        """
        if not (self._has_rule_pools or self._pools):
            return given
        event = self._pools.get(site.key)
        name = event.pool if event is not None else self._pool_of_rule(given, site, domain_class)
        if not name or name == given.pool.name:
            return given
        return self._choosers[name] if self._is_known(name) else given

    def _pool_of_rule(self, given: EgressChooser, site: Site, domain_class: str) -> str:
        if not (self._has_rule_pools and site.hosts and given.pool.egresses):
            return ""
        host, egress = site.hosts[0].name, given.pool.egresses[0]
        return self._rules.match(host, egress.id, site.key, domain_class).pool

    def _is_known(self, pool: str) -> bool:
        if pool not in self._choosers and pool not in self._unknown:
            self._unknown.add(pool)
            if self._on_unknown_pool is not None:
                self._on_unknown_pool(pool)
        return pool in self._choosers


def _keep_longest(into: dict[KeyT, Effect], key: KeyT, effect: Effect) -> None:
    other = into.get(key)
    if other is None or other.until_unix_s < effect.until_unix_s:
        into[key] = effect


def _pool(effect: Effect | None) -> str:
    return "" if effect is None else effect.pool


def _domains(keys: Collection[tuple[Target, str]]) -> frozenset[str]:
    return frozenset(on for target, on in keys if target is Target.DOMAIN)
