"""Events to NDJSON files: kill -9 in the middle, full disks, rotation, files that others move away."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mta.model.outcome import Status
from mta.queue import streams
from mta.stream import files
from mta.stream.files import EventFile
from tests.support.cli import Cli
from tests.support.node import until
from tests.support.postgres import Database
from tests.support.streams import Keep, add_lines, write_settings

TABLE = """
[[stream]]
name = "archive"
sink = "files"
directory = "out"
begin = "beginning"
batch_ms = 10
{more}
"""


def written(directory: Path) -> list[dict[str, Any]]:
    """All events, the growing file last. Fails for a line that is not whole."""
    paths = [*sorted(directory.glob("archive-*.ndjson")), directory / "archive.ndjson"]
    found = []
    for path in paths:
        text = path.read_bytes() if path.exists() else b""
        assert text == b"" or text.endswith(b"\n"), path
        found += [json.loads(line) for line in text.splitlines()]
    return found


def numbers(directory: Path) -> set[int]:
    return {event["number"] for event in written(directory)}


async def test_kill_9_in_the_middle_loses_nothing_and_leaves_whole_lines(tmp_path: Path, database: Database) -> None:
    config = write_settings(
        tmp_path, database.dsn, TABLE.format(more="batch_events_max = 700\nrotate_mbytes = 1\nrotate_s = 86400")
    )
    out = tmp_path / "out"
    async with database.pool.acquire() as conn:
        for i in range(20):
            await add_lines(conn, i * 1_000, 1_000)
        torn = 0
        for i in range(6):
            keep = Keep(config)
            await keep.start()
            path = out / "archive.ndjson"
            size = path.stat().st_size if path.exists() else 0
            await until("it writes", lambda: path.exists() and path.stat().st_size != size)  # noqa: B023
            await asyncio.sleep(random.uniform(0, 0.15))
            await keep.end(signal.SIGKILL)
            if path.exists():
                with path.open("ab") as file:  # as if it had died within a write
                    file.write(b'{"v":1,"id":"17-')
                torn += 1
            await add_lines(conn, 100_000 + i * 100, 100)
        assert torn
        keep = Keep(config)
        await keep.start()
        expected = {*range(20_000), *range(100_000, 100_600)}
        path = out / "archive.ndjson"

        def all_came() -> bool:
            try:
                return numbers(out) == expected
            except (AssertionError, json.JSONDecodeError):
                return False  # a line is being written

        await until("all came", all_came)
        assert await keep.end() == 0, keep.log
        assert any(line["event"] == "a torn line was cut off" for line in keep.log)
        events = written(out)
        assert {event["number"] for event in events} == expected
        assert len({event["id"] for event in events}) == len(expected)  # a repeat has its first id
        assert all(file.stat().st_size <= 1_000_000 for file in out.iterdir())
        assert len(list(out.iterdir())) > 5
        row = await streams.find(conn, "archive")
        assert row is not None
        assert row.events <= len(events)
        assert (await streams.behind(conn, row.place, streams.Wanted())).events == 0


async def test_order_is_that_of_the_log(tmp_path: Path, database: Database) -> None:
    config = write_settings(tmp_path, database.dsn, TABLE.format(more=""))
    async with database.pool.acquire() as conn:
        await add_lines(conn, 1, 3, status=Status.DEFERRED)
        await add_lines(conn, 1, 3)
        await add_lines(conn, 1, 3, status=Status.BOUNCED)
    keep = Keep(config)
    await keep.start()
    path = tmp_path / "out" / "archive.ndjson"
    await until("all came", lambda: path.exists() and path.read_bytes().count(b"\n") == 9)
    assert await keep.end() == 0
    for number in (1, 2, 3):
        kinds = [event["kind"] for event in written(tmp_path / "out") if event["number"] == number]
        assert kinds == ["deferred", "delivered", "bounced"]


async def test_what_an_operator_sees_and_does(tmp_path: Path, database: Database) -> None:
    """The commands, on a stream whose directory cannot be made at first."""
    config = write_settings(tmp_path, database.dsn, TABLE.format(more='kinds = ["delivered"]'))
    (tmp_path / "out").write_text("in the way")
    cli = Cli(database.dsn, tmp_path)
    at = ("--config", str(config))
    (listed,) = cli.json("stream", "list", *at)
    assert (listed["state"], listed["sink"], listed["kinds"]) == ("never ran", "files", ["delivered"])
    assert "cannot be written" in cli.json("stream", "test", "archive", *at, expect=1)["error"]
    assert "no [[stream]]" in cli.run("stream", "test", "other", *at, expect=2).stderr
    assert "ever ran" in cli.run("stream", "skip", "archive", expect=2).stderr
    async with database.pool.acquire() as conn:
        await add_lines(conn, 0, 10)
        await add_lines(conn, 20, 5, status=Status.FAILED)
        keep = Keep(config)
        await keep.start()
        await until("it says so", lambda: any("waits for its sink" in line["event"] for line in keep.log))

        async def is_seen() -> bool:
            (lag,) = await asyncio.to_thread(cli.json, "stream", "lag", *at, expect=1)
            return bool(lag["events_behind"] == 10 and lag["state"] == "retrying" and lag["batch"])

        assert await is_seen()
        (tmp_path / "out").unlink()
        await until("all came", lambda: (tmp_path / "out" / "archive.ndjson").exists(), 30)
        await until("all came", lambda: len(numbers(tmp_path / "out")) == 10)
        assert "no batch" in (await asyncio.to_thread(cli.run, "stream", "skip", "archive", expect=2)).stderr
        assert "can be written" in cli.run("stream", "test", "archive", *at).stdout
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"archive.ndjson"}
        assert await keep.end() == 0
        await add_lines(conn, 30, 5)
        cli.run("stream", "skip", "archive", "--all")
        (lag,) = cli.json("stream", "lag", *at)
        assert (lag["events_behind"], lag["state"]) == (0, "running")
        assert "never ran" not in cli.run("stream", "list", *at).stdout
        assert cli.json("stream", "forget", "archive")["forgotten"]
        assert "knows no stream" in cli.run("stream", "forget", "archive", expect=2).stderr
        assert "no time zone" in cli.run("stream", "replay", "archive", "--from", "2027-01-31", expect=2).stderr


async def test_settings_that_cannot_work_end_the_start(tmp_path: Path, database: Database) -> None:
    (tmp_path / "secret").write_text("whsec_" + "QUJD" * 12)
    (tmp_path / "secret").chmod(0o644)
    table = '[[stream]]\nname = "w"\nsink = "webhook"\nurl = "https://crm.example.com/"\nsecret_file = "secret"\n'
    keep = Keep(write_settings(tmp_path, database.dsn, table))
    await keep.start()
    assert await asyncio.wait_for(keep.process.wait(), 30) == 2
    await keep.end()
    assert "mode 0644" in keep.log[-1]["event"]
    assert "mta.toml:6" in keep.log[-1]["event"]


def a_file(directory: Path, **more: Any) -> EventFile:
    options: dict[str, Any] = {"bytes_max": 100, "period_s": 3_600.0, "keep": 0}
    return EventFile(directory, "archive", **{**options, **more})


def test_files_are_complete_when_they_are_full(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    for _ in range(7):
        file.write(b'{"a":"' + b"x" * 31 + b'"}\n')  # 40 octets
    file.close()
    sizes = [path.stat().st_size for path in file.complete_files()]
    assert sizes == [80, 80, 80]
    assert file.path.stat().st_size == 40
    assert file.path.stat().st_mode & 0o007 == 0
    large = a_file(tmp_path)
    large.write(b"1" * 500 + b"\n")  # larger than a file may be: it has one of its own
    large.write(b"2\n")
    large.close()
    assert [path.stat().st_size for path in large.complete_files()] == [80, 80, 80, 40, 501]


def test_files_are_complete_at_the_end_of_a_period_though_nothing_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_file(tmp_path)
    file.complete_if_due()
    assert list(tmp_path.iterdir()) == []  # nothing is made for nothing
    file.write(b"1\n")
    file.complete_if_due()
    assert file.complete_files() == []
    file.close()
    later = time.time() + 3_600
    monkeypatch.setattr(files.time, "time", lambda: later)
    after = a_file(tmp_path)  # of another process, hours later
    after.complete_if_due()
    assert [path.read_bytes() for path in after.complete_files()] == [b"1\n"]
    assert not after.path.exists()
    after.close()


def test_old_complete_files_go_and_no_others(tmp_path: Path) -> None:
    other = tmp_path / "archive-2.ndjson"
    other.write_text("of another stream\n")
    of_longer_name = tmp_path / "archive-b-20270131T080000.000000Z.ndjson"
    of_longer_name.write_text("of another stream\n")
    file = a_file(tmp_path, keep=2, bytes_max=10)
    for i in range(6):
        file.write(b"%09d\n" % i)
    file.close()
    assert [path.read_bytes() for path in file.complete_files()] == [b"000000003\n", b"000000004\n"]
    assert other.exists()
    assert of_longer_name.exists()


@pytest.mark.parametrize("tail", [b"{", b"x" * 200_000, b'{"a":1}'])
@pytest.mark.parametrize("whole", [b"", b"1\n", b"1\n" * 50_000])
def test_a_torn_line_is_cut_off(tmp_path: Path, whole: bytes, tail: bytes) -> None:
    file = a_file(tmp_path, bytes_max=10**9)
    file.path.write_bytes(whole + tail)
    file.write(b"2\n")
    file.close()
    assert file.path.read_bytes() == whole + b"2\n"


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    file.write(b"1\n")
    file.path.rename(tmp_path / "taken")
    file.write(b"2\n")
    file.path.unlink()
    file.write(b"3\n")
    file.close()
    assert ((tmp_path / "taken").read_bytes(), file.path.read_bytes()) == (b"1\n", b"3\n")


def test_two_processes_never_write_one_file(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    file.write(b"1\n")
    with pytest.raises(BlockingIOError):
        a_file(tmp_path).write(b"2\n")
    file.close()
    a_file(tmp_path).write(b"2\n")


def test_of_what_could_not_be_written_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of a batch, as the system says it."""
    file = a_file(tmp_path)
    file.write(b"1\n")
    write = os.write

    def full(handle: int, text: memoryview) -> int:
        if len(text) < 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, text[:3])

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.write(b"2345678\n")
    monkeypatch.undo()
    assert file.path.read_bytes() == b"1\n"
    file.write(b"2345678\n")
    file.close()
    assert file.path.read_bytes() == b"1\n2345678\n"


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep\n")
    (tmp_path / "archive.ndjson").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        a_file(tmp_path).write(b"1\n")
    assert (tmp_path / "precious").read_text() == "keep\n"
