"""A share of what ``python -m tests.fuzz.remote_servers`` plays by the hundred thousand."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.random_dialogues import journals_directory, play

# Each share is a process's: the runner deals out tests, and these take some seconds.
SHARES = 4
RUNS = 60


@pytest.fixture
def directory() -> Iterator[Path]:
    found = journals_directory()
    yield found
    shutil.rmtree(found)


@pytest.mark.parametrize("share", range(SHARES))
def test_whatever_servers_do_no_child_ends_and_each_message_is_accounted_for(share: int, directory: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(share * RUNS, (share + 1) * RUNS):
        run, _ = play(seed, directory)
        outcomes.update(run.outcomes)
    # The dice are not all on one side.
    assert {"delivered", "failed", "deferred", "returned"} <= set(outcomes)
    assert outcomes["delivered"] > 100
