"""Alarms ring once, at the earliest time that was set, and leave no litter."""

from __future__ import annotations

import math

from mta.traffic.alarms import Alarms, Timed


def test_the_earliest_of_several_times_rings() -> None:
    alarms, timed = Alarms(), Timed()
    for at_s in (30.0, 10.0, 20.0, math.inf):
        alarms.set(timed, at_s)
    assert alarms.next_s() == 10.0
    assert list(alarms.due(9.9)) == []
    assert list(alarms.due(100.0)) == [timed]
    assert alarms.next_s() == math.inf


def test_a_cancelled_alarm_does_not_ring_and_can_be_set_anew() -> None:
    alarms, timed = Alarms(), Timed()
    alarms.set(timed, 10.0)
    alarms.cancel(timed)
    alarms.cancel(timed)
    assert alarms.next_s() == math.inf
    alarms.set(timed, 20.0)
    assert list(alarms.due(15.0)) == []
    assert list(alarms.due(20.0)) == [timed]
    assert len(alarms) == 0


def test_those_due_at_one_time_ring_in_the_order_of_setting() -> None:
    alarms = Alarms()
    many = [Timed() for _ in range(10)]
    for timed in many:
        alarms.set(timed, 5.0)
    assert list(alarms.due(5.0)) == many


def test_an_alarm_set_in_the_past_rings_next_time_not_for_ever() -> None:
    alarms, timed = Alarms(), Timed()
    alarms.set(timed, 1.0)
    for _ in alarms.due(10.0):
        alarms.set(timed, 2.0)
    assert alarms.next_s() == 2.0
    assert alarms.due(10.0) == [timed]


def test_memory_follows_the_alarms_that_are_set() -> None:
    alarms, stays = Alarms(), Timed()
    alarms.set(stays, 1e9)
    for number in range(10_000):
        timed = Timed()
        alarms.set(timed, 1e6 + number)
        alarms.cancel(timed)
    assert len(alarms) == 1
    assert len(alarms._heap) < 100
    assert alarms.next_s() == 1e9
