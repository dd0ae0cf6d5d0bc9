"""All streams of a node's settings together."""

from __future__ import annotations

import asyncio
import datetime
from typing import Final

from mta.model.errors import BadInput
from mta.model.event import TEST_KIND, VERSION, Event
from mta.queue.streams import after_tx
from mta.settings.config import Settings
from mta.settings.streams import FilesSettings, KafkaSettings, NatsSettings, StreamSettings, WebhookSettings
from mta.stream.files import FilesSink
from mta.stream.kafka import KafkaSink
from mta.stream.nats import NatsSink
from mta.stream.sink import Batch, Sink, encoded, make_batch
from mta.stream.stream import Stream
from mta.stream.webhook import WebhookSink

STOP_S: Final = 10.0  # for a batch that is under way; then it is sent again after the next start


def make_sink(settings: StreamSettings) -> Sink:
    """Raises BadInput for a library that is missing, a secret that cannot be used."""
    match settings:
        case WebhookSettings():
            return WebhookSink(settings)
        case FilesSettings():
            return FilesSink(settings)
        case KafkaSettings():
            return KafkaSink(settings)
        case NatsSettings():
            return NatsSink(settings)
    raise BadInput(settings.where, f"stream.sink: {settings.sink!r} is not known")


def made_up_batch(now: datetime.datetime) -> Batch:
    """One event of a kind that no line of the log has."""
    event = Event(
        v=VERSION,
        id=f"test-{int(now.timestamp() * 1_000_000)}",
        kind=TEST_KIND,
        at=now,
        delivery=0,
        delivery_name=None,
        number=0,
        reference=None,
        address="test@example.com",
        domain="example.com",
        site="",
        mx_host="",
        egress="",
        attempt=0,
        code=0,
        enhanced="",
        type="not-defined",
        reason="not-defined",
        reason_code=0,
        category="none",
        reply="",
        bytes=0,
    )
    return make_batch([event], [encoded(event)], after_tx(0))


class Streams:
    """``run`` is its only task. Made without I/O but for files that are named; raises BadInput for what cannot run."""

    def __init__(self, settings: Settings) -> None:
        self._stop = asyncio.Event()
        self._streams = [Stream(one, settings.database.dsn, make_sink(one), self._stop) for one in settings.streams]
        self._names = [one.name for one in settings.streams]

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Until told to stop. A fault of one ends all, as one of ours does."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(stream.run(), name=f"stream {name}")
                for stream, name in zip(self._streams, self._names, strict=True)
            ]
            await self._stop.wait()
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=STOP_S)
                for task in late:
                    task.cancel()
