"""Events to a real HTTP server that fails in every way: each arrives at least once, signed, in order."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mta.model.outcome import Status
from mta.queue import streams
from mta.settings.config import load_settings
from mta.stream import stream as stream_module
from mta.stream.sink import Away, Batch
from mta.stream.stream import Stream
from mta.stream.streams import make_sink
from mta.stream.webhook import WebhookSink
from tests.support.cli import Cli
from tests.support.node import until
from tests.support.postgres import Database
from tests.support.streams import (
    OK,
    SECRET,
    SECRET_TEXT,
    Answer,
    Call,
    Consumer,
    Keep,
    add_lines,
    consumer,
    write_secret,
    write_settings,
)

TABLE = """
[[stream]]
name = "crm"
sink = "webhook"
url = "{url}"
secret_file = "secret"
begin = "beginning"
batch_events_max = 10
batch_ms = 20
timeout_s = 1
refused_dir = "refused"
{more}
"""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of minutes as parts of a second."""
    monkeypatch.setattr(stream_module, "AGAIN_S_MIN", 0.02)
    monkeypatch.setattr(stream_module, "AGAIN_S_MAX", 0.05)
    monkeypatch.setattr(stream_module, "LOOK_S", 0.05)


@contextlib.asynccontextmanager
async def streaming(tmp_path: Path, database: Database, to: Consumer, more: str = "") -> AsyncIterator[Stream]:
    """The stream as a task of this process."""
    write_secret(tmp_path)
    settings = load_settings(write_settings(tmp_path, database.dsn, TABLE.format(url=to.url, more=more)))
    stop = asyncio.Event()
    one = Stream(settings.streams[0], database.dsn, make_sink(settings.streams[0]), stop)
    task = asyncio.create_task(one.run())
    try:
        yield one
        assert not task.done(), task.result()
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


async def row_of(database: Database) -> streams.StreamRow:
    async with database.pool.acquire() as conn:
        found = await streams.find(conn, "crm")
    assert found is not None
    return found


async def until_state(database: Database, state: str) -> streams.StreamRow:
    async with asyncio.timeout(20):
        while True:
            async with database.pool.acquire() as conn:
                found = await streams.find(conn, "crm")
            if found is not None and found.state == state:
                return found
            await asyncio.sleep(0.02)


async def add(database: Database, first: int, count: int, **more: Any) -> None:
    async with database.pool.acquire() as conn:
        await add_lines(conn, first, count, **more)


def told(to: Consumer) -> list[int]:
    """The numbers that were acknowledged, in the order of their first arrival."""
    return list(dict.fromkeys(event["number"] for event in to.events))


async def test_batches_arrive_signed_and_in_order(tmp_path: Path, database: Database) -> None:
    async with consumer() as to:
        await add(database, 0, 25)
        async with streaming(tmp_path, database, to):
            await until("all came", lambda: len(to.events) == 25)
            await add(database, 100, 5, status=Status.BOUNCED)
            await until("what came later too", lambda: len(to.events) == 30)
        assert told(to) == [*range(25), *range(100, 105)]
        assert all(call.is_signed() and not call.is_signed(b"another") for call in to.calls)
        assert all(abs(int(call.headers["webhook-timestamp"]) - time.time()) < 60 for call in to.calls)
        assert all(len(call.events) <= 10 for call in to.calls)
        assert to.calls[0].headers["content-type"] == "application/json"
        assert to.calls[0].headers["user-agent"] == "mta"
        assert to.events[-1]["kind"] == "bounced"
        assert len({call.headers["webhook-id"] for call in to.calls}) == len(to.calls)
        assert (await row_of(database)).events == 30


@pytest.mark.usefixtures("_quick")
async def test_whatever_goes_wrong_each_event_arrives(tmp_path: Path, database: Database) -> None:
    """Failures one after another, before the first batch and in the middle."""
    troubles: dict[int, Answer] = {
        0: (500, {}),
        1: (503, {"Retry-After": "0"}),
        2: (429, {}),
        3: (408, {}),
        4: (301, {"Location": "https://elsewhere.example/"}),
        5: (302, {"Location": "/events2"}),
        6: "drop",
        8: "hang",
        10: "half",
        12: (204, {}),
        13: (502, {}),
    }
    async with consumer(lambda number, _: troubles.get(number, OK)) as to:
        await add(database, 0, 95)
        async with streaming(tmp_path, database, to):
            await until("all came", lambda: len(told(to)) == 95)
            assert (await until_state(database, "running")).error == ""
        assert told(to) == list(range(95))
        # A repeat is the same batch, signed anew.
        assert len({call.headers["webhook-id"] for call in to.calls[:8]}) == 1
        assert all(call.is_signed() for call in to.calls)
        # A status of 200 counts, whatever came of the body behind it.
        assert len(to.events) == 95


