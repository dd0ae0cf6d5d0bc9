"""Random servers against the real child: ``python -m tests.fuzz.remote_servers --dialogues 100000``.

Each run of a child has a number of its own, from ``--seed`` on; it says the number of one that breaks, with the whole
dialogue, and ``--seed NUMBER --dialogues 1`` plays it again. `tests.support.random_dialogues` tells what is checked.
MTA_INTERPRETED=1 takes the sources where compiled modules are beside them.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections import Counter

from mta.telemetry.logs import configure
from tests.support.random_dialogues import Broken, journals_directory, play


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that breaks")
    options = parser.parse_args()
    configure("critical")
    seed = random.SystemRandom().randrange(2**40) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    directory = journals_directory()
    end_s = time.monotonic() + options.minutes * 60
    dialogues = broken = said = 0
    outcomes: Counter[str] = Counter()
    observed: Counter[str] = Counter()
    try:
        while dialogues < options.dialogues and time.monotonic() < end_s:
            try:
                run, sessions = play(seed, directory)
                outcomes.update(run.outcomes)
                observed.update(frame.fact for frame in run.observed)
            except Broken as error:
                print(f"--seed {seed}: {error}", flush=True)
                broken += 1
                sessions = 1
                if not options.keep_going:
                    break
            seed += 1
            dialogues += sessions
            if dialogues // 10_000 > said:
                said = dialogues // 10_000
                print(f"{dialogues} dialogues", flush=True)
    finally:
        shutil.rmtree(directory)
    print(f"{dialogues} dialogues, {broken} broken; outcomes {dict(outcomes)}; observed {dict(observed)}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
