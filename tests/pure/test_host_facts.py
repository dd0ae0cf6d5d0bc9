"""What was learnt of hosts: which of two observations counts, for how long, and how it is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.model.host import HostFact
from mta.traffic.host_facts import (
    GROWS_S,
    HOSTS_MAX,
    LASTS_S,
    LASTS_S_MAX,
    NOTHING_LEARNT,
    NUMBERS,
    TRIAL_MESSAGES,
    HostFacts,
    Learnt,
    grows_s,
    host_key,
    lasts_s,
    overridden,
)
from mta.traffic.quota import UNLIMITED
from mta.traffic.rules import Rule

HOST = "192.0.2.1"
NOW_S = 1_800_000_000.0
MESSAGES = HostFact.MESSAGES_PER_SESSION
BEHIND_END = HostFact.NO_PIPELINING_BEHIND_END


def learn(facts: HostFacts, fact: HostFact, value: int = 0, at_s: float = NOW_S, host: str = HOST) -> Learnt | None:
    return facts.learn(host, fact, value, f"it said {value}", "mx.a.test", at_s)


def test_of_two_numbers_the_smaller_holds() -> None:
    facts = HostFacts()
    assert learn(facts, MESSAGES, 10)
    assert learn(facts, MESSAGES, 12, NOW_S + 60) is None
    smaller = learn(facts, MESSAGES, 7, NOW_S + 60)
    assert smaller is not None
    assert (smaller.value, smaller.until_unix_s) == (7, NOW_S + 60 + LASTS_S[MESSAGES])
    assert facts.obeyed(HOST).messages_max == 7


def test_what_is_not_known_is_not_obeyed() -> None:
    assert HostFacts().obeyed(HOST) is NOTHING_LEARNT
    assert HostFacts().obeyed(HOST).messages_max == UNLIMITED


def test_every_fact_has_a_time_and_is_obeyed_somewhere() -> None:
    for fact in HostFact:
        facts = HostFacts()
        learn(facts, fact, 3)
        assert facts.obeyed(HOST) != NOTHING_LEARNT
        assert facts.obeyed(HOST, frozenset({fact})) == NOTHING_LEARNT
        assert fact.said(3)
        assert ("3" in fact.said(3)) is (fact in NUMBERS)


def test_when_its_time_is_over_one_session_at_a_time_tries_without_it() -> None:
    facts = HostFacts()
    learn(facts, BEHIND_END)
    later_s = NOW_S + LASTS_S[BEHIND_END]
    assert facts.begin_session(HOST, 1, frozenset(), later_s - 1) == (facts.obeyed(HOST), False)
    tried, is_trial = facts.begin_session(HOST, 2, frozenset(), later_s)
    assert (tried.pipelines_behind_end, is_trial) == (True, True)
    obeyed, is_trial = facts.begin_session(HOST, 3, frozenset(), later_s)
    assert (obeyed.pipelines_behind_end, is_trial) == (False, False)
    assert facts.end_trial(HOST, 2, TRIAL_MESSAGES - 1, later_s) == []  # too few to tell
    assert facts.begin_session(HOST, 4, frozenset(), later_s)[1]
    assert [one.fact for one in facts.end_trial(HOST, 4, TRIAL_MESSAGES, later_s)] == [BEHIND_END]
    assert facts.obeyed(HOST) is NOTHING_LEARNT


def test_a_host_that_does_the_same_again_is_believed_for_twice_as_long() -> None:
    facts = HostFacts()
    at_s = NOW_S
    learn(facts, BEHIND_END)
    for times in range(1, 6):
        at_s += lasts_s(BEHIND_END, times - 1)
        assert facts.begin_session(HOST, times, frozenset(), at_s)[1]
        again = learn(facts, BEHIND_END, 0, at_s)
        assert again is not None
        assert again.until_unix_s == at_s + min(LASTS_S_MAX, LASTS_S[BEHIND_END] * 2**times)
        assert facts.end_trial(HOST, times, 100, at_s) == []  # what it did decides, not how much came after
    assert not facts.obeyed(HOST).pipelines_behind_end


def test_a_number_of_messages_is_gone_when_a_session_took_more() -> None:
    facts = HostFacts()
    learn(facts, MESSAGES, 10)
    over_s = NOW_S + LASTS_S[MESSAGES]
    facts.begin_session(HOST, 1, frozenset(), over_s)
    assert facts.end_trial(HOST, 1, 10, over_s) == []
    facts.begin_session(HOST, 2, frozenset(), over_s)
    assert len(facts.end_trial(HOST, 2, 11, over_s)) == 1


def test_connections_grow_back_by_one_and_slower_after_each_relapse() -> None:
    facts = HostFacts()
    for value in (9, 8, 5, 2):  # as the sessions beyond are refused one by one
        learn(facts, HostFact.CONNECTIONS, value)
    at_s = NOW_S
    for times in range(3):
        held = facts.get(HOST, HostFact.CONNECTIONS)
        assert held is not None
        assert (held.value, held.times) == (2, times)
        assert facts.grow(at_s + grows_s(times) - 1) == []
        at_s += grows_s(times)
        assert [one.value for one in facts.grow(at_s)] == [3]
        at_s += 60
        learn(facts, HostFact.CONNECTIONS, 2, at_s)
    assert grows_s(1) == 2 * GROWS_S


def test_connections_are_forgotten_when_the_host_refused_none_for_a_day() -> None:
    facts = HostFacts()
    learn(facts, HostFact.CONNECTIONS, 2)
    over_s = NOW_S + LASTS_S[HostFact.CONNECTIONS]
    assert facts.end_over(over_s - 1) == []
    assert [one.fact for one in facts.end_over(over_s)] == [HostFact.CONNECTIONS]
    assert not facts


def test_what_nobody_tries_again_is_forgotten_after_as_long_again() -> None:
    facts = HostFacts()
    learn(facts, BEHIND_END)
    over_s = NOW_S + 2 * LASTS_S[BEHIND_END]
    assert facts.end_over(over_s) == []
    assert len(facts.end_over(over_s + 1)) == 1


def test_at_most_so_many_hosts_are_kept_and_those_go_first_whose_facts_end_first() -> None:
    facts = HostFacts()
    learn(facts, HostFact.NO_TLS, host="first")
    for number in range(HOSTS_MAX):
        learn(facts, BEHIND_END, host=f"h{number}")
    assert len(facts) == HOSTS_MAX
    assert facts.of("first") == []


def test_what_a_rule_says_outright_stands_against_what_was_learnt() -> None:
    given = {("r", "pipelining"), ("r", "tls"), ("other", "chunking")}
    assert overridden(Rule("r", "*"), given) == {BEHIND_END, HostFact.NO_PIPELINING, HostFact.NO_TLS}
    assert overridden(Rule("r", "*"), ()) == frozenset()
    assert overridden(Rule("r", "*", learn_hosts=False), ()) == frozenset(HostFact)


@pytest.mark.parametrize(
    ("peer", "port", "key"),
    [("192.0.2.1", None, "192.0.2.1"), ("2001:db8::1", None, "2001:db8::1"), ("192.0.2.1", 2525, "192.0.2.1:2525")],
)
def test_a_host_is_named_by_its_address(peer: str, port: int | None, key: str) -> None:
    assert host_key(peer, port) == key


@given(st.lists(st.tuples(st.sampled_from(list(HostFact)), st.integers(0, 50), st.floats(0, 1e7)), max_size=40))
def test_a_learnt_number_never_grows_by_what_is_seen_while_it_holds(seen: list[tuple[HostFact, int, float]]) -> None:
    facts = HostFacts()
    at_s = NOW_S
    for fact, value, after_s in seen:
        at_s += after_s
        before = facts.get(HOST, fact)
        learn(facts, fact, value, at_s)
        now = facts.get(HOST, fact)
        assert now is not None
        assert now.until_unix_s > at_s or (before is not None and before.until_unix_s > at_s)
        if before is not None and before.until_unix_s > at_s:
            assert now.value <= before.value