async def test_retry_after_is_obeyed(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "AGAIN_S_MIN", 0.01)
    at: list[float] = []

    def answer(number: int, _call: Call) -> Answer:
        at.append(time.monotonic())
        return (429, {"Retry-After": "2"}) if number == 0 else OK

    async with consumer(answer) as to:
        await add(database, 0, 3)
        async with streaming(tmp_path, database, to):
            await until("it came", lambda: len(to.events) == 3)
        assert at[1] - at[0] >= 1.9


@pytest.mark.usefixtures("_quick")
async def test_a_refused_batch_stops_the_stream_until_an_operator_gives_it_up(
    tmp_path: Path, database: Database
) -> None:
    def answer(_number: int, call: Call) -> Answer:
        return (422, {}) if any(event["number"] == 15 for event in call.events) else OK

    async with consumer(answer) as to:
        await add(database, 0, 35)
        async with streaming(tmp_path, database, to):
            stopped = await until_state(database, "stopped")
            assert "status 422: said" in stopped.error
            assert told(to) == list(range(10))
            calls = len(to.calls)
            async with database.pool.acquire() as conn:
                assert await streams.skip(conn, "crm") == stopped.batch
            await until("it goes on", lambda: len(to.events) == 25)
            assert len(to.calls) == calls + 2
        assert told(to) == [*range(10), *range(20, 35)]
        (filed,) = (tmp_path / "refused").iterdir()
        assert [json.loads(line)["number"] for line in filed.read_text().splitlines()] == list(range(10, 20))
        assert stopped.batch in filed.name


@pytest.mark.usefixtures("_quick")
async def test_refused_batches_are_filed_where_the_settings_say_so(tmp_path: Path, database: Database) -> None:
    def answer(_number: int, call: Call) -> Answer:
        return (400, {}) if call.events[0]["number"] in (0, 20) else OK

    async with consumer(answer) as to:
        await add(database, 0, 40)
        async with streaming(tmp_path, database, to, 'on_refused = "skip"'):
            await until("the rest came", lambda: len(to.events) == 20)
        assert told(to) == [*range(10, 20), *range(30, 40)]
        filed = [
            json.loads(line) for path in (tmp_path / "refused").iterdir() for line in path.read_text().splitlines()
        ]
        assert sorted(event["number"] for event in filed) == [*range(10), *range(20, 30)]


@pytest.mark.usefixtures("_quick")
async def test_a_stopped_stream_goes_on_by_itself_when_the_other_side_is_mended(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "STOPPED_AGAIN_S", 0.1)
    async with consumer(lambda number, _: (401, {}) if number < 3 else OK) as to:
        await add(database, 0, 5)
        async with streaming(tmp_path, database, to):
            await until("it goes on", lambda: len(to.events) == 5)
        assert not (tmp_path / "refused").exists()


async def test_ndjson_filters_rotated_secrets_and_authorization(tmp_path: Path, database: Database) -> None:
    new = "whsec_" + "QUJD" * 12
    (tmp_path / "token").write_text("Bearer abc\n")
    (tmp_path / "token").chmod(0o640)
    more = 'format = "ndjson"\nkinds = ["complained"]\ndeliveries = [2]\nauthorization_file = "token"'
    async with consumer() as to:
        await add(database, 0, 5)
        await add(database, 10, 5, status=Status.COMPLAINED)
        await add(database, 20, 5, delivery=2, status=Status.COMPLAINED)
        async with streaming(tmp_path, database, to, more):
            await until("the wanted came", lambda: len(to.events) == 5)
            write_secret(tmp_path, f"{new}\n{SECRET_TEXT}")
            await add(database, 30, 1, delivery=2, status=Status.COMPLAINED)
            await until("one more", lambda: len(to.events) == 6)
        assert told(to) == [20, 21, 22, 23, 24, 30]
        assert to.calls[0].headers["content-type"] == "application/x-ndjson"
        assert to.calls[0].headers["authorization"] == "Bearer abc"
        assert to.calls[-1].is_signed(SECRET)
        assert to.calls[-1].is_signed(b"ABC" * 12)


@pytest.mark.usefixtures("_quick")
async def test_a_secret_that_cannot_be_read_any_more_sends_nothing_unsigned(tmp_path: Path, database: Database) -> None:
    async with consumer() as to, streaming(tmp_path, database, to):
        (tmp_path / "secret").chmod(0o644)
        await add(database, 0, 3)
        row = await until_state(database, "retrying")
        assert "mode 0644" in row.error
        assert to.calls == []
        (tmp_path / "secret").chmod(0o600)
        await until("it goes on", lambda: len(to.events) == 3)


