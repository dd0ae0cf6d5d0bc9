"""One stream: reads, hands to its sink, moves its place; waits for a sink or a database that is away."""

from __future__ import annotations

import asyncio
import datetime
import os
import random
from pathlib import Path
from typing import Final

import structlog

from mta.model.event import KINDS
from mta.queue import streams
from mta.queue.connection import DATABASE_AWAY, Conn, connection
from mta.queue.streams import Place, Reader, StreamRow, Wanted
from mta.settings.streams import OnRefused, StreamSettings
from mta.stream.sink import Away, Batch, Refused, Sink, batches, one_line
from mta.telemetry.outages import DATABASE
from mta.telemetry.waits import event_or_timeout

LINES_MAX: Final = 2_000  # read at a time, or a whole batch where that is more
AGAIN_S_MIN: Final = 1.0  # between tries of a sink that is away, doubling
AGAIN_S_MAX: Final = 300.0
STOPPED_AGAIN_S: Final = 300.0  # a batch that was refused is tried again, in case that the other side was mended
LOOK_S: Final = 2.0  # while it waits: has an operator given the batch up, or set the place
STAND_BY_S: Final = 5.0
DATABASE_AGAIN_S: Final = 1.0
FAULT_AGAIN_S: Final = 60.0
STATEMENTS_S: Final = 300.0  # of one look at the log; a database that does not answer then is away
IDLE_MOVE_S: Final = 5.0
log = structlog.get_logger()


def wanted_by(settings: StreamSettings) -> Wanted:
    return Wanted([int(KINDS[kind]) for kind in settings.kinds], settings.deliveries)


