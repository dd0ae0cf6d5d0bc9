"""The differential test: each script of tests/dialogues through our dialogue and through aiosmtplib."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from mta.session.open import SessionFailed
from tests.support import dialogue_runs as runs
from tests.support.dialogue_script import Script, Stored, load
from tests.support.scripted_server import ScriptedServer

NewLoop = Callable[[], asyncio.AbstractEventLoop]
SCRIPTS = [load(path) for path in sorted((Path(__file__).parent.parent / "dialogues").glob("*.txt"))]


def _runs(kind: str) -> list[object]:
    """Each script that may run so, in each mode that it allows."""
    return [
        pytest.param(script, mode == "pipelined", id=f"{script.path.stem}-{mode}")
        for script in SCRIPTS
        for mode in ("pipelined", "lockstep")
        if script.runs(kind, mode)
    ]


def _check(script: Script, found: dict[int, list[str]], stored: list[Stored]) -> None:
    assert found == script.expected, script.title
    if script.stored is not None:
        assert len(stored) == script.stored
    # Both ends agree: whom we call accepted has the very octets, and nobody else is called accepted.
    bodies = {(each.sender, recipient): each.body for each in stored for recipient in each.recipients}
    for n, envelope in enumerate(script.envelopes, 1):
        for recipient, outcome in zip(envelope.recipients, found[n], strict=True):
            if outcome == "accepted":
                assert bodies[envelope.sender, recipient] == envelope.body


def test_there_are_enough_scripts() -> None:
    assert len(SCRIPTS) >= 45


@pytest.mark.parametrize(("script", "pipelining"), _runs("pure"))
def test_face_to_face(script: Script, pipelining: bool) -> None:
    verdicts, server = runs.run_pure(script, bytewise=False, pipelining=pipelining)
    _check(script, runs.outcomes(script, verdicts), server.stored)


@pytest.mark.parametrize(("script", "pipelining"), _runs("bytewise"))
def test_octet_by_octet(script: Script, pipelining: bool) -> None:
    verdicts, server = runs.run_pure(script, bytewise=True, pipelining=pipelining)
    _check(script, runs.outcomes(script, verdicts), server.stored)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(("script", "pipelining"), _runs("socket"))
def test_over_a_socket(script: Script, pipelining: bool, new_loop: NewLoop) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_over_a_socket(script, pipelining))


async def _over_a_socket(script: Script, pipelining: bool) -> None:
    async with ScriptedServer(script) as server:
        result = await runs.run_socket(script, server.port, pipelining=pipelining)
        if isinstance(result, SessionFailed):
            assert f"{result.stage.name} {result.reply.code if result.reply else 0}" == script.open_expected
            return
        assert not script.open_expected
        _check(script, runs.outcomes(script, result), server.sessions[0].stored)


@pytest.mark.parametrize("script", [pytest.param(each, id=each.path.stem) for each in SCRIPTS if each.runs("oracle")])
async def test_aiosmtplib_agrees(script: Script) -> None:
    async with ScriptedServer(script) as server:
        found = await runs.run_oracle(script, server.port)
    if isinstance(found, int):
        assert script.open_expected.endswith(f" {found}")
        return
    for n, ours in script.expected.items():
        wanted = script.oracle.get(n, ours)
        assert [_without_stage(each) for each in found[n]] == [_without_stage(each) for each in wanted], script.title


def _without_stage(outcome: str) -> str:
    return " ".join(outcome.split(" ")[:2]) if outcome.startswith("refused") else outcome
