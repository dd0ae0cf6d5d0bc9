"""What was learnt of hosts: which facts hold, for how long, and how they are tried again.

A *host* is a server at an address (`host_key`), whatever name led there: what a server can do belongs to the server. So
a stranger's DNS can fasten nothing to somebody else's server, names that customers give to one server share what is
learnt of it, and each address of a large site is learnt by itself, which costs one session.

A fact holds for a time. When that is over one session at a time tries without it, while all others go on obeying;
if the session takes messages, the fact is gone, and if the host is seen to do the same again, the fact holds for twice
as long. A number of connections grows back by one at a time meanwhile. Of two observations the stricter counts.

Pure: the time is handed in, as Unix time.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

import msgspec

from mta.model.host import HostFact
from mta.traffic.quota import UNLIMITED
from mta.traffic.rules import Rule

_HOUR_S: Final = 3_600.0
_DAY_S: Final = 86_400.0
# For how long a fact holds when it is learnt first.
LASTS_S: Final = {
    HostFact.NO_PIPELINING_BEHIND_END: 7 * _DAY_S,
    HostFact.NO_PIPELINING: 7 * _DAY_S,
    HostFact.NO_CHUNKING: 7 * _DAY_S,
    HostFact.NO_TLS: _HOUR_S,  # somebody between us and the host may have brought it about
    HostFact.MESSAGES_PER_SESSION: 3 * _DAY_S,
    HostFact.CONNECTIONS: _DAY_S,
    HostFact.RECIPIENTS_PER_TRANSACTION: 3 * _DAY_S,
    HostFact.RESETS: 7 * _DAY_S,
}
LASTS_S_MAX: Final = 30 * _DAY_S
GROWS_S: Final = 600.0  # a number of connections grows by one, if the host refused none for so long
GROWS_S_MAX: Final = 6 * _HOUR_S
SETTLES_S: Final = 30.0  # what is seen within so long after a change is of sessions that were there before it
HOSTS_MAX: Final = 10_000
RESETS_MAX: Final = 8  # RSET in a row, where nothing is learnt
# A session that tries without a fact has shown that it is gone when so many messages were decided in it.
TRIAL_MESSAGES: Final = 5

NUMBERS: Final = frozenset(
    {
        HostFact.MESSAGES_PER_SESSION,
        HostFact.CONNECTIONS,
        HostFact.RECIPIENTS_PER_TRANSACTION,
        HostFact.RESETS,
    }
)
# The keys of a rule that stand against a fact when a file gives them: they say outright what is to be done.
# The figures of a rule are upper bounds, within which a learnt number holds.
OVERRIDES: Final = {
    HostFact.NO_PIPELINING_BEHIND_END: "pipelining",
    HostFact.NO_PIPELINING: "pipelining",
    HostFact.NO_CHUNKING: "chunking",
    HostFact.NO_TLS: "tls",
}


def host_key(peer: str, port: int | None) -> str:
    """The name of a host. ``port``: where a rule gives another than that of the settings.

    >>> host_key("192.0.2.7", None), host_key("192.0.2.7", 2525), host_key("2001:db8::7", 2525)
    ('192.0.2.7', '192.0.2.7:2525', '[2001:db8::7]:2525')
    """
    if port is None:
        return peer
    return f"[{peer}]:{port}" if ":" in peer else f"{peer}:{port}"


class Learnt(msgspec.Struct, frozen=True, kw_only=True):
    """One fact of one host. ``value`` 0 where the fact has no number."""

    host: str
    fact: HostFact
    value: int
    cause: str  # what the host did, in words
    mx_host: str  # by which name it was reached then
    learnt_unix_s: float
    changed_unix_s: float  # when the value changed last
    until_unix_s: float
    times: int = 0  # that it was learnt again when it had been tried without
    version: int = 0  # of its row as this node knows it; 0: it knows of none


class Obeyed(msgspec.Struct, frozen=True):
    """What a session with a host keeps to."""

    pipelines_behind_end: bool = True
    pipelining: bool = True
    chunking: bool = True
    tls: bool = True
    messages_max: int = UNLIMITED
    connections_max: int | None = None
    recipients_max: int = UNLIMITED
    resets_max: int = RESETS_MAX


NOTHING_LEARNT: Final = Obeyed()


class HostFacts:
    """All facts that a node obeys. ``revision`` grows with each change."""

    def __init__(self) -> None:
        self._facts: dict[str, dict[HostFact, Learnt]] = {}
        self._trials: dict[str, int] = {}  # host -> the session that tries without what is due
        self.revision = 0

    def __len__(self) -> int:
        return len(self._facts)

    def __bool__(self) -> bool:
        return bool(self._facts)

    def of(self, host: str) -> list[Learnt]:
        return list(self._facts.get(host, {}).values())

    def get(self, host: str, fact: HostFact) -> Learnt | None:
        return self._facts.get(host, {}).get(fact)

    def connections_max(self, host: str) -> int | None:
        learnt = self.get(host, HostFact.CONNECTIONS)
        return None if learnt is None else learnt.value

    def all(self) -> list[Learnt]:
        return [learnt for facts in self._facts.values() for learnt in facts.values()]

    # --- what is learnt -----------------------------------------------------------------------

    def learn(
        self, host: str, fact: HostFact, value: int, cause: str, mx_host: str, now_unix_s: float
    ) -> Learnt | None:
        """What is to be obeyed from now on; None when nothing of it is new."""
        before = self.get(host, fact)
        times = 0
        if before is not None:
            is_due = before.until_unix_s <= now_unix_s
            is_stricter = fact in NUMBERS and value < before.value
            if not (is_due or is_stricter):
                return None
            is_relapse = is_due or (fact is HostFact.CONNECTIONS and now_unix_s - before.changed_unix_s > SETTLES_S)
            times = before.times + is_relapse
        learnt = Learnt(
            host=host,
            fact=fact,
            value=max(1, value) if fact in NUMBERS else 0,
            cause=cause,
            mx_host=mx_host,
            learnt_unix_s=now_unix_s,
            changed_unix_s=now_unix_s,
            until_unix_s=now_unix_s + lasts_s(fact, times),
            times=times,
            version=0 if before is None else before.version,
        )
        self._trials.pop(host, None)
        self.put(learnt)
        return learnt

    def put(self, learnt: Learnt) -> None:
        """Learnt here, or by another node."""
        self.revision += 1
        facts = self._facts.get(learnt.host)
        if facts is None:
            if len(self._facts) >= HOSTS_MAX:
                self._drop_one()
            facts = self._facts[learnt.host] = {}
        facts[learnt.fact] = learnt

    def forget(self, host: str, fact: HostFact) -> Learnt | None:
        """What was known; None: nothing."""
        facts = self._facts.get(host)
        if facts is None or fact not in facts:
            return None
        self.revision += 1
        found = facts.pop(fact)
        if not facts:
            del self._facts[host]
            self._trials.pop(host, None)
        return found

    def _drop_one(self) -> None:
        """Room for another host: the facts that end first go."""
        host = min(self._facts, key=lambda one: max(fact.until_unix_s for fact in self._facts[one].values()))
        del self._facts[host]
        self._trials.pop(host, None)

    # --- what is obeyed -----------------------------------------------------------------------

    def obeyed(self, host: str, without: Container[HostFact] = ()) -> Obeyed:
        """What holds for a host. ``without``: facts that are not obeyed there."""
        facts = self._facts.get(host)
        if facts is None:
            return NOTHING_LEARNT
        held = {fact: learnt.value for fact, learnt in facts.items() if fact not in without}
        return Obeyed(
            pipelines_behind_end=HostFact.NO_PIPELINING_BEHIND_END not in held,
            pipelining=HostFact.NO_PIPELINING not in held,
            chunking=HostFact.NO_CHUNKING not in held,
            tls=HostFact.NO_TLS not in held,
            messages_max=held.get(HostFact.MESSAGES_PER_SESSION, UNLIMITED),
            connections_max=held.get(HostFact.CONNECTIONS),
            recipients_max=held.get(HostFact.RECIPIENTS_PER_TRANSACTION, UNLIMITED),
            resets_max=min(RESETS_MAX, held.get(HostFact.RESETS, RESETS_MAX)),
        )

    def begin_session(
        self, host: str, session_id: int, without: frozenset[HostFact], now_unix_s: float
    ) -> tuple[Obeyed, bool]:
        """What a new session keeps to, and whether it tries without the facts whose time is over."""
        if host not in self._facts:
            return NOTHING_LEARNT, False
        due = self.due(host, now_unix_s) - without
        if not due or host in self._trials:
            return self.obeyed(host, without), False
        self._trials[host] = session_id
        return self.obeyed(host, without | due), True

    def due(self, host: str, now_unix_s: float) -> frozenset[HostFact]:
        """The facts of a host whose time is over. Connections are none: they grow back."""
        facts = self._facts.get(host, {})
        return frozenset(
            fact
            for fact, learnt in facts.items()
            if learnt.until_unix_s <= now_unix_s and fact is not HostFact.CONNECTIONS
        )

    def end_trial(self, host: str, session_id: int, messages: int, now_unix_s: float) -> list[Learnt]:
        """The session that tried without what is due is over, ``messages`` were decided in it; what is forgotten."""
        if self._trials.get(host) != session_id:
            return []  # the host was seen to do the same again
        del self._trials[host]
        gone = []
        for fact in self.due(host, now_unix_s):
            learnt = self._facts[host][fact]
            needed = learnt.value + 1 if fact is HostFact.MESSAGES_PER_SESSION else TRIAL_MESSAGES
            if messages >= needed:
                gone.append(learnt)
        for learnt in gone:
            self.forget(host, learnt.fact)
        return gone

    # --- what time brings ---------------------------------------------------------------------

    def grow(self, now_unix_s: float) -> list[Learnt]:
        """Numbers of connections that are larger by one from now on; those whose time is over are not among them."""
        grown = []
        for facts in self._facts.values():
            learnt = facts.get(HostFact.CONNECTIONS)
            if learnt is None or learnt.until_unix_s <= now_unix_s:
                continue
            if now_unix_s - learnt.changed_unix_s >= grows_s(learnt.times):
                grown.append(msgspec.structs.replace(learnt, value=learnt.value + 1, changed_unix_s=now_unix_s))
        for learnt in grown:
            self.put(learnt)
        return grown

    def end_over(self, now_unix_s: float) -> list[Learnt]:
        """Forgets limits of connections whose time is over, and what nobody tried again for as long as it held."""
        over = [
            learnt
            for learnt in self.all()
            if learnt.until_unix_s <= now_unix_s
            and (
                learnt.fact is HostFact.CONNECTIONS
                or now_unix_s - learnt.until_unix_s > lasts_s(learnt.fact, learnt.times)
            )
        ]
        for learnt in over:
            self.forget(learnt.host, learnt.fact)
        return over


def lasts_s(fact: HostFact, times: int) -> float:
    """For how long a fact holds that was learnt again so often."""
    return min(LASTS_S_MAX, LASTS_S[fact] * 2.0 ** min(times, 10))


def grows_s(times: int) -> float:
    """After how long a number of connections grows by one."""
    return min(GROWS_S_MAX, GROWS_S * 2.0 ** min(times, 10))


def overridden(rule: Rule, given: Container[tuple[str, str]]) -> frozenset[HostFact]:
    """The facts that are not obeyed where a rule holds. ``given``: (rule, key) of all that the files of rules give."""
    if not rule.learn_hosts:
        return frozenset(HostFact)
    return frozenset(fact for fact, key in OVERRIDES.items() if (rule.name, key) in given)


def in_order(facts: Iterable[Learnt]) -> list[Learnt]:
    """As they are shown: by host, then by fact."""
    return sorted(facts, key=lambda learnt: (learnt.host, learnt.fact.value))
