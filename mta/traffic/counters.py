"""What rules count: sessions and messages, each in the scope that its rule names.

There is exactly one counter for each key while anything is counted in it; a second one would let twice as much
through. So counters are made here only, and are dropped only when no session, no hop and no credit needs them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from mta.model.waiting import Wait, WaitReason
from mta.traffic.backoff import PathBackoff
from mta.traffic.gates import Gate
from mta.traffic.quota import HourlyQuota
from mta.traffic.rules import Rule, RuleSet, limit_key, path_key

UNLIMITED = 2**31  # more than fits in memory


class Room(Gate):
    """Sessions open at a time, counted from the order to open until the end is reported.

    Invariant: ``sessions`` never grows beyond ``sessions_max``. It may stand above it after a reload has lowered that.
    """

    __slots__ = ("_idle", "closing", "sessions", "sessions_max")

    def __init__(self, sessions_max: int | None) -> None:
        super().__init__()
        self.sessions_max = sessions_max
        self.sessions = 0
        self.closing = 0  # of them, those that were told to close
        self._idle: OrderedDict[int, None] | None = None  # of the rest, those with nothing to do, longest first

    @property
    def has_room(self) -> bool:
        return self.sessions_max is None or self.sessions < self.sessions_max

    def is_open(self, now_s: float) -> bool:
        return self.has_room

    @property
    def excess(self) -> int:
        """How many sessions are to be closed to keep the maximum, besides those that close already."""
        return 0 if self.sessions_max is None else max(0, self.sessions - self.closing - self.sessions_max)

    def lacks_room(self, now_s: float) -> bool:
        """True when somebody waits who could go if a session were closed, and too few are closing."""
        return not self.has_room and self.waiting > self.closing

    @property
    def idle_session(self) -> int | None:
        """The session that has been idle for longest."""
        return next(iter(self._idle)) if self._idle else None

    def rest(self, session_id: int) -> None:
        if self._idle is None:
            self._idle = OrderedDict()
        self._idle[session_id] = None

    def unrest(self, session_id: int) -> None:
        if self._idle is not None:
            self._idle.pop(session_id, None)


class Limit(Room):
    """``connections_max`` and ``messages_per_hour_max`` of a rule in one scope."""

    __slots__ = ("_unix_offset_s", "dry", "key", "quota", "rule")

    def __init__(self, key: str, rule: Rule, unix_offset_s: float) -> None:
        super().__init__(rule.connections_max)
        self.key = key
        self.rule = rule
        self._unix_offset_s = unix_offset_s
        self.quota = None if rule.messages_per_hour_max is None else HourlyQuota(rule.messages_per_hour_max)
        self.dry: set[int] = set()  # sessions that were passed over because there were no credits

    def credits(self, now_s: float) -> int:
        """How many messages may be handed out now."""
        return UNLIMITED if self.quota is None else self.quota.available(now_s + self._unix_offset_s)

    def credits_at_s(self, now_s: float) -> float:
        """When there will be a credit; inf while that depends on what is reported."""
        if self.quota is None:
            return now_s
        return self.quota.next_at(now_s + self._unix_offset_s) - self._unix_offset_s

    def is_open(self, now_s: float) -> bool:
        return self.has_room and self.credits(now_s) > 0

    def lacks_room(self, now_s: float) -> bool:
        return super().lacks_room(now_s) and self.credits(now_s) > 0

    def report(self, quota: HourlyQuota | None, count: int, now_s: float) -> None:
        """``count`` messages that were taken from ``quota``, this limit's or its predecessor's, were attempted."""
        if quota is not None and count:
            quota.report(count, now_s + self._unix_offset_s)

    def wait_for_credits(self, now_s: float) -> Wait:
        detail = f"rule {self.rule.name}: {self.rule.messages_per_hour_max} messages an hour, counted on {self.key}"
        return Wait(WaitReason.RULE_MESSAGES_PER_HOUR, self.credits_at_s(now_s), detail)

    def adopt(self, rule: Rule) -> None:
        """A reload: the rule's new figures hold from now on, what was used stays used."""
        self.rule = rule
        self.sessions_max = rule.connections_max
        if rule.messages_per_hour_max is None:
            self.quota = None
        elif self.quota is None:
            self.quota = HourlyQuota(rule.messages_per_hour_max)
        else:
            self.quota.set_limit(rule.messages_per_hour_max)

    def inherit(self, other: Limit) -> None:
        """Counts what ``other`` has counted in the last hour here as well."""
        if self.quota is not None and other.quota is not None:
            self.quota.inherit(other.quota)


class Path(Gate):
    """One egress to one address: its backoff after failures, and the one session that tries it again.

    While failures are remembered, one session at a time tries the path; the crowd follows when it has succeeded.
    """

    __slots__ = ("backoff", "last_failure", "trials")

    def __init__(self) -> None:
        super().__init__()
        self.backoff = PathBackoff()
        self.last_failure = ""
        self.trials = 0  # sessions that try the path after a failure

    def is_failing(self, now_s: float) -> bool:
        """True when its next session is a trial."""
        return self.backoff.failures(now_s) > 0

    def is_open(self, now_s: float) -> bool:
        return not self.trials and self.backoff.is_available(now_s)