class Stream:
    """``run`` is its only task. ``stop`` ends it between two batches, or while it waits."""

    def __init__(self, settings: StreamSettings, dsn: str, sink: Sink, stop: asyncio.Event) -> None:
        self._settings = settings
        self._dsn = dsn
        self._sink = sink
        self._stop = stop

    async def run(self) -> None:
        """Until told to stop."""
        doing, name = f"tell the event stream {self._settings.name}", f"mta stream {self._settings.name}"[:63]
        try:
            while not self._stop.is_set():
                try:
                    async with connection(self._dsn, application_name=name, is_shared=False) as conn:
                        DATABASE.answered(doing)
                        await self._serve(conn)
                except DATABASE_AWAY as error:
                    DATABASE.failed(doing, error)
                    await self._wait(DATABASE_AGAIN_S)
                except Exception:
                    # Ends this stream and no other, nor the keeper. All that it knew was read; it is read again.
                    log.exception("event stream failed, and begins again", stream=self._settings.name)
                    await self._wait(FAULT_AGAIN_S)
        finally:
            DATABASE.gave_up(doing)
            await self._sink.close()

    async def _serve(self, conn: Conn) -> None:
        while not self._stop.is_set():
            if await streams.own(conn, self._settings.name):
                log.info("event stream", stream=self._settings.name)
                await self._follow(conn)
                return
            await self._wait(STAND_BY_S)

    async def _follow(self, conn: Conn) -> None:
        row, place, reader = await self._begin(conn)
        moved_at_s = self._now_s()
        while not self._stop.is_set():
            async with asyncio.timeout(STATEMENTS_S):
                known = await streams.find(conn, self._settings.name)
                if known is None or known.turn != row.turn or await streams.is_of_another_server(conn, place):
                    row, place, reader = await self._begin(conn)
                    continue
                row = known
                found = await reader.read(conn, place, max(LINES_MAX, self._settings.batch_events_max))
                names = await streams.delivery_names(conn, {line["delivery_id"] for line in found.lines})
            size_max = self._settings.batch_kbytes_max * 1_000
            for batch in batches(found, names, self._settings.batch_events_max, size_max):
                if not await self._deliver(conn, row, batch):
                    break
                place, moved_at_s = batch.upto, self._now_s()
            else:
                place = found.upto
                if not found.lines and place > row.place and self._now_s() - moved_at_s >= IDLE_MOVE_S:
                    await streams.move(conn, row, place, 0)
                    moved_at_s = self._now_s()
            if found.is_last:
                await self._idle(conn, row, place)

    async def _begin(self, conn: Conn) -> tuple[StreamRow, Place, Reader]:
        """From where the database says that it stands."""
        from_the_beginning = self._settings.begin == "beginning"
        row = await streams.begin(conn, self._settings.name, from_the_beginning=from_the_beginning)
        if await streams.is_of_another_server(conn, row.place):
            log.error(
                "this database was restored from another server's dump: events up to now are not told",
                stream=self._settings.name,
            )
            await streams.put(conn, row.name, await streams.place_now(conn))
            row = await streams.begin(conn, self._settings.name)
        return row, row.place, Reader(wanted_by(self._settings))

    async def _idle(self, conn: Conn, row: StreamRow, place: Place) -> None:
        """Events are collected while it waits."""
        try:
            await self._sink.idle()
        except Away as error:
            if row.state == "running":
                log.warning("event stream waits for its sink", stream=self._settings.name, error=str(error))
            await self._failing(conn, row, "retrying", str(error), "")
        else:
            if row.state != "running" and row.batch == "":
                await streams.move(conn, row, place, 0)
        await self._wait(self._settings.batch_ms / 1_000)

    async def _deliver(self, conn: Conn, row: StreamRow, batch: Batch) -> bool:
        """Until it is taken or given up; False when it is not, as the stream ends or goes on elsewhere."""
        said, again_s = "", AGAIN_S_MIN
        while not self._stop.is_set():
            try:
                await self._sink.send(batch)
                if said:
                    log.info("event stream goes on", stream=self._settings.name)
                return await streams.move(conn, row, batch.upto, len(batch.lines))
            except Away as error:
                state, why = "retrying", str(error)
                wait_s = max(error.after_s, again_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
                again_s = min(2 * again_s, AGAIN_S_MAX)
                if why != said:
                    log.warning(
                        "event stream waits for its sink", stream=self._settings.name, error=why, batch=batch.id
                    )
            except Refused as error:
                state, why, wait_s = "stopped", str(error), STOPPED_AGAIN_S
                if self._settings.on_refused is OnRefused.SKIP and await self._give_up(conn, row, batch, why):
                    return True
                if why != said:
                    log.error(
                        "event stream is stopped: its sink refuses a batch",
                        stream=self._settings.name,
                        error=why,
                        batch=batch.id,
                    )
            said = why
            is_given_up = await self._wait_failing(conn, row, batch, state, why, wait_s)
            if is_given_up is None:
                return False
            if is_given_up and await self._give_up(conn, row, batch, why):
                return True
        return False

    async def _wait_failing(
        self, conn: Conn, row: StreamRow, batch: Batch, state: str, why: str, wait_s: float
    ) -> bool | None:
        """Time to try again: False. The operator gave the batch up: True. The place was set anew, or the end: None."""
        until_s = self._now_s() + wait_s
        while True:
            is_given_up = await self._failing(conn, row, state, why, batch.id)
            if is_given_up is not False:
                return is_given_up
            left_s = until_s - self._now_s()
            if left_s <= 0:
                return False
            await self._wait(min(left_s, LOOK_S))
            if self._stop.is_set():
                return None

    async def _failing(self, conn: Conn, row: StreamRow, state: str, why: str, batch: str) -> bool | None:
        async with asyncio.timeout(STATEMENTS_S):
            return await streams.failing(conn, row, state, why, batch)

    async def _give_up(self, conn: Conn, row: StreamRow, batch: Batch, why: str) -> bool:
        """Files the batch and goes on behind it. False when it cannot be filed: then it is not given up."""
        try:
            file = await asyncio.to_thread(file_batch, Path(self._settings.refused_dir), self._settings.name, batch)
        except OSError as error:
            log.error(
                "batch of events cannot be filed, and is kept",
                stream=self._settings.name,
                error=one_line(error),
                batch=batch.id,
            )
            return False
        log.error(
            "batch of events was given up",
            stream=self._settings.name,
            file=str(file),
            events=len(batch.lines),
            error=why,
        )
        return await streams.move(conn, row, batch.upto, 0)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _wait(self, seconds: float) -> None:
        await event_or_timeout(self._stop, seconds)


def file_batch(directory: Path, stream: str, batch: Batch) -> Path:
    """A batch as NDJSON in a file of its own, on the disk when this returns. Raises OSError."""
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    path = directory / f"{stream}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}Z-{batch.id}.ndjson"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    with open(handle, "wb") as file:
        file.write(b"\n".join(batch.lines) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return path
