"""Gates and turns: nobody is woken in vain, no chance is lost, nothing stale stays."""

from __future__ import annotations

from mta.model.waiting import Wait, WaitReason
from mta.traffic.counters import Room
from mta.traffic.gates import Gate, Turns, Waiter

WAIT = Wait(WaitReason.WINDOW, 1e9)


def room_for(places: int) -> Room:
    """A real gate for so many."""
    return Room(places)


def places(door: Room) -> int:
    assert door.sessions_max is not None
    return door.sessions_max - door.sessions


def park(turns: Turns, *gates: Gate, is_first: bool = False) -> Waiter:
    waiter = Waiter()
    turns.park(waiter, WAIT, gates, is_first=is_first)
    return waiter


def take_turns(turns: Turns, door: Room, *, can_use: set[Waiter]) -> list[Waiter]:
    """Everybody runs; who can use the door goes through, the others park at it again. Returns who ran."""
    ran = []
    while turns.runnable:
        waiter = turns.next()
        ran.append(waiter)
        assert len(ran) < 100, "a chance that nobody can use goes round"
        if waiter in can_use and places(door):
            door.sessions += 1
        else:
            turns.park(waiter, WAIT, [door], is_first=False)
        turns.pass_on(0.0)
    return ran


def test_the_first_come_is_woken_first_but_who_has_nothing_goes_before() -> None:
    turns, door = Turns(), room_for(9)
    one, two = park(turns, door), park(turns, door)
    poor = park(turns, door, is_first=True)
    turns.wake(door)
    assert take_turns(turns, door, can_use={one, two, poor}) == [poor, one, two]


def test_as_many_are_woken_as_get_through() -> None:
    turns, door = Turns(), room_for(2)
    waiters = [park(turns, door) for _ in range(5)]
    turns.wake(door)
    assert take_turns(turns, door, can_use=set(waiters)) == waiters[:2]
    assert door.waiting == 3


def test_a_chance_that_the_first_cannot_use_reaches_the_one_who_can() -> None:
    turns, door = Turns(), room_for(1)
    waiters = [park(turns, door) for _ in range(5)]
    turns.wake(door)
    assert take_turns(turns, door, can_use={waiters[3]}) == waiters[:4]
    assert places(door) == 0


def test_a_chance_that_nobody_can_use_comes_to_an_end() -> None:
    turns, door = Turns(), room_for(1)
    waiters = [park(turns, door) for _ in range(5)]
    turns.wake(door)
    assert take_turns(turns, door, can_use=set()) == waiters
    assert door.waiting == 5


def test_a_chance_outlives_the_one_who_has_nothing_to_do_any_more() -> None:
    turns, door = Turns(), room_for(1)
    gone, other = park(turns, door), park(turns, door)
    turns.wake(door)
    turns.drop(gone)
    assert turns.next() is gone
    turns.pass_on(0.0)
    assert turns.next() is other


def test_who_is_woken_by_one_gate_leaves_the_others() -> None:
    turns, door, other = Turns(), room_for(1), room_for(0)
    for _ in range(1_000):
        waiter = park(turns, door, other, door)
        assert (door.waiting, other.waiting) == (1, 1)
        turns.wake(door)
        assert (door.waiting, other.waiting) == (0, 0)
        assert waiter.wait is None
        assert turns.next() is waiter
        turns.pass_on(0.0)


def test_who_runs_anyway_is_in_line_once() -> None:
    turns, door = Turns(), room_for(1)
    waiter = park(turns, door)
    turns.run(waiter)
    turns.run(waiter)
    turns.wake(door)
    assert turns.next() is waiter
    assert not turns.runnable
