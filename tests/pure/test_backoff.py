from __future__ import annotations

from mta.traffic.backoff import PathBackoff


def delays(path: PathBackoff, times: int) -> list[float]:
    now, found = 1000.0, []
    for _ in range(times):
        until = path.failed(now)
        found.append(until - now)
        now = until
    return found


def test_a_path_that_keeps_failing_is_left_alone_twice_as_long_each_time() -> None:
    assert delays(PathBackoff(), 10) == [4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


def test_it_is_unavailable_exactly_until_then() -> None:
    path = PathBackoff()
    assert path.is_available(0.0)
    path.failed(1000)
    assert not path.is_available(1003.9)
    assert path.is_available(1004)


def test_connections_that_fail_together_count_once() -> None:
    path = PathBackoff()
    for _ in range(10):
        path.failed(1000)
    path.failed(1003)
    assert path.until_s == 1004


def test_a_success_forgets_everything() -> None:
    path = PathBackoff()
    delays(path, 6)
    path.succeeded()
    assert path.is_available(0)
    assert path.is_forgotten(0)
    assert path.failed(5000) == 5004


def test_failures_fade_by_half_for_each_quiet_period() -> None:
    path = PathBackoff()
    delays(path, 6)
    free_at = path.until_s
    assert path.failures(free_at + 599) == 6
    assert path.failures(free_at + 600) == 3
    assert path.failures(free_at + 1200) == 1
    assert path.failures(free_at + 1800) == 0
    assert path.failures(free_at + 1e12) == 0
    assert path.failed(free_at + 600) == free_at + 600 + 32


def test_a_path_is_forgotten_once_it_is_as_good_as_new() -> None:
    path = PathBackoff()
    path.failed(1000)
    assert not path.is_forgotten(1004)
    assert path.is_forgotten(1604)


def test_its_first_failure_counts_also_early_on_the_clock() -> None:
    assert PathBackoff().failed(0.0) == 4
    assert PathBackoff().failed(-50.0) == -46


def test_a_year_of_failures_does_not_overflow() -> None:
    path = PathBackoff()
    assert set(delays(path, 5000)[9:]) == {600}
