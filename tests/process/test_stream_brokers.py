"""Events to Kafka and NATS: against real servers on loopback, where somebody has started them.

MTA_TEST_NATS=nats://127.0.0.1:4222      nats-server --jetstream
MTA_TEST_KAFKA=127.0.0.1:9092            with a topic mta.events
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mta.model.errors import BadInput
from mta.model.event import Event
from mta.queue.streams import after_tx
from mta.settings.config import load_settings
from mta.settings.streams import KafkaSettings, NatsSettings
from mta.stream.kafka import KafkaSink
from mta.stream.nats import NatsSink
from mta.stream.sink import Away, Batch, Refused, make_batch
from tests.pure.test_event import an_event

NATS = os.environ.get("MTA_TEST_NATS", "")
KAFKA = os.environ.get("MTA_TEST_KAFKA", "")
HAS_NATS = importlib.util.find_spec("nats") is not None
HAS_KAFKA = importlib.util.find_spec("aiokafka") is not None


def a_batch(count: int, **more: Any) -> Batch:
    events: list[Event] = [an_event(number=number, **more) for number in range(count)]
    return make_batch(events, [msgspec.json.encode(event) for event in events], after_tx(0))


@pytest.mark.skipif(HAS_NATS, reason="nats-py is installed")
def test_nats_without_its_library_says_what_to_install() -> None:
    with pytest.raises(BadInput, match=r"mta.toml:3: .*install mta\[nats\]"):
        NatsSink(NatsSettings(name="n", sink="nats", servers=("nats://127.0.0.1",), subject="s", where="mta.toml:3"))


@pytest.mark.skipif(HAS_KAFKA, reason="aiokafka is installed")
def test_kafka_without_its_library_says_what_to_install() -> None:
    with pytest.raises(BadInput, match=r"mta.toml:3: .*install mta\[kafka\]"):
        KafkaSink(KafkaSettings(name="k", sink="kafka", servers=("127.0.0.1:1",), topic="t", where="mta.toml:3"))


def test_the_start_ends_with_one_clear_line(tmp_path: Path) -> None:
    table = '[[stream]]\nname = "k"\nsink = "kafka"\nservers = ["127.0.0.1:1"]\ntopic = "t"\n'
    (tmp_path / "mta.toml").write_text(table)
    settings = load_settings(tmp_path / "mta.toml", environment={}, host_name="a")  # which needs no library
    assert settings.streams[0].sink == "kafka"


@pytest.mark.skipif(not (HAS_NATS and NATS), reason="NOT VERIFIED: no nats-py, or no server in MTA_TEST_NATS")
async def test_nats_stores_each_event_once() -> None:
    import nats

    name = uuid.uuid4().hex
    sink = NatsSink(NatsSettings(name="n", sink="nats", servers=(NATS,), subject=f"mta.{name}", timeout_s=5))
    with pytest.raises(Away, match="no JetStream takes the subject"):
        await sink.send(a_batch(3))
    client = await nats.connect(NATS)
    jetstream = client.jetstream()
    await jetstream.add_stream(name=name, subjects=[f"mta.{name}.>"], max_msg_size=10_000)
    batch = a_batch(500)
    await sink.send(batch)
    await sink.send(batch)  # a repeat is dropped over there
    assert (await jetstream.stream_info(name)).state.messages == 500
    subscription = await jetstream.subscribe(f"mta.{name}.failed", ordered_consumer=True)
    got = [await subscription.next_msg(timeout=5) for _ in range(500)]
    assert [message.data for message in got] == batch.lines
    assert got[0].headers == {"Nats-Msg-Id": batch.events[0].id}
    with pytest.raises(Refused):
        await sink.send(a_batch(1, reply="x" * 20_000, attempt=8))
    await sink.send(a_batch(1, attempt=9))
    await jetstream.delete_stream(name)
    await client.close()
    await sink.close()


@pytest.mark.skipif(not HAS_NATS, reason="NOT VERIFIED: no nats-py")
async def test_nats_that_is_not_there() -> None:
    sink = NatsSink(NatsSettings(name="n", sink="nats", servers=("nats://127.0.0.1:1",), subject="s", timeout_s=1))
    with pytest.raises(Away):
        await sink.send(a_batch(1))
    await sink.close()


@pytest.mark.skipif(not (HAS_KAFKA and KAFKA), reason="NOT VERIFIED: no aiokafka, or no server in MTA_TEST_KAFKA")
async def test_kafka_has_each_event_in_order() -> None:
    import aiokafka

    sink = KafkaSink(KafkaSettings(name="k", sink="kafka", servers=(KAFKA,), topic="mta.events", timeout_s=10))
    run = str(uuid.uuid4())
    consumer = aiokafka.AIOKafkaConsumer("mta.events", bootstrap_servers=KAFKA, auto_offset_reset="earliest")
    await consumer.start()
    batch = a_batch(500, reply=run)
    await sink.send(batch)
    await sink.close()
    await sink.send(a_batch(1, reply=run, attempt=9))  # it begins anew
    got = []
    async with asyncio.timeout(30):
        while len(got) < 501:
            message = await consumer.getone()
            if run.encode() in message.value:
                got.append(message)
    assert [message.value for message in got[:500]] == batch.lines
    assert {message.key for message in got} == {b"17"}
    assert dict(got[0].headers) == {"id": batch.events[0].id.encode(), "kind": b"failed"}
    await consumer.stop()
    with pytest.raises(Refused):
        await sink.send(a_batch(1, reply="x" * 2_000_000))
    await sink.close()


@pytest.mark.skipif(not HAS_KAFKA, reason="NOT VERIFIED: no aiokafka")
async def test_kafka_that_is_not_there() -> None:
    sink = KafkaSink(KafkaSettings(name="k", sink="kafka", servers=("127.0.0.1:1",), topic="t", timeout_s=1))
    with pytest.raises(Away):
        await sink.send(a_batch(1))
    await sink.close()
