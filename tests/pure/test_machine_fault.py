"""Errors of this machine: which they are, what rests, who goes on, and that nobody is charged."""

from __future__ import annotations

import errno
import math

import pytest

from mta.model.egress import Egress, EgressPool
from mta.model.machine_fault import FaultCause, RestUnit, SystemCall, find_fault, is_of_machine
from mta.model.waiting import WaitReason
from mta.traffic.actions import Bounds
from mta.traffic.explain_now import lane_now
from mta.traffic.machine_faults import FORGOTTEN_S, FaultBook
from mta.traffic.rules import Rule
from mta.traffic.sessions import Session
from mta.traffic.sources import REST_S_MAX, Source
from tests.support.schedule_model import A, B, egress, site
from tests.support.schedule_world import START_S, UNIX_OFFSET_S, World, finish

ABSENT = (SystemCall.BIND, errno.EADDRNOTAVAIL)
NO_ROUTE = (SystemCall.CONNECT, errno.ENETUNREACH)
OUT_OF_FILES = (SystemCall.SOCKET, errno.EMFILE)
DUAL = site((10, "mx.dual.test", ["192.0.2.9", "2001:db8::9"]))


@pytest.mark.parametrize(
    ("call", "number", "cause", "unit"),
    [
        (SystemCall.BIND, errno.EADDRNOTAVAIL, FaultCause.ADDRESS_ABSENT, RestUnit.FAMILY),
        (SystemCall.CONNECT, errno.ENETUNREACH, FaultCause.NO_ROUTE, RestUnit.FAMILY),
        (SystemCall.CONNECT, errno.EHOSTUNREACH, FaultCause.NO_ROUTE, RestUnit.FAMILY),
        (SystemCall.CONNECT, errno.EINVAL, FaultCause.NO_ROUTE, RestUnit.FAMILY),
        (SystemCall.CONNECT, errno.EACCES, FaultCause.FORBIDDEN, RestUnit.FAMILY),
        (SystemCall.CONNECT, errno.EPERM, FaultCause.FORBIDDEN, RestUnit.FAMILY),
        (SystemCall.CONNECT, errno.EADDRNOTAVAIL, FaultCause.NO_PORTS, RestUnit.PATH),
        (SystemCall.SOCKET, errno.EAFNOSUPPORT, FaultCause.NO_FAMILY, RestUnit.FAMILY),
        (SystemCall.SOCKET, errno.EMFILE, FaultCause.NO_FILES, RestUnit.CHILD),
        (SystemCall.SOCKET, errno.ENFILE, FaultCause.NO_FILES, RestUnit.CHILD),
        (SystemCall.CONNECT, errno.ENOBUFS, FaultCause.NO_MEMORY, RestUnit.CHILD),
        (SystemCall.SOCKET, errno.ENOMEM, FaultCause.NO_MEMORY, RestUnit.CHILD),
        (SystemCall.OPEN, errno.ENOENT, FaultCause.NO_AUTHORITIES, RestUnit.PATH),
        (SystemCall.OPEN, errno.EMFILE, FaultCause.NO_FILES, RestUnit.CHILD),
        (SystemCall.BIND, errno.ENODEV, FaultCause.OTHER, RestUnit.FAMILY),
    ],
)
def test_what_an_error_means_goes_by_its_call_and_its_errno(
    call: SystemCall, number: int, cause: FaultCause, unit: RestUnit
) -> None:
    assert is_of_machine(call, number)
    fault = find_fault(call, number, has_source=True)
    assert (fault.cause, fault.unit) == (cause, unit)
    assert fault.what
    assert fault.remedy


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ECONNRESET])
def test_a_refusal_at_once_is_the_peers_though_it_be_on_this_machine(number: int) -> None:
    assert not is_of_machine(SystemCall.CONNECT, number)


def world_of(*egresses: Egress, **sites: object) -> World:
    given = {"a.test": A, "b.test": B, "dual.test": DUAL}
    return World([Rule("r", "*", connections_max=4)], sites=given, pools=[EgressPool("main", egresses)])


