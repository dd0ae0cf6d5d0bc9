from __future__ import annotations

import math

import pytest

from mta.model.errors import LocalFault
from mta.traffic.quota import HourlyQuota

T = 1_800_000_000.0  # a bucket's start


def send(quota: HourlyQuota, n: int, at_s: float) -> None:
    quota.take(n)
    quota.report(n, at_s)


def test_ten_thousand_an_hour_are_833_a_slice() -> None:
    assert HourlyQuota(10_000).available(T) == 833


def test_a_used_slice_returns_when_its_bucket_has_left_the_window() -> None:
    quota = HourlyQuota(1200)
    send(quota, 100, T + 3)
    assert quota.available(T + 309.9) == 0
    assert quota.next_at(T + 5) == T + 310
    assert quota.available(T + 310) == 100
    assert quota.next_at(T + 310) == T + 310


def test_messages_in_flight_hold_their_credit_however_long_they_fly() -> None:
    quota = HourlyQuota(1200)
    quota.take(100)
    assert quota.available(T + 100_000) == 0
    assert quota.next_at(T + 100_000) == math.inf


def test_what_was_never_attempted_costs_nothing() -> None:
    quota = HourlyQuota(1200)
    quota.take(100)
    quota.give_back(60)
    assert quota.available(T) == 60
    quota.report(40, T)
    assert quota.available(T) == 60
    assert quota.used_in_hour(T) == 40


def test_five_an_hour_go_one_a_slice_until_the_hour_is_used() -> None:
    quota = HourlyQuota(5)
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
    quota = HourlyQuota(13)  # one a slice
    for i in range(13):
        quota.charge(1, T + i)
    assert quota.next_at(T + 20) == T + 3660


def test_a_tighter_limit_holds_at_once_and_remembers_what_was_spent() -> None:
    quota = HourlyQuota(12_000)
    send(quota, 500, T)
    quota.set_limit(1_200)
    assert quota.available(T + 309) == 0
    quota.set_limit(12_000)
    assert quota.available(T + 309) == 500
    quota.set_limit(1_200)
    assert quota.available(T + 310) == 100


def test_a_wider_limit_gives_only_the_difference() -> None:
    quota = HourlyQuota(1_200)
    send(quota, 100, T)
    quota.set_limit(2_400)
    assert quota.available(T) == 100


def test_counters_survive_a_restart() -> None:
    before = HourlyQuota(1200)
    send(before, 70, T)
    send(before, 20, T + 25)
    stored = before.buckets_since(0)
    assert stored == [(int(T // 10), 70), (int(T // 10) + 2, 20)]
    after = HourlyQuota(1200)
    after.load(reversed(stored), T + 60)
    assert after.available(T + 60) == 10
    assert after.next_at(T + 60) == T + 60
    assert after.buckets_since(int(T // 10) + 1) == stored[1:]
    assert after.used_in_hour(T + 3659) == 90
    assert after.is_idle(T + 3660)


def test_stored_buckets_of_the_future_count_as_of_now() -> None:
    quota = HourlyQuota(1200)
    quota.load([(int(T // 10) + 10_000, 100)], T)
    assert quota.next_at(T) == T + 310


def test_a_clock_set_back_returns_no_credit_early() -> None:
    quota = HourlyQuota(1200)
    send(quota, 50, T + 1000)
    send(quota, 50, T)
    assert quota.available(T + 1309) == 0
    assert quota.available(T + 1310) == 100


@pytest.mark.parametrize("wrong", [lambda q: q.take(101), lambda q: q.report(1, T), lambda q: q.give_back(1)])
def test_credits_that_do_not_exist_are_a_fault_of_ours(wrong: object) -> None:
    with pytest.raises(LocalFault):
        wrong(HourlyQuota(1200))  # type: ignore[operator]


def test_no_messages_an_hour_is_not_a_quota() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        HourlyQuota(0)


def test_memory_stays_small_however_much_is_sent() -> None:
    quota = HourlyQuota(10**9)
    for second in range(0, 20_000, 3):
        quota.charge(1000, T + second)
    assert len(quota._slice._buckets) <= 32
    assert len(quota._hour._buckets) <= 62
