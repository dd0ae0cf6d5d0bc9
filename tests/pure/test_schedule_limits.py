"""Every kind of limit that a rule can set, one by one, as the far side sees it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgspec

from mta.model.egress import EgressPool
from mta.model.site import Site
from mta.model.waiting import WaitReason
from mta.traffic.rules import NextMx, Provider, QuietHours, Rule, RuleSet, Scope, Tls, WarmUp
from tests.support.schedule_model import A, B, egress, site
from tests.support.schedule_world import MESSAGE_BYTES, START_S, UNIX_OFFSET_S, World, both, finish

TWO_HOSTS = site((10, "mx1.a.test", ["192.0.2.1"]), (20, "mx2.a.test", ["192.0.2.2"]))
DAY_S = 86_400


def one(rule: Rule, **keys: object) -> World:
    return World([rule], sites={"a.test": A}, **keys)  # type: ignore[arg-type]


def sent_in(world: World, seconds: float) -> int:
    return sum(sent.at_s < START_S + seconds for sent in world.sent)


def test_messages_a_second_flow_evenly() -> None:
    world = one(Rule("r", "*", messages_per_second_max=20))
    world.put("a.test", 200)
    world.run(5.5)
    assert world.most_in(1, [sent.at_s for sent in world.sent]) <= 20
    assert sent_in(world, 5.5) >= 90
    assert world.waits() == {WaitReason.RULE_MESSAGES: 1}


def test_a_day_is_kept_to_like_an_hour() -> None:
    world = one(Rule("r", "*", messages_per_day_max=300))
    world.put("a.test", 400)
    world.run(DAY_S)
    assert len(world.sent) == 300
    world.run(DAY_S)
    assert len(world.sent) == 400
    world.check_quotas()


def test_connections_are_begun_no_faster_than_the_rule_says() -> None:
    rule = Rule("r", "*", connections_per_minute_max=3, messages_per_connection_max=1)
    world = one(rule)
    world.put("a.test", 10)
    world.run(30)
    assert len(world.opened) == 3
    assert world.waits() == {WaitReason.RULE_CONNECTION_RATE: 1}
    world.run(200)
    world.check_quotas()
    world.check_all_done()


def test_a_ramp_adds_one_connection_after_the_other() -> None:
    world = one(Rule("r", "*", ramp_up_s=10, connections_max=5))
    world.servers["192.0.2.1"].message_s = 1.0
    world.put("a.test", 300)
    world.run(65)
    times = [at_s - START_S for at_s, _ in world.opened]
    assert len(times) == 5
    assert all(later - earlier >= 10 for earlier, later in pairwise(times))


def test_a_volume_is_kept_to_whatever_was_booked_for_it() -> None:
    world = one(Rule("r", "*", bytes_per_minute_max=10 * MESSAGE_BYTES))
    world.put("a.test", 60)
    world.run(30)
    assert 1 <= len(world.sent) <= 10
    assert world.waits() == {WaitReason.RULE_BYTES: 1}
    world.run(600)
    world.check_quotas()
    world.check_all_done()


def test_a_message_larger_than_the_volume_goes_alone() -> None:
    world = one(Rule("r", "*", bytes_per_minute_max=100))
    world.put("a.test", 3)
    world.run(300)
    world.check_all_done()
    times = [sent.at_s for sent in world.sent]
    assert all(later - earlier >= 60 for earlier, later in pairwise(times))


def test_a_provider_bounds_all_its_rules_together() -> None:
    provider = Provider("large", connections_max=3, messages_per_minute_max=40)
    rules = [Rule(name, f"mx.{name}.test", provider=provider, connections_max=2) for name in "ab"]
    world = World(rules, sites={"a.test": A, "b.test": B})
    world.put("a.test", 100)
    world.put("b.test", 100)
    world.run(50)
    assert len(world.sent) == 40
    finish(world)
    world.check_quotas()
    assert world.open_max["limit provider large|1"] <= 3


def test_quiet_hours_let_nothing_begin() -> None:
    begins_s = START_S + UNIX_OFFSET_S
    minute = int(begins_s // 60) % 1440
    quiet = QuietHours(spans=(((minute - 10) % 1440, (minute + 30) % 1440),))
    world = one(Rule("r", "*", quiet_hours=quiet))
    world.put("a.test", 5)
    world.run(60)
    assert not world.opened
    assert world.waits() == {WaitReason.QUIET_HOURS: 1}
    finish(world, 1_900)
    assert world.sent[0].at_s + UNIX_OFFSET_S >= (begins_s // 60 + 29) * 60


def warm_up(*ladder: int, egress_id: int = 2) -> WarmUp:
    starts_s = int((START_S + UNIX_OFFSET_S) // DAY_S) * DAY_S
    return WarmUp(name="new", egress_ids=((egress_id, egress_id),), starts_unix_s=starts_s, ladders=(("*", ladder),))


def test_what_a_new_address_may_not_send_yet_leaves_from_the_others() -> None:
    pool = EgressPool("main", (egress(1), egress(2)))
    world = World([Rule("r", "*")], sites={"a.test": A}, pools=[pool], warm_ups=[warm_up(10, 50)])
    world.put("a.test", 200)
    finish(world, 60)  # nothing waits for the plan
    assert world.sent_by(lambda sent: sent.egress.name) == {"e1": 190, "e2": 10}
    world.run(START_S + DAY_S - world.now_s)
    world.put("a.test", 2_000)
    finish(world, 60)
    of_day = world.sent_by(lambda sent: (sent.egress.name, sent.at_s > START_S + 60))
    assert 40 <= of_day["e2", True] <= 50


def test_a_plan_holds_nothing_up_where_all_addresses_are_new() -> None:
    world = World([Rule("r", "*")], sites={"a.test": A}, warm_ups=[warm_up(10, egress_id=1)])
    world.put("a.test", 30)
    finish(world, 60)


def test_after_its_last_day_an_address_is_warm() -> None:
    world = World([Rule("r", "*")], sites={"a.test": A}, warm_ups=[warm_up(10, egress_id=1)])
    world.run(2 * DAY_S)
    world.put("a.test", 100)
    finish(world, 60)
    assert not any(limit.quota for limit in world.schedule.limits())


def by_host(world: World) -> Counter[object]:
    return world.sent_by(lambda sent: sent.mx_host)


def two_hosts(next_mx: NextMx) -> World:
    rule = Rule("r", "mx1.*", next_mx=next_mx, connections_max=1)
    world = World([rule, Rule("s", "mx2.*", next_mx=next_mx)], sites={"a.test": TWO_HOSTS})
    world.servers["192.0.2.1"].message_s = 0.5
    return world


def test_the_less_preferred_host_is_used_when_the_rule_says() -> None:
    for next_mx, used in ((NextMx.WHEN_FAILING, False), (NextMx.WHEN_FULL, True), (NextMx.NEVER, False)):
        world = two_hosts(next_mx)
        world.put("a.test", 100)
        finish(world, 300)
        assert ("mx2.a.test" in by_host(world)) is used, next_mx


def test_a_host_that_fails_is_passed_by_unless_the_rule_forbids_it() -> None:
    for next_mx, sent in ((NextMx.WHEN_FAILING, 3), (NextMx.NEVER, 0)):
        world = two_hosts(next_mx)
        world.servers["192.0.2.1"].is_down = True
        world.put("a.test", 3)
        world.run(20)
        assert len(world.sent) == sent, next_mx


def test_recipients_of_domains_that_rules_tell_apart_never_share_a_session() -> None:
    rules = [Rule("vip", "*", domains="vip.test", messages_per_minute_max=5), Rule("all", "*", connections_max=2)]
    world = World(rules, sites={"vip.test": A, "a.test": A})
    world.put("vip.test", 20)
    world.put("a.test", 20)
    world.run(20)
    assert world.sent_by(lambda sent: sent.domain) == {"vip.test": 5, "a.test": 20}
    sessions = {sent.session: sent.domain for sent in world.sent}
    assert all(sessions[sent.session] == sent.domain for sent in world.sent)


def test_when_rules_tell_other_domains_apart_what_waits_comes_in_anew() -> None:
    world = World([Rule("all", "*", messages_per_hour_max=12)], sites={"vip.test": A, "a.test": A})
    world.put("vip.test", 20)
    world.put("a.test", 20)
    world.run(5)
    assert len(world.sent) == 1
    world.rules = RuleSet([Rule("vip", "*", domains="vip.test"), Rule("all", "*", messages_per_hour_max=12)])
    world.schedule.set_rules(world.rules, world.now_s)
    world.run(320)
    assert world.sent_by(lambda sent: sent.domain) == {"vip.test": 20, "a.test": 1}


def test_rules_that_look_at_the_site_hold_for_it_alone() -> None:
    rules = [Rule("r", "*", sites=A.key, messages_per_minute_max=5), Rule("all", "*")]
    world = World(rules, sites={"a.test": A, "b.test": B})
    world.put("a.test", 20)
    world.put("b.test", 20)
    world.run(20)
    assert world.sent_by(lambda sent: sent.domain) == {"a.test": 5, "b.test": 20}


def test_tls_of_a_session_is_what_rule_policy_and_records_ask_for() -> None:
    record = ((3, 1, 1, b"digest"),)
    secured = site((10, "mx.a.test", ["192.0.2.1"]))
    host = msgspec.structs.replace(secured.hosts[0], authorities=record)
    with_dane = Site(secured.key, (host,))
    with_policy = msgspec.structs.replace(secured, is_verified=True)
    for rule, of_site, expected, authorities in (
        (Rule("r", "*"), secured, Tls.OPPORTUNISTIC, ()),
        (Rule("r", "*"), with_dane, Tls.REQUIRED, record),
        (Rule("r", "*", dane=False), with_dane, Tls.OPPORTUNISTIC, ()),
        (Rule("r", "*", tls=Tls.DISABLED), with_dane, Tls.DISABLED, ()),
        (Rule("r", "*"), with_policy, Tls.VERIFIED, ()),
        (Rule("r", "*", mta_sts=False), with_policy, Tls.OPPORTUNISTIC, ()),
        (Rule("r", "*", tls=Tls.VERIFIED), secured, Tls.VERIFIED, ()),
    ):
        world = World([rule], sites={"a.test": of_site})
        world.put("a.test", 1)
        world.run(1)
        session = world.opened[0][1]
        assert (session.tls, session.hop.authorities) == (expected, authorities)


def test_figures_tell_what_is_used_of_each_limit() -> None:
    rule = Rule("r", "*", scope=Scope.SHARED, connections_max=4, messages_per_minute_max=50, connections_per_hour_max=9)
    world = both(rule)
    world.put("a.test", 30)
    world.run(5)
    (limit,) = world.schedule.limits()
    figures = {figure.kind: figure for figure in limit.figures(world.now_s)}
    assert (figures["m60"].used, figures["m60"].most, figures["m60"].share) == (30, 50, 50)
    assert (figures["c"].most, figures["o3600"].used) == (4, len(world.opened))


def test_who_waits_for_credits_goes_when_they_are_back_and_not_when_those_before_it_are_done() -> None:
    """Of two credits that come back one after the other, the first takes one: the alarm that woke it rings no more."""
    sites = {f"{name}.test": site((10, f"mx.{name}.test", [f"192.0.2.{at}"])) for at, name in enumerate("abcd", 1)}
    world = World([Rule("r", "*", scope=Scope.SHARED, messages_per_minute_max=2)], sites=sites)
    world.servers["192.0.2.1"].message_s = 2.5
    world.servers["192.0.2.3"].message_s = 600.0
    for name in "abcd":
        world.put(f"{name}.test", 1)
    world.run(70)
    assert {sent.peer for sent in world.sent} == {"192.0.2.1", "192.0.2.2", "192.0.2.4"}