@pytest.mark.usefixtures("_quick")
async def test_a_replay_tells_again_also_while_a_batch_cannot_be_told(tmp_path: Path, database: Database) -> None:
    is_down = False
    async with consumer(lambda *_: (500, {}) if is_down else OK) as to:
        begun = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1)
        await add(database, 0, 20)
        async with streaming(tmp_path, database, to):
            await until("all came", lambda: len(to.events) == 20)
            is_down = True
            await add(database, 20, 5)
            await until_state(database, "retrying")
            cli = Cli(database.dsn, tmp_path)
            said = await asyncio.to_thread(cli.json, "stream", "replay", "crm", "--from", begun.isoformat())
            assert said["replayed"] is True
            is_down = False
            await until("all again", lambda: len(to.events) == 45)
        ids = [event["id"] for event in to.events]
        assert ids[:20] == ids[20:40]
        assert len(set(ids)) == 25


async def test_a_consumer_that_dies_and_comes_back(tmp_path: Path, database: Database) -> None:
    async with consumer() as to:
        await add(database, 0, 20)
        async with streaming(tmp_path, database, to):
            await until("some came", lambda: len(to.events) == 20)
            await to.stop()
            await add(database, 20, 15)
            row = await until_state(database, "retrying")
            assert row.error.startswith("ConnectError") or "Error" in row.error
            await to.start()
            await until("all came", lambda: len(told(to)) == 35)
        assert told(to) == list(range(35))


@pytest.mark.usefixtures("_quick")
async def test_a_slow_sink_holds_up_nobody_else(tmp_path: Path, database: Database) -> None:
    """Two streams of a real `mta keep`, one of whose consumers never answers; and kill -9 in between."""
    write_secret(tmp_path)
    async with consumer(lambda *_: "hang") as slow, consumer() as quick:
        tables = TABLE.format(url=slow.url, more="").replace('"crm"', '"slow"') + TABLE.format(url=quick.url, more="")
        config = write_settings(tmp_path, database.dsn, tables)
        await add(database, 0, 500)
        for i, signalled in enumerate((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)):
            keep = Keep(config)
            await keep.start()
            already = len(quick.events)
            await until("both began", lambda: len(quick.events) > already and len(slow.calls) > 0)  # noqa: B023
            await add(database, 10_000 + 100 * i, 100)
            if signalled is signal.SIGTERM:
                await until("all came", lambda: len(told(quick)) == 800)
            code = await keep.end(signalled)
            slow.calls.clear()
        assert code == 0, keep.log
        assert sorted(told(quick)) == sorted({event["number"] for event in quick.events})
        assert len(told(quick)) == 800
        assert slow.taken == []
        cli = Cli(database.dsn, tmp_path)
        lag = {one["name"]: one for one in cli.json("stream", "lag", "--config", str(config), expect=1)}
        assert (lag["crm"]["events_behind"], lag["crm"]["state"]) == (0, "running")
        assert lag["slow"]["events_behind"] == 800


async def test_streams_run_on_one_node_at_a_time(tmp_path: Path, database: Database) -> None:
    async with consumer() as to:
        async with streaming(tmp_path, database, to), streaming(tmp_path, database, to):
            for i in range(20):
                await add(database, i * 5, 5)
            await until("all came", lambda: len(told(to)) == 100)
        assert len(to.events) == 100


@pytest.mark.usefixtures("_quick")
async def test_a_fault_in_a_sink_ends_nothing_but_this_turn(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that raises what nobody expects of it."""
    monkeypatch.setattr(stream_module, "FAULT_AGAIN_S", 0.05)
    send, faults = WebhookSink.send, iter([ZeroDivisionError("not foreseen")] * 2)

    async def faulty(self: WebhookSink, batch: Batch) -> None:
        for fault in faults:
            raise fault
        await send(self, batch)

    monkeypatch.setattr(WebhookSink, "send", faulty)
    async with consumer() as to:
        await add(database, 0, 12)
        async with streaming(tmp_path, database, to):
            await until("all came", lambda: len(to.events) == 12)


async def test_a_sink_that_fails_though_nothing_comes_is_seen_and_goes_on(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_failing = True

    async def idle(_self: WebhookSink) -> None:
        if is_failing:
            raise Away("no room")

    monkeypatch.setattr(WebhookSink, "idle", idle)
    async with consumer() as to, streaming(tmp_path, database, to):
        assert (await until_state(database, "retrying")).error == "no room"
        is_failing = False
        assert (await until_state(database, "running")).error == ""


async def test_a_configuration_is_checked_with_its_streams(tmp_path: Path, database: Database) -> None:
    write_secret(tmp_path)
    table = TABLE.format(url="https://crm.example.com/", more="")
    config = write_settings(tmp_path, database.dsn, table)
    cli = Cli(database.dsn, tmp_path)
    assert cli.json("config", "check", str(config))["ok"]
    (lag,) = cli.json("stream", "lag", "--config", str(config))
    assert lag["state"] == "never ran"
    assert "never ran" in cli.run("stream", "lag", "--config", str(config)).stdout
    (tmp_path / "secret").chmod(0o644)
    (fault,) = cli.json("config", "check", str(config), expect=1)["faults"]
    assert "mode 0644" in fault["what"]
