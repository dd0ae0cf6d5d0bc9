from __future__ import annotations

import math

import pytest

from mta.model.errors import LocalFault
from mta.traffic.limits import Ceiling, Limits
from mta.traffic.quota import Quota, hourly

T = 1_800_000_000.0  # a bucket's start


def an_hour(most: int) -> tuple[Ceiling, ...]:
    return Limits(messages_per_hour_max=most).message_ceilings()


def send(quota: Quota, n: int, at_s: float) -> None:
    quota.take(n)
    quota.report(n, at_s)


def test_ten_thousand_an_hour_are_833_a_slice() -> None:
    assert hourly(10_000).available(T) == 833


def test_a_used_slice_returns_when_its_bucket_has_left_the_window() -> None:
    quota = hourly(1200)
    send(quota, 100, T + 3)
    assert quota.available(T + 309.9) == 0
    assert quota.next_at(T + 5) == T + 310
    assert quota.available(T + 310) == 100
    assert quota.next_at(T + 310) == T + 310


def test_messages_in_flight_hold_their_credit_however_long_they_fly() -> None:
    quota = hourly(1200)
    quota.take(100)
    assert quota.available(T + 100_000) == 0
    assert quota.next_at(T + 100_000) == math.inf


def test_what_was_never_attempted_costs_nothing() -> None:
    quota = hourly(1200)
    quota.take(100)
    quota.give_back(60)
    assert quota.available(T) == 60
    quota.report(40, T)
    assert quota.available(T) == 60
    assert quota.used_in(3600, T) == 40


def test_five_an_hour_go_one_a_slice_until_the_hour_is_used() -> None:
    quota = hourly(5)
    sent = []
    now = T
    for _ in range(12):
        assert quota.available(now) == 1
        send(quota, 1, now)
        sent.append(now - T)
        now = quota.next_at(now)
    assert sent[:5] == [0, 310, 620, 930, 1240]
    assert 3600 < sent[5] <= 3660
    assert sent[6] - sent[5] >= 300
    assert all(later - earlier > 3600 for earlier, later in zip(sent, sent[5:], strict=False))


def test_the_next_message_waits_for_the_later_of_slice_and_hour() -> None:
    quota = hourly(13)  # one a slice
    for i in range(13):
        quota.charge(1, T + i)
    assert quota.next_at(T + 20) == T + 3660


def test_a_tighter_limit_holds_at_once_and_remembers_what_was_spent() -> None:
    quota = hourly(12_000)
    send(quota, 500, T)
    quota.set_ceilings(an_hour(1_200))
    assert quota.available(T + 309) == 0
    quota.set_ceilings(an_hour(12_000))
    assert quota.available(T + 309) == 500
    quota.set_ceilings(an_hour(1_200))
    assert quota.available(T + 310) == 100


def test_a_wider_limit_gives_only_the_difference() -> None:
    quota = hourly(1_200)
    send(quota, 100, T)
    quota.set_ceilings(an_hour(2_400))
    assert quota.available(T) == 100


def test_counters_survive_a_restart() -> None:
    stored = [(int(T // 10), 70), (int(T // 10) + 2, 20)]
    after = hourly(1200)
    after.load(reversed(stored), T + 60)
    assert after.available(T + 60) == 10
    assert after.next_at(T + 60) == T + 60
    assert after.used_in(3600, T + 3659) == 90
    assert after.is_idle(T + 3660)


def test_stored_buckets_of_the_future_count_as_of_now() -> None:
    quota = hourly(1200)
    quota.load([(int(T // 10) + 10_000, 100)], T)
    assert quota.next_at(T) == T + 310


def test_a_clock_set_back_returns_no_credit_early() -> None:
    quota = hourly(1200)
    send(quota, 50, T + 1000)
    send(quota, 50, T)
    assert quota.available(T + 1309) == 0
    assert quota.available(T + 1310) == 100


@pytest.mark.parametrize("wrong", [lambda q: q.take(101), lambda q: q.report(1, T), lambda q: q.give_back(1)])
def test_credits_that_do_not_exist_are_a_fault_of_ours(wrong: object) -> None:
    with pytest.raises(LocalFault):
        wrong(hourly(1200))  # type: ignore[operator]


def test_no_messages_an_hour_is_not_a_quota() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        hourly(0)


def test_memory_stays_small_however_much_is_sent() -> None:
    quota = hourly(10**9)
    for second in range(0, 20_000, 3):
        quota.charge(1000, T + second)
    assert [len(window.counts()) <= 62 for window in quota.windows] == [True, True]


EVERY_SPAN = Limits(
    messages_per_second_max=10, messages_per_minute_max=100, messages_per_hour_max=1_200, messages_per_day_max=3_000
)


def test_of_several_spans_the_tightest_holds() -> None:
    quota = Quota(EVERY_SPAN.message_ceilings())
    assert quota.available(T) == 10
    now = T
    for already in range(0, 100, 10):
        assert quota.available(now) == 10
        send(quota, 10, now)
        assert quota.tightest(now).span_s == (1 if already < 90 else 300)
        now += 1 + 1 / 64
    assert quota.available(now) == 0  # the minute and the slice are used up
    assert quota.next_at(now) == T + 310
    assert quota.rate_per_s == 3_000 / 86_400


def test_a_span_that_a_reload_adds_knows_what_the_others_know() -> None:
    quota = hourly(1_200)
    send(quota, 60, T)
    quota.set_ceilings(EVERY_SPAN.message_ceilings())
    assert quota.used_in(60, T + 30) == 60  # as late as they can have been: the end of a bucket of 10 s
    assert quota.used_in(60, T + 72) == 0
    assert quota.used_in(86_400, T + 72) == 60


def test_a_share_bounds_every_span_that_is_named_and_shuts_the_others() -> None:
    quota = hourly(1_200)
    quota.set_shares({300: 40, 3_600: 1_200})
    assert quota.available(T) == 40
    quota.set_shares({3_600: 1_200})
    assert quota.available(T) == 0
    assert quota.next_at(T) == math.inf
    quota.set_shares(None)
    assert quota.available(T) == 100


def test_several_at_once_wait_for_as_much() -> None:
    quota = Quota((Ceiling(60, 1_000),))
    send(quota, 600, T)
    send(quota, 300, T + 30)
    assert quota.next_at(T + 30, 100) == T + 30
    assert quota.next_at(T + 30, 101) == T + 61
    assert quota.next_at(T + 30, 701) == T + 91
    assert quota.next_at(T + 30, 1_001) == math.inf
