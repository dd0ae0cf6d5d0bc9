"""Bugs of our own: they end the unit that has them, loudly, and its work is recovered."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest
import uvloop

from mta.master.children import Child, Children
from mta.master.daemon import Daemon
from mta.settings.config import load_settings
from mta.telemetry.faults import end_on_fault
from mta.wire import ChildOptions
from tests.support.formula import hold_formula
from tests.support.node import World, addresses, until
from tests.support.postgres import Database

QUICK_RETRY = '{"first_count":20,"first_period_s":1,"then_period_s":1}'


class _Faulty(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        raise KeyError(data.decode())


async def _provoke(faults: list[BaseException]) -> None:
    loop = asyncio.get_running_loop()
    end_on_fault(loop, faults.append)
    ours, theirs = socket.socketpair()
    with theirs:
        await loop.create_unix_connection(_Faulty, sock=ours)
        theirs.send(b"a frame")
        await until("a fault in a protocol is told", lambda: faults)
    loop.call_soon(lambda: [].pop())
    await until("a fault in a callback is told", lambda: len(faults) > 1)


def test_an_exception_in_a_callback_reaches_the_owner_of_the_loop(capfd: pytest.CaptureFixture[str]) -> None:
    faults: list[BaseException] = []
    uvloop.run(asyncio.wait_for(_provoke(faults), 10))
    assert [type(fault) for fault in faults] == [KeyError, IndexError]


async def test_wrong_books_end_the_run_and_the_next_one_goes_by_the_journal(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database) as world:
        node = world.node()
        daemon = Daemon(load_settings(node.config))
        run = asyncio.create_task(daemon.run())
        await asyncio.wait_for(daemon.started.wait(), 20)
        everyone = addresses(5_000)
        delivery = await world.deliver(everyone, retry=QUICK_RETRY)
        await world.wait_for(delivery, lambda d: d.delivered > 100)
        daemon.collector.batches.clear()
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(run, 20)
        assert raised.value.subgroup(KeyError)
        asyncio.get_running_loop().set_exception_handler(None)

        await node.start()
        shown = await world.wait_for(delivery)
        assert shown.delivered == 5_000
        await hold_formula(world, delivery, everyone)
        assert await node.stop() == 0


async def test_children_that_die_at_once_are_not_started_in_a_tight_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    loop = asyncio.get_running_loop()
    lost: asyncio.Queue[Child] = asyncio.Queue()
    children = Children(
        1, 30.0, lambda number: [ChildOptions(1, number, str(tmp_path), 1 << 20, b"", 0.0)], print, lost.put_nowait
    )
    for least_s in (0.0, 0.9, 1.9, 3.9):
        await children.start_one()
        child = await asyncio.wait_for(lost.get(), 10)
        await child.bury()
        children.ended(child)
        assert not children.not_ended
        assert children.missing == 1
        assert children.may_start(loop.time() + least_s + 0.2)
        assert not least_s or not children.may_start(loop.time() + least_s - 0.5)
