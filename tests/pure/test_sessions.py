"""Sessions and groups: how much one is given, and when one more pays."""

from __future__ import annotations

import pytest

from mta.model.egress import Egress
from mta.traffic.counters import Counters
from mta.traffic.reach import SiteReach
from mta.traffic.rules import Rule, RuleSet
from mta.traffic.sessions import WINDOW_FIRST, WINDOW_MIN, WINDOW_S, Group, Session, find_hops
from tests.support.schedule_model import egress, site

SITE = site((10, "mx.a.test", ["192.0.2.1", "192.0.2.2"]), (20, "mx2.a.test", ["2001:db8::1"]))


def group(of: Egress | None = None, **limits: int) -> Group:
    rules = RuleSet([Rule("r", "*", **limits)])  # type: ignore[arg-type]
    made = Group(SITE, of or egress(1), SiteReach(5, 2))
    made.hops = find_hops(SITE, made.egress, rules, Counters(rules, 0.0), lambda names: None)
    return made


def session(of: Group) -> Session:
    of.sessions += 1
    of.usable += 1
    return Session(of.sessions, of, of.hops[0], 1, of.hops[0].rooms, 0.0)


def test_an_egress_of_one_family_has_only_the_hops_of_that_family() -> None:
    assert [hop.peer for hop in group().hops] == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert [hop.peer for hop in group(egress(1, source_ipv6="2001:db8::9")).hops] == ["2001:db8::1"]


def test_rotation_moves_the_next_session_on_among_equals_only() -> None:
    made = group()
    made.rotate(made.hops[0])
    assert [hop.peer for hop in made.hops] == ["192.0.2.2", "192.0.2.1", "2001:db8::1"]
    made.rotate(made.hops[2])
    assert [hop.peer for hop in made.hops] == ["192.0.2.2", "192.0.2.1", "2001:db8::1"]


def test_the_window_grows_to_what_is_sent_in_a_quarter_of_a_second_and_no_further() -> None:
    made = session(group())
    assert made.window == WINDOW_FIRST
    for tick in range(1, 40):
        made.measure(10, tick * 0.05, 200)
    assert made.message_s == pytest.approx(0.005)
    assert made.window == pytest.approx(WINDOW_S / 0.005, abs=1)
    for tick in range(40, 80):
        made.measure(1_000, tick * 0.05, 200)
    assert made.window == 200
    for tick in range(4, 40):
        made.measure(1, tick * 1.0, 200)
    assert made.window == WINDOW_MIN


def test_reports_at_one_moment_are_one_measurement() -> None:
    together, apart = session(group()), session(group())
    for tick in range(1, 30):
        together.measure(5, tick * 0.01, 200)
        for _ in range(5):
            apart.measure(1, tick * 0.01, 200)
        assert apart.message_s <= 0.01
    assert apart.message_s == pytest.approx(together.message_s, rel=0.3)


def test_a_session_takes_half_a_window_at_least_or_its_last_messages() -> None:
    made = session(group(messages_per_connection_max=12))
    made.window = 10
    assert made.room() == 10
    made.in_flight = made.used = 5
    assert made.room() == 5
    made.in_flight = 6
    assert made.room() == 0, "so few are not worth a batch"
    made.used = 10
    assert made.room() == 2, "unless they are the last it may carry"
    made.is_closing = True
    assert made.room() == 0


def test_a_session_with_one_message_under_way_is_given_the_next() -> None:
    made = session(group())
    made.window, made.in_flight = WINDOW_MIN, 1
    assert made.room() == 1


@pytest.mark.parametrize(
    ("usable", "message_s", "waiting", "expected"),
    [
        (0, 0.0, 1, True),
        (1, 0.0, 10, False),
        (1, 0.0, 11, True),
        (50, 0.0, 501, True),
        (1, 0.0001, 2_000, False),  # done in 0.2 s
        (1, 0.0001, 3_000, True),
        (4_000, 1.0, 900, False),
        (3_000, 1.0, 900, True),
    ],
)
def test_one_more_session_must_pay(usable: int, message_s: float, waiting: int, expected: bool) -> None:
    made = group()
    made.usable, made.message_s = usable, message_s
    assert made.wants_session(waiting) is expected


def test_the_handshake_counts_where_a_session_carries_few_messages() -> None:
    few, many = group(messages_per_connection_max=2), group()
    for made in (few, many):
        made.usable, made.message_s, made.open_s = 1, 0.001, 0.4
    assert few.wants_session(2)
    assert not many.wants_session(200)