def first(number: int, **addresses: str) -> Egress:
    return egress(number, **addresses)


def is_charged(world: World) -> bool:
    return any(action.is_attempt for _, action in world.given_back)


def test_an_absent_address_rests_its_egress_and_the_other_carries_all() -> None:
    world = world_of(first(1, source_ipv4="198.51.100.1"), first(2, source_ipv4="198.51.100.2"))
    world.machine = lambda session: ABSENT if session.group.egress.id == 1 else None
    world.put("a.test", 300)
    world.put("b.test", 300)
    finish(world)
    assert {sent.egress.id for sent in world.sent} == {2}
    assert not is_charged(world)
    [fault] = world.schedule.faults.begun
    assert (fault.egress, fault.cause) == ("e1", FaultCause.ADDRESS_ABSENT)
    assert fault.what == "egress e1: its address 198.51.100.1 is not on this machine"
    assert not world.schedule.faults.over


def test_without_another_way_recipients_wait_uncharged_for_hours_and_go_when_it_is_over() -> None:
    world = world_of(first(1, source_ipv4="198.51.100.1"))
    world.machine = lambda session: ABSENT
    world.put("a.test", 200)
    world.put("b.test", 200)
    world.run(3 * 3600.0)
    assert not is_charged(world)
    assert not world.sent
    assert sum(world.states().values()) == 400
    # One session tries a minute, however many sites wait; before that the pauses grow.
    times = [at_s for at_s, _ in world.opened]
    assert world.most_in(REST_S_MAX - 1, [at_s for at_s in times if at_s > START_S + 300]) == 1
    wait = world.schedule.machine_wait(world.choosers["main"].pool.egresses, world.now_s)
    assert wait is not None
    assert wait.reason is WaitReason.MACHINE
    assert "ip address add" in wait.detail
    assert len(world.schedule.faults.begun) == 1

    world.machine = lambda session: None
    over_s = world.now_s
    finish(world)
    assert len(world.sent) == 400
    assert min(sent.at_s for sent in world.sent) < over_s + REST_S_MAX + 1
    assert len(world.schedule.faults.over) == 1
    assert not world.schedule.faults.open


def test_no_route_in_one_family_leaves_the_other_at_work_and_no_path_behind() -> None:
    world = world_of(first(1))
    world.machine = lambda session: NO_ROUTE if ":" in session.hop.peer else None
    world.put("dual.test", 400)
    finish(world)
    assert {sent.peer for sent in world.sent} == {"192.0.2.9"}
    assert not is_charged(world)


def test_a_peer_without_a_route_is_that_peers_while_others_are_reached() -> None:
    world = world_of(first(1))
    world.put("a.test", 50)
    world.run(2.0)
    assert world.sent
    world.machine = lambda session: NO_ROUTE if session.hop.peer == "192.0.2.2" else None
    world.put("a.test", 500)
    world.put("b.test", 50)
    world.run(30.0)
    assert sum(sent.peer == "192.0.2.1" for sent in world.sent) == 550
    assert world.lane("b.test").wait is not None
    assert world.lane("b.test").wait.reason is WaitReason.MACHINE  # type: ignore[union-attr]
    assert not is_charged(world)
    assert world.schedule.machine_wait(world.choosers["main"].pool.egresses, world.now_s) is None
    world.machine = lambda session: None
    finish(world)
    assert not world.schedule.faults.open


def test_a_host_that_is_really_down_is_deferred_though_the_other_family_has_no_route() -> None:
    world = world_of(first(1))
    world.machine = lambda session: NO_ROUTE if ":" in session.hop.peer else None
    world.servers["192.0.2.9"].is_down = True
    world.comes_back = False
    world.put("dual.test", 20)
    world.run(300.0)
    assert world.states() == {"deferred": 20}
    assert "192.0.2.9 refused" in world.given_back[0][1].cause


