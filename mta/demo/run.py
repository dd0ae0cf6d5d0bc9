"""One demo from the first process to the account: append, start, watch, perhaps kill, settle."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import time
from collections.abc import Iterator
from itertools import islice
from typing import Final, Protocol

from mta.demo.account import Account, settle
from mta.demo.back import Back, hand_in
from mta.demo.scene import CONTENT, RETRY, DemoOptions, Scene, check_options
from mta.demo.stage import Stage, uninterrupted
from mta.demo.watch import FarEnd, Process, Processes
from mta.queue import deliveries
from mta.queue.append import append_parts
from mta.queue.connection import Conn, connection
from mta.queue.deliveries import Delivery, NewDelivery
from mta.queue.load import BATCH_RECIPIENTS_MAX
from mta.queue.part import Part
from mta.sink.record import Record

LOOK_EVERY_S: Final = 0.25
STALL_S: Final = 60.0  # nothing happened for so long: it will not end by itself
VALIDITY: Final = datetime.timedelta(hours=6)
KILL_CHILD_AT: Final = 0.25  # share of the recipients that are settled by then
KILL_MASTER_AT: Final = 0.5
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(Exception):  # noqa: N818 - a sentence for whoever started it
    """It did not come to its end; the text says where it stopped."""


class View(Protocol):
    """Whoever shows it. Called from the demo's loop; quick."""

    def step(self, what: str) -> None:
        """Something is being done before anything is sent."""

    def appended(self, recipients: int) -> None:
        """So many recipients are in the queue, durably."""

    def look(self, delivery: Delivery, far_end: FarEnd, processes: list[Process]) -> None:
        """How it stands; four times a second."""

    def event(self, what: str) -> None:
        """Something remarkable happened."""


async def run_demo(options: DemoOptions, view: View) -> Account:
    """Everything up, one delivery through, everything down. Raises CancelledError on SIGINT, SIGTERM and SIGHUP."""
    check_options(options)
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, task.cancel)
    scene = Scene(options)
    async with Stage(scene, view.step) as stage, connection(stage.dsn, application_name="mta demo") as conn:
        delivery_id = await _append(conn, scene, view)
        await deliveries.start(conn, delivery_id)
        await _Course(scene, stage, view, conn, delivery_id).run()
        back = await _send_back(stage, view, conn, delivery_id)
        await stage.node.stop()
        await uninterrupted(stage.sink.stop)  # its record is complete now
        view.step("counting what the far end received")
        record = await asyncio.to_thread(Record.load, stage.record_dir)
        return await settle(conn, delivery_id, scene, record, back)


async def _append(conn: Conn, scene: Scene, view: View) -> int:
    view.step(f"appending {scene.options.recipients:,} recipients to the queue")
    new = NewDelivery(name="demo", content=CONTENT, retry=RETRY, validity=VALIDITY)
    delivery_id = await deliveries.create(conn, new)
    done = 0
    for parts in _batches(scene.parts()):
        done += sum(answer.recipients for answer in await append_parts(conn, delivery_id, parts))
        view.appended(done)
    await deliveries.seal(conn, delivery_id)
    return delivery_id


async def _send_back(stage: Stage, view: View, conn: Conn, delivery_id: int) -> Back:
    """What the far end sends back of what it took; returns when it is recorded, or nothing moves any more."""
    back = Back.of(await asyncio.to_thread(Record.load, stage.record_dir))
    view.step(f"the far end sends back {back.count:,} mails: bounces, complaints, and answers of who is away")
    await hand_in(stage.inbound_port, back)
    moved_at_s, last = time.monotonic(), (-1, -1)
    while time.monotonic() - moved_at_s < STALL_S:
        shown = await deliveries.show(conn, delivery_id)
        kept = await conn.fetchval("SELECT count(*) FROM mta.quarantine WHERE status IN (3, 4)")
        is_recorded = shown.bounced >= len(back.bounced) and shown.complaints >= len(back.complained)
        if is_recorded and kept >= len(back.gone) + len(back.bounced) + len(back.complained):
            break
        if (now := (shown.bounced + shown.complaints, kept)) != last:
            last, moved_at_s = now, time.monotonic()
        await asyncio.sleep(LOOK_EVERY_S)
    return back


def _batches(parts: Iterator[Part]) -> Iterator[list[Part]]:
    """Parts for one transaction each: its commit costs a disk flush."""
    for first in parts:
        yield [first, *islice(parts, BATCH_RECIPIENTS_MAX // len(first.rows) - 1)]


class _Course:
    """Watches one delivery until it is finished, or until nothing moves any more."""

    def __init__(self, scene: Scene, stage: Stage, view: View, conn: Conn, delivery_id: int) -> None:
        self._recipients = scene.options.recipients
        self._stage = stage
        self._view = view
        self._conn = conn
        self._delivery_id = delivery_id
        self._far_end = FarEnd(stage.record_dir)
        self._processes = Processes()
        self._is_under_way = False
        self._is_child_to_kill = self._is_master_to_kill = scene.options.kill

    async def run(self) -> None:
        """Raises DemoFailed when the delivery does not go on, or the daemon has ended."""
        moved_at_s = time.monotonic()
        last = (0, 0, 0)
        while True:
            delivery = await deliveries.show(self._conn, self._delivery_id)
            now_s = time.monotonic()
            self._far_end.read(now_s)
            if self._far_end.total and not self._is_under_way:
                self._is_under_way = True
                self._view.step("the first messages have arrived at the far end")
            self._view.look(delivery, self._far_end, self._processes.look(self._named_pids(), now_s))
            if delivery.state == "finished":
                return
            now = (delivery.final, delivery.deferrals, delivery.in_doubt)
            if now != last:
                last, moved_at_s = now, now_s
            elif now_s - moved_at_s > STALL_S:
                # What came so far is accounted for all the same; its exit code will say that it is not all.
                self._view.event(f"nothing moved for {STALL_S:.0f} s: given up")
                return
            if not self._stage.node.pid:
                raise DemoFailed(f"the daemon ended by itself; its last words: {list(self._stage.node.log)[-3:]}")
            if dead := self._stage.sink.ended():
                raise DemoFailed(f"process {dead[0]} of the far end ended by itself")
            await self._kill_in_turn(delivery.final / self._recipients)
            await asyncio.sleep(LOOK_EVERY_S)

    def _named_pids(self) -> dict[int, str]:
        children = {pid: f"child {n}" for n, pid in enumerate(self._stage.node.child_pids(), start=1)}
        return {self._stage.node.pid: "master", **children}

    async def _kill_in_turn(self, settled: float) -> None:
        if self._is_child_to_kill and settled >= KILL_CHILD_AT:
            self._is_child_to_kill = False
            pids = self._stage.node.child_pids()
            if pids:
                os.kill(pids[0], signal.SIGKILL)
                self._view.event(f"kill -9 of child {pids[0]} in the middle of its work; the master replaces it")
        elif self._is_master_to_kill and settled >= KILL_MASTER_AT:
            self._is_master_to_kill = False
            self._view.event(f"kill -9 of the master {self._stage.node.pid}; started again, it reads its journal first")
            await self._stage.node.kill()
            await self._stage.node.start()
