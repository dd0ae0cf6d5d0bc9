"""What one server does, or our own code does in one session, is felt in that session and nowhere else in the child."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mta.model.outcome import Status
from tests.support.dialogue_script import load
from tests.support.node import GENEROUS_RULES, World, addresses, one_host_zones, until
from tests.support.outcomes import statuses
from tests.support.postgres import Database
from tests.support.scripted_server import ScriptedServer

ROOT = Path(__file__).parents[2]
ODD_ZONES = {"odd-mx.test": {"A": ["127.0.0.1"]}, "odd0.test": {"MX": [(10, "odd-mx.test")]}} | {
    "odd1.test": {"MX": [(10, "odd-mx.test")]}
}
OFFER = "250-odd-mx.test \\ 250-PIPELINING \\ 250 LIMITS"
ODD_SERVERS = {
    "messages": f"on EHLO: {OFFER} MAILMAX=2",
    "domains": f"on EHLO: {OFFER} RCPTDOMAINMAX=1",
    "half a line": "on DATA: 354 go on\\r\\n250 for !raw",
}


@pytest.mark.parametrize("odd", ODD_SERVERS)
async def test_a_server_that_answers_a_body_at_once_ends_no_child_and_no_other_session(
    odd: str, tmp_path: Path, database: Database
) -> None:
    script = tmp_path / "odd.txt"
    script.write_text(f"# Odd: {odd}\nenvelope: a@b.test > c@d.test\n{ODD_SERVERS[odd]}\nexpect 1: accepted\n")
    zones = one_host_zones(10) | ODD_ZONES
    async with World(tmp_path, database, zones=zones) as world, ScriptedServer(load(script)) as server:
        rules = f'[[rule]]\nname = "odd"\nmx = "odd-mx.test"\nport = {server.port}\n' + GENEROUS_RULES
        node = world.node(rules=rules, children=1)
        await node.start()
        born = node.child_pids()
        to_odd = [f"u{n}@odd{n % 2}.test" for n in range(60)]
        at_odd = await world.deliver(to_odd)
        to = addresses(600)
        elsewhere = await world.deliver(to)
        assert (await world.wait_for(elsewhere)).delivered == 600
        if odd == "half a line":
            # Nobody can be delivered there: a body never goes out. It is tried again as its path's backoff says.
            await until("it was tried", lambda: len(server.sessions) >= 2)
            assert all(not session.stored for session in server.sessions)
        else:
            assert (await world.wait_for(at_odd)).delivered == 60
            stored = [each for session in server.sessions for one in session.stored for each in one.recipients]
            assert sorted(stored) == sorted(to_odd)
        assert node.child_pids() == born
        assert node.said("child died") == node.said("child has a fault and is replaced") == []
        assert world.record().recipients() == dict.fromkeys(to, 1)
        assert (await world.show(at_odd)).in_doubt == 0


BROKEN_JUDGE = """
import os
import sys

if "mta.child" in sys.orig_argv:
    from mta.failure.judge import Judge

    complete = Judge.complete

    def broken(self, decision, stage, mx_host, **named):
        if "provoke" in decision.reply.text:
            try:
                os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                raise ZeroDivisionError("provoked")
        return complete(self, decision, stage, mx_host, **named)

    Judge.complete = broken
"""
SLOW_AND_ODD = """
[[rule]]
recipient = "odd@*"
step = "rcpt"
code = 550
text = "5.1.1 provoke"
[[rule]]
step = "dot"
delay_ms = 3000
"""


async def test_a_fault_in_one_session_makes_no_other_sites_message_doubtful(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BROKEN_JUDGE.format(marker=str(tmp_path / "broken")))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")
    zones = one_host_zones(10) | {"odd-mx.test": {"A": ["127.0.0.1"]}, "odd.test": {"MX": [(10, "odd-mx.test")]}}
    async with World(tmp_path, database, zones=zones, script=SLOW_AND_ODD) as world:
        node = world.node(children=1)
        await node.start()
        [born] = node.child_pids()
        to = addresses(60)
        slow = await world.deliver(to)
        await until("messages are on their way", lambda: len(world.record().recipients()) >= 10)
        odd = await world.deliver(["odd@odd.test"])
        await until("the fault is told", lambda: node.said("child has a fault and is replaced"))
        assert (await world.wait_for(slow)).delivered == 60
        assert (await world.wait_for(odd)).failed == 1  # by the next child, which has no fault
        await until("the child is replaced", lambda: born not in node.child_pids() and len(node.child_pids()) == 1)
        assert world.record().recipients() == dict.fromkeys(to, 1)
        assert await statuses(world, slow) == {Status.DELIVERED: 60}
        assert await statuses(world, odd) == {Status.FAILED: 1}
        assert node.said("child died") == []
        [fault] = node.said("fault in a session")
        assert fault["mx_host"] == "odd-mx.test"
        assert "ZeroDivisionError: provoked" in str(fault["exception"])
        assert (await world.audit(slow)).is_clean
        assert await node.stop() == 0