def test_a_child_out_of_files_keeps_what_it_has_and_the_others_take_the_rest() -> None:
    world = World(
        [Rule("r", "*", connections_max=40)], sites={"a.test": A}, children=2, bounds=Bounds(sessions_per_child_max=20)
    )
    full = min(world.children)

    def machine(session: Session) -> tuple[SystemCall, int] | None:
        is_open = [connection.is_open for connection in world.children[full].connections.values()]
        return OUT_OF_FILES if session.child == full and sum(is_open) >= 3 else None

    world.machine = machine
    world.servers["192.0.2.1"].message_s = 0.5
    world.put("a.test", 3_000)
    world.run(20.0)
    held = {number: len(child.connections) for number, child in world.children.items()}
    assert held[full] == 3
    assert held[max(held)] == 20
    tried = [at_s for at_s, session in world.opened if session.child == full and at_s > START_S + 10]
    assert not tried, "it has found out how many it may hold"
    finish(world)
    assert not is_charged(world)
    [fault] = world.schedule.faults.begun
    assert (fault.egress, fault.cause) == ("", FaultCause.NO_FILES)


def test_all_children_out_of_memory_hold_everything_until_one_session_gets_through() -> None:
    world = world_of(first(1))
    world.machine = lambda session: (SystemCall.SOCKET, errno.ENOBUFS)
    world.put("a.test", 100)
    world.run(200.0)
    wait = world.lane("a.test").wait
    assert wait is not None
    assert wait.reason is WaitReason.MACHINE
    assert "memory" in wait.detail
    world.machine = lambda session: None
    finish(world)
    assert len(world.sent) == 100
    assert not is_charged(world)
    assert not world.schedule.faults.open


def test_explain_names_the_egress_and_the_remedy() -> None:
    world = world_of(first(1, source_ipv4="198.51.100.1"), first(2, source_ipv4="198.51.100.2"))
    world.machine = lambda session: ABSENT
    world.put("a.test", 20)
    world.run(5.0)
    lane = world.lane("a.test")
    told = lane_now(world.schedule, world.rules, lane, world.now_s, world.now_s + UNIX_OFFSET_S)
    assert told.reason == "machine"
    for one in told.egresses:
        assert one.reason == "machine"
        assert f"egress {one.egress}: its address 198.51.100." in one.detail
        assert "ip address add" in one.detail


def test_what_a_session_would_have_counted_as_begun_is_given_back() -> None:
    world = World([Rule("r", "*", connections_per_minute_max=2)], sites={"a.test": A})
    world.machine = lambda session: ABSENT if world.now_s < START_S + 20 else None
    world.put("a.test", 1)
    world.run(40.0)
    assert len(world.sent) == 1
    assert len(world.opened) > 2


def test_a_session_ordered_before_a_failure_ends_the_rest_only_when_its_pause_is_over() -> None:
    source = Source(first(1), is_ipv6=False)
    until_s = source.failed("no route", 10.0)
    assert not source.worked(9.0, 10.5), "it may have been connected before"
    assert not source.recovered(until_s - 0.1)
    assert source.recovered(until_s)
    assert source.is_open(until_s)
    # Heard before the failure only: nothing is known.
    until_s = source.failed("no route", 20.0)
    assert not source.recovered(until_s + 60.0)
    assert source.worked(until_s, until_s + 1.0)


def test_a_fault_that_nobody_meets_any_more_is_over_after_an_hour() -> None:
    book = FaultBook()
    book.failed(find_fault(*NO_ROUTE, has_source=False), "e1", "e1 IPv6", "what", "remedy", 0.0)
    book.failed(find_fault(*NO_ROUTE, has_source=False), "e1", "e1 IPv4", "what", "remedy", 60.0)
    assert len(book.begun) == 1
    book.worked("e1 IPv6")
    assert not book.over, "it goes on over IPv4"
    book.forget(60.0 + FORGOTTEN_S)
    assert not book.over
    book.forget(61.0 + FORGOTTEN_S)
    assert [fault.met for fault in book.over] == [2]
    assert not book.open
    assert math.isfinite(book.over[0].since_s)
