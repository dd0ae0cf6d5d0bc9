"""What rules count: sessions and messages, each in the scope that its rule names.

There is exactly one counter for each key while anything is counted in it; a second one would let twice as much
through. So counters are made here only, and are dropped only when no session, no hop and no credit needs them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from mta.model.egress import Egress
from mta.traffic.effects import Effect, EffectKind, Target
from mta.traffic.gates import Gate
from mta.traffic.host_facts import HostFacts, host_key
from mta.traffic.limit import Held, HostRoom, Limit, Room
from mta.traffic.limits import Limits
from mta.traffic.path import Path
from mta.traffic.quota import UNLIMITED
from mta.traffic.rules import Rule, RuleSet, Scope, WarmUp, limit_key, path_key
from mta.traffic.sources import Source

__all__ = ["Counters", "Held", "HostRoom", "Limit", "Path", "Room", "Source"]

_NONE: Final = Limits()
# A key that is stored says what is counted under it: messages have none, as they had before there was anything else.
BYTES_SUFFIX: Final = "#b"
OPENINGS_SUFFIX: Final = "#o"


class Counters:
    """All counters of one node. ``unix_offset_s`` turns the schedule's clock into Unix time."""

    def __init__(self, rules: RuleSet, unix_offset_s: float) -> None:
        self._rules = rules
        self.hosts = HostFacts()
        self._host_rooms: dict[tuple[int, str], HostRoom] = {}  # by egress and host
        self._unix_offset_s = unix_offset_s
        self._limits: dict[str, Limit] = {}
        self._path_rooms: dict[str, Room] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._sources: dict[str, list[Source]] = {}  # by egress; few, so they are never forgotten
        self._of_other_scope: dict[str, list[Limit]] = {}  # rule name -> its limits before its scope changed
        self._effects: dict[tuple[str, str], list[Effect]] = {}  # (target, on) -> what is in force there
        self._shares: Mapping[tuple[str, str], int] | None = None
        self._common_egresses: frozenset[int] = frozenset()  # ids that other nodes use too

    # --- one counter for each key ---------------------------------------------------------------

    def limits_of(self, rule: Rule, egress: Egress, peer: str) -> tuple[Limit, ...]:
        """All that counts an attempt: of the rule first, of its provider, of the egress's warm-up plan."""
        found = [self.limit(rule, egress.id, peer)]
        if rule.provider is not None:
            shared = rule.provider.scope is Scope.SHARED
            key = f"provider:{rule.provider.name}" + ("" if shared else f"|{egress.id}")
            found.append(self._limit(key, rule.provider, None, f"provider {rule.provider.name}"))
        plan = self._rules.warm_up(egress.id)
        if plan is not None and (ladder := _ladder(plan, rule)) is not None:
            limit = self._limits.get(f"warmup:{plan.name}|{egress.id}|{ladder[0]}")
            if limit is None:
                limit = self._limit(f"warmup:{plan.name}|{egress.id}|{ladder[0]}", _NONE, None, f"warm-up {plan.name}")
            limit.follow_plan(plan.starts_unix_s, ladder[1])
            found.append(limit)
        return tuple(found)

    def limit(self, rule: Rule, egress_id: int, peer: str) -> Limit:
        return self._limit(limit_key(rule, egress_id, peer), rule, rule, f"rule {rule.name}")

    def _limit(self, key: str, limits: Limits, rule: Rule | None, title: str) -> Limit:
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = Limit(key, limits, self._unix_offset_s, title)
            self._configure(limit, limits, rule)
            if rule is not None:
                for other in self._of_other_scope.get(rule.name, ()):
                    if _are_related(key, other.key):
                        limit.inherit(other)
        return limit

    def _configure(self, limit: Limit, limits: Limits, rule: Rule | None) -> None:
        quiet = None if rule is None else rule.quiet_hours
        backoff = None if rule is None else rule.backoff
        is_provider = limit.key.startswith("provider:")
        effects = self._effects.get((Target.PROVIDER.value if is_provider else Target.RULE.value, limit.key), [])
        limit.adopt(limits, backoff, quiet, effects)
        self._share_out(limit)

    def path_room(self, rule: Rule, egress_id: int, peer: str) -> Room | None:
        """The counter of ``connections_per_path_max``; None when the rule has none."""
        if rule.connections_per_path_max is None:
            return None
        key = path_key(rule, egress_id, peer)
        room = self._path_rooms.get(key)
        if room is None:
            room = self._path_rooms[key] = Room(rule.connections_per_path_max)
            room.set_share(self._share(key, "p"))
        return room

    def host_room(self, rule: Rule, egress_id: int, peer: str) -> HostRoom | None:
        """The counter of the connections that a host takes from an egress; None while nothing is known of it."""
        if not self.hosts or not rule.learn_hosts:
            return None
        host = host_key(peer, rule.port)
        key = (egress_id, host)
        room = self._host_rooms.get(key)
        if room is None:
            most = self.hosts.connections_max(host)
            if most is None:
                return None
            room = self._host_rooms[key] = HostRoom(host, most)
        return room

    def follow_hosts(self, hosts: Collection[str]) -> list[HostRoom]:
        """What is known of these hosts has changed; the rooms that there are for them have their numbers now."""
        rooms = [room for (_, host), room in self._host_rooms.items() if host in hosts]
        for room in rooms:
            room.set_most(self.hosts.connections_max(room.host))
        return rooms

    @property
    def rules(self) -> RuleSet:
        return self._rules

    def unix_s(self, now_s: float) -> float:
        """A time of the schedule's clock as Unix time."""
        return now_s + self._unix_offset_s

    def path(self, egress: Egress, peer: str) -> Path:
        key = (egress.name, peer)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = Path(egress.id, peer, self._unix_offset_s)
            path.set_effects(self._effects.get((Target.PATH.value, path.key), ()))
        return path

    def source(self, egress: Egress, peer: str) -> Source:
        """The egress in the family of the peer."""
        is_ipv6 = ":" in peer
        known = self._sources.get(egress.name)
        if known is None:
            known = self._sources[egress.name] = []
        for source in known:
            if source.is_ipv6 is is_ipv6:
                return source
        source = Source(egress, is_ipv6)
        known.append(source)
        return source

    def sources(self, egress: str) -> list[Source]:
        """Those that were ever to be used."""
        return self._sources.get(egress, [])

    def known_path(self, egress: str, peer: str) -> Path | None:
        """The path, if anything is known of it."""
        return self._paths.get((egress, peer))

    def all_paths(self) -> Iterable[Path]:
        return self._paths.values()

    def all_sources(self) -> list[Source]:
        return [source for sources in self._sources.values() for source in sources]

    def all_limits(self) -> Iterable[Limit]:
        return self._limits.values()

    def find(self, key: str) -> Limit | None:
        return self._limits.get(key)

    # --- what is stored -------------------------------------------------------------------------

    def stored_keys(self, keys: str) -> list[str]:
        """Of the keys (with blanks between) of the limits that an attempt was counted on, those that are to be stored:
        with a suffix where bytes or connections are counted."""
        found = []
        for key in keys.split(" "):
            limit = self._limits.get(key)
            if limit is not None:
                if limit.quota is not None:
                    found.append(key)
                if limit.volume is not None:
                    found.append(key + BYTES_SUFFIX)
                if limit.openings is not None:
                    found.append(key + OPENINGS_SUFFIX)
        return found

    def load_credits(self, credits_used: Iterable[tuple[str, int, int]], now_s: float) -> None:
        """Credits of earlier runs: (stored key, bucket of 10 s of Unix time, used)."""
        by_key: dict[str, list[tuple[int, int]]] = {}
        for key, bucket, used in credits_used:
            by_key.setdefault(key, []).append((bucket, used))
        for stored, buckets in by_key.items():
            key, _, kind = stored.partition("#")
            limit = self._known(key)
            if limit is not None:
                quota = {"": limit.quota, "b": limit.volume, "o": limit.openings}.get(kind)
                if quota is not None:
                    quota.load(buckets, now_s + self._unix_offset_s)

    def _known(self, key: str) -> Limit | None:
        """The limit of a stored key, if there is still a rule, a provider or a plan for it."""
        limit = self._limits.get(key)
        if limit is not None:
            return limit
        name = key.split("|", 1)[0]
        for rule in (self._rules.default, *self._rules.rules):
            if rule.name == name:
                return self._limit(key, rule, rule, f"rule {name}")
            if rule.provider is not None and f"provider:{rule.provider.name}" == name:
                return self._limit(key, rule.provider, None, f"provider {rule.provider.name}")
        for plan in self._rules.warm_ups:
            ladder = dict(plan.ladders).get(key.rpartition("|")[2])
            if f"warmup:{plan.name}" == name and ladder is not None:
                limit = self._limit(key, _NONE, None, f"warm-up {plan.name}")
                limit.follow_plan(plan.starts_unix_s, ladder)
                return limit
        return None

    # --- reload, effects, shares ----------------------------------------------------------------

    def adopt(self, rules: RuleSet) -> list[Room]:
        """A reload. Counters of rules that keep their name are kept, and their credits even if the scope changes.

        Returns the rooms there were; the sessions in them are to be counted anew.
        """
        before = {rule.name: rule for rule in (*self._rules.rules, self._rules.default)}
        after = {rule.name: rule for rule in (*rules.rules, rules.default)}
        providers = {f"provider:{rule.provider.name}": rule.provider for rule in rules.rules if rule.provider}
        self._rules = rules
        rooms: list[Room] = [*self._limits.values(), *self._path_rooms.values()]
        rescoped: dict[str, list[Limit]] = {}
        for key, limit in list(self._limits.items()):
            name = key.split("|", 1)[0]
            if provider := providers.get(name):
                self._configure(limit, provider, None)
                continue
            rule = after.get(name)
            if rule is None:
                continue  # nothing is counted here any more; its credits are kept in case the name comes back
            if (old := before.get(rule.name)) is not None and old.scope is not rule.scope:
                rescoped.setdefault(rule.name, []).append(self._limits.pop(key))
            else:
                self._configure(limit, rule, rule)
        for name, limits in rescoped.items():
            earlier = self._of_other_scope.get(name, [])
            # What an earlier change left is counted in these already, where they are related.
            limits += [old for old in earlier if not any(_are_related(old.key, limit.key) for limit in limits)]
            self._of_other_scope[name] = limits
        for key, room in self._path_rooms.items():
            rule = after.get(key.split("|", 1)[0])
            room.set_most(None if rule is None else rule.connections_per_path_max)
        return rooms

    def set_effects(self, effects: Iterable[Effect]) -> tuple[list[Limit], list[Path]]:
        """All that is in force from now on; the limits and paths for which something is different now."""
        before, self._effects = self._effects, {}
        for effect in effects:
            self._effects.setdefault((effect.target.value, effect.on), []).append(effect)
        changed = {at for at in before.keys() | self._effects.keys() if before.get(at) != self._effects.get(at)}
        limits = []
        for limit in self._limits.values():
            target = Target.PROVIDER if limit.key.startswith("provider:") else Target.RULE
            if (target.value, limit.key) in changed:
                limit.set_effects(self._effects.get((target.value, limit.key), ()))
                limits.append(limit)
        paths = [path for path in self._paths.values() if (Target.PATH.value, path.key) in changed]
        for path in paths:
            path.set_effects(self._effects.get((Target.PATH.value, path.key), ()))
        return limits, paths

    def suspended(self, site: str, egress: str, now_s: float) -> Effect | None:
        """What keeps a site or an egress as a whole from being used now; of several, the one that does so longest."""
        if not self._effects:
            return None
        found: Effect | None = None
        unix_s = now_s + self._unix_offset_s
        for at in ((Target.SITE.value, site), (Target.EGRESS.value, egress)):
            for effect in self._effects.get(at, ()):
                is_longer = found is None or effect.until_unix_s > found.until_unix_s
                if effect.kind is EffectKind.SUSPEND and effect.until_unix_s > unix_s and is_longer:
                    found = effect
        return found

    def clock_s(self, unix_s: float) -> float:
        """A Unix time on the schedule's clock."""
        return unix_s if unix_s == math.inf else unix_s - self._unix_offset_s

    def set_shares(self, shares: Mapping[tuple[str, str], int] | None, common_egresses: Collection[int]) -> list[Room]:
        """What of each limit is this node's, by (key, kind); None: all of everything. Those that let more through now.

        ``common_egresses``: ids of egresses that other nodes use too. Where a limit is counted on another, the node is
        alone with it.
        """
        self._shares = shares
        self._common_egresses = frozenset(common_egresses)
        wider: list[Room] = [limit for limit in self._limits.values() if self._share_out(limit)]
        for key, room in self._path_rooms.items():
            if room.set_share(self._share(key, "p")):
                wider.append(room)
        return wider

    def _share_out(self, limit: Limit) -> bool:
        if self._shares is None or not self._is_common(limit.key):
            return limit.set_shares(None)
        shares = self._shares
        return limit.set_shares({kind: shares.get((limit.key, kind), 0) for kind in limit.kinds})

    def _share(self, key: str, kind: str) -> int:
        if self._shares is None or not self._is_common(key):
            return UNLIMITED
        return self._shares.get((key, kind), 0)

    def _is_common(self, key: str) -> bool:
        fields = key.split("|")
        return len(fields) == 1 or int(fields[1]) in self._common_egresses

    def shares_wanted(self, now_s: float) -> list[Held]:
        """What this node holds of each limit that others may use too, and what it could use. Those of which it holds
        and wants nothing are left out: all of their share may go."""
        found: list[Held] = []
        for limit in self._limits.values():
            if self._is_common(limit.key):
                found.extend(limit.held(now_s))
        for key, room in self._path_rooms.items():
            if self._is_common(key) and (held := room.held_of(key, "p")) is not None:
                found.append(held)
        return found

    # --- memory ---------------------------------------------------------------------------------

    def forget(self, needed: set[Gate], now_s: float) -> None:
        """Drops the counters that are not ``needed`` and know nothing that a new one would not know."""
        unix_s = now_s + self._unix_offset_s
        for key, limit in list(self._limits.items()):
            if limit not in needed and limit.is_idle(unix_s):
                del self._limits[key]
        for key in [key for key, room in self._path_rooms.items() if room not in needed]:
            del self._path_rooms[key]
        for at in [at for at, host_room in self._host_rooms.items() if host_room not in needed]:
            del self._host_rooms[at]
        for pair, path in list(self._paths.items()):
            if path not in needed and path.is_forgotten(now_s):
                del self._paths[pair]
        for name, limits in list(self._of_other_scope.items()):
            if all(limit.is_idle(unix_s) for limit in limits):
                del self._of_other_scope[name]

    def __len__(self) -> int:
        return len(self._limits) + len(self._path_rooms) + len(self._paths)


def _ladder(plan: WarmUp, rule: Rule) -> tuple[str, tuple[int, ...]] | None:
    """The ladder of a plan for what a rule covers: that of the rule, else of its provider, else of all others."""
    ladders = dict(plan.ladders)
    for name in (rule.name, rule.provider.name if rule.provider else "*", "*"):
        if name in ladders:
            return name, ladders[name]
    return None


def _are_related(key: str, other: str) -> bool:
    """True when one of the keys names a part of what the other counts: ``rule|1`` and ``rule|1|192.0.2.7``."""
    short, long = sorted((key.split("|"), other.split("|")), key=len)
    return long[: len(short)] == short


def counts_bytes(rules: RuleSet, effects: Iterable[Effect]) -> bool:
    """True when any limit of bytes may hold: else nobody needs to know how large a message is."""
    given: list[Limits] = [rules.default, *rules.rules]
    given += [rule.provider for rule in rules.rules if rule.provider is not None]
    given += [rule.backoff for rule in rules.rules if rule.backoff is not None]
    given += [effect.limits for effect in effects]
    return any(limits.byte_ceilings() for limits in given)