class Counters:
    """All counters of a node, by key."""

    def __init__(self, rules: RuleSet, unix_offset_s: float) -> None:
        self._rules = rules
        self._unix_offset_s = unix_offset_s
        self._limits: dict[str, Limit] = {}
        self._path_rooms: dict[str, Room] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._of_other_scope: dict[str, list[Limit]] = {}  # rule name -> its limits before its scope changed

    def limit(self, rule: Rule, egress_id: int, peer: str) -> Limit:
        return self._limit(limit_key(rule, egress_id, peer), rule)

    def _limit(self, key: str, rule: Rule) -> Limit:
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = Limit(key, rule, self._unix_offset_s)
            for other in self._of_other_scope.get(rule.name, ()):
                if _are_related(key, other.key):
                    limit.inherit(other)
        return limit

    def path_room(self, rule: Rule, egress_id: int, peer: str) -> Room | None:
        """The counter of ``connections_per_path_max``; None when the rule has none."""
        if rule.connections_per_path_max is None:
            return None
        key = path_key(rule, egress_id, peer)
        room = self._path_rooms.get(key)
        if room is None:
            room = self._path_rooms[key] = Room(rule.connections_per_path_max)
        return room

    def path(self, egress_name: str, peer: str) -> Path:
        key = (egress_name, peer)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = Path()
        return path

    def is_counted(self, key: str) -> bool:
        """True when the limit of this key counts messages by the hour."""
        limit = self._limits.get(key)
        return limit is not None and limit.quota is not None

    def adopt(self, rules: RuleSet) -> list[Room]:
        """A reload. Counters of rules that keep their name are kept, and their credits even if the scope changes.

        Returns the rooms there were; the sessions in them are to be counted anew.
        """
        before = {rule.name: rule for rule in (*self._rules.rules, self._rules.default)}
        after = {rule.name: rule for rule in (*rules.rules, rules.default)}
        self._rules = rules
        rooms: list[Room] = [*self._limits.values(), *self._path_rooms.values()]
        rescoped: dict[str, list[Limit]] = {}
        for key, limit in list(self._limits.items()):
            rule = after.get(limit.rule.name)
            if rule is None:
                continue  # nothing is counted here any more; its credits are kept in case the name comes back
            if (old := before.get(rule.name)) is not None and old.scope is not rule.scope:
                rescoped.setdefault(rule.name, []).append(self._limits.pop(key))
            else:
                limit.adopt(rule)
        for name, limits in rescoped.items():
            earlier = self._of_other_scope.get(name, [])
            # What an earlier change left is counted in these already, where they are related.
            limits += [old for old in earlier if not any(_are_related(old.key, limit.key) for limit in limits)]
            self._of_other_scope[name] = limits
        for key, room in self._path_rooms.items():
            rule = after.get(key.split("|", 1)[0])
            room.sessions_max = None if rule is None else rule.connections_per_path_max
        return rooms

    def load_credits(self, credits_used: Iterable[tuple[str, int, int]], now_s: float) -> None:
        """Credits of earlier runs: (limit key, bucket of 10 s of Unix time, used)."""
        rules = {rule.name: rule for rule in (self._rules.default, *self._rules.rules)}
        by_key: dict[str, list[tuple[int, int]]] = {}
        for key, bucket, used in credits_used:
            by_key.setdefault(key, []).append((bucket, used))
        for key, buckets in by_key.items():
            rule = rules.get(key.split("|", 1)[0])
            if rule is not None and rule.messages_per_hour_max is not None:
                quota = self._limit(key, rule).quota
                assert quota is not None
                quota.load(buckets, now_s + self._unix_offset_s)

    def forget(self, needed: set[Gate], now_s: float) -> None:
        """Drops the counters that are not ``needed`` and know nothing that a new one would not know."""
        unix_s = now_s + self._unix_offset_s
        for key, limit in list(self._limits.items()):
            if limit not in needed and (limit.quota is None or limit.quota.is_idle(unix_s)):
                del self._limits[key]
        for key in [key for key, room in self._path_rooms.items() if room not in needed]:
            del self._path_rooms[key]
        for pair, path in list(self._paths.items()):
            if path not in needed and path.backoff.is_forgotten(now_s):
                del self._paths[pair]
        for name, limits in list(self._of_other_scope.items()):
            if all(limit.quota is None or limit.quota.is_idle(unix_s) for limit in limits):
                del self._of_other_scope[name]

    def __len__(self) -> int:
        return len(self._limits) + len(self._path_rooms) + len(self._paths)


def _are_related(key: str, other: str) -> bool:
    """True when one of the keys names a part of what the other counts: ``rule|1`` and ``rule|1|192.0.2.7``."""
    short, long = sorted((key.split("|"), other.split("|")), key=len)
    return long[: len(short)] == short
