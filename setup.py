"""The hot path as C extensions (``make compile``): the same sources, compiled by mypyc, at half the CPU time.

Without MTA_COMPILE=1 nothing is compiled, and everything runs all the same. What is listed here does work for every
message and is typed strictly. It decodes nothing: msgspec reads annotations while a program runs, and in a compiled
module they are gone. docs/performance.md tells what this gains, and what the C compiler's levels cost.
"""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# Each group is one library. Calls in it are calls in C; so are those from group to group, through a table. Groups are
# compiled side by side, the largest first, and only those again whose C has changed. A group imports from none that
# imports from it.
GROUPS = {
    "mta.compiled_traffic": (
        "mta/traffic/egress.py",
        "mta/traffic/alarms.py",
        "mta/traffic/backoff.py",
        "mta/traffic/refusals.py",
        "mta/traffic/quota.py",
        "mta/traffic/fair.py",
        "mta/traffic/line.py",
        "mta/traffic/gates.py",
        "mta/traffic/limit.py",
        "mta/traffic/path.py",
        "mta/traffic/sources.py",
        "mta/traffic/counters.py",
        "mta/traffic/capacity.py",
        "mta/traffic/sessions.py",
        "mta/traffic/reach.py",
        "mta/traffic/machine_rests.py",
        "mta/traffic/ready.py",
        "mta/traffic/lanes.py",
        "mta/traffic/surplus.py",
        "mta/traffic/actions.py",
        "mta/traffic/waits.py",
        "mta/traffic/host_sessions.py",
        "mta/traffic/session_table.py",
        "mta/traffic/connections.py",
        "mta/traffic/schedule.py",
    ),
    "mta.compiled_sending": (
        "mta/smtp/envelope.py",
        "mta/smtp/commands.py",
        "mta/smtp/reply.py",
        "mta/smtp/transaction.py",
        "mta/smtp/transparency.py",
        "mta/smtp/order.py",
        "mta/smtp/session_limits.py",
        "mta/smtp/send_cursor.py",
        "mta/smtp/dialogue.py",
        "mta/message/dkim.py",
        "mta/message/headers.py",
        "mta/message/layout.py",
        "mta/message/render.py",
        "mta/message/signing.py",
        "mta/message/values.py",
        "mta/message/verp.py",
        "mta/failure/triage.py",
        "mta/outcomes/line.py",
        "mta/session/link.py",
        "mta/child/session_watch.py",
        "mta/child/carrier.py",
        "mta/child/letters.py",
        "mta/child/tally.py",
        "mta/child/worker.py",
    ),
    "mta.compiled_simulation": (
        "mta/simulation/dice.py",
        "mta/simulation/books.py",
        "mta/simulation/backlog.py",
        "mta/simulation/tally.py",
        "mta/simulation/provider.py",
        "mta/simulation/reactions.py",
        "mta/simulation/judge.py",
        "mta/simulation/node.py",
        "mta/simulation/engine.py",
    ),
    "mta.compiled_node": (
        "mta/dns/cache.py",
        "mta/dns/message.py",
        "mta/dns/transport.py",
        "mta/master/collector.py",
        "mta/master/dispatch.py",
    ),
}
LEVEL = "1"  # higher ones take longer, and the drain gains nothing by them: docs/performance.md
IS_TO_COMPILE = os.environ.get("MTA_COMPILE") == "1"
_BUILDING = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install"}


def requirements() -> list[str]:
    """Beside those of pyproject.toml: mypyc must see what the sources import, or it takes all of that for untyped."""
    if not IS_TO_COMPILE:
        return []
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(one for one in project["optional-dependencies"]["dev"] if "stubs" in one)]


def extensions() -> list[Extension]:
    # Whoever asks only for the requirements has not got them yet.
    if not IS_TO_COMPILE or not _BUILDING & set(sys.argv):
        return []
    from mypyc.build import mypycify

    sources = [name for group in GROUPS.values() for name in group]
    groups = [([*group], name) for name, group in GROUPS.items()]
    made = mypycify(sources, separate=groups, opt_level=LEVEL, debug_level="0")
    # The libraries first, as they take long; what stands for each module beside them is a few lines.
    libraries = {f"{name}__mypyc": at for at, name in enumerate(GROUPS)}
    return sorted(made, key=lambda one: libraries.get(one.name, len(libraries)))


class BuildSideBySide(build_ext):
    """As many compilers as processors; and beside the sources nothing that an older list left there."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.parallel = os.cpu_count()

    def run(self) -> None:
        if self.inplace:
            here = {Path(self.get_ext_filename(self.get_ext_fullname(one.name))) for one in self.extensions}
            for path in Path("mta").rglob("*.so"):
                if path not in here:
                    path.unlink()
        super().run()


class BuildWithConfig(build_py):
    """A wheel has the shipped rules and the example configuration in ``mta/config``; a checkout has them beside it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        to = Path(self.build_lib) / "mta" / "config"
        to.mkdir(parents=True, exist_ok=True)
        for path in sorted((Path(__file__).parent / "config").glob("*.toml")):
            shutil.copyfile(path, to / path.name)


setup(
    ext_modules=extensions(),
    setup_requires=requirements(),
    cmdclass={"build_py": BuildWithConfig, "build_ext": BuildSideBySide},
)
