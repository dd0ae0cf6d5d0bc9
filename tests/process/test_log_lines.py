"""Every line of a log is one JSON object, whoever speaks and whatever a stranger sends."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.launch import launch
from tests.support.node import World, addresses, until
from tests.support.postgres import Database
from tests.support.server import own_server

SPEAKERS = r"""
import asyncio, logging, sys, threading, warnings, gc
import structlog
from mta.telemetry.logs import configure
configure("info", as_json={as_json})
structlog.get_logger().info("ours", reply="a\x1b[2Jb\u202ec\x9bd\u2028e\nf", deep={{"k\x1b": ["v\x07"]}})
logging.getLogger("mail.log").warning("%r said %s", ("192.0.2.1", 25), "\x1b]0;title\x07")
logging.getLogger("aiosmtplib").info("not wanted")
logging.getLogger("broken").error("%d", "no number")
warnings.warn("a warning\x1b[0m", UserWarning)
class Bad:
    def __del__(self): raise ValueError("in del\x1b")
bad = Bad(); del bad; gc.collect()
thread = threading.Thread(target=lambda: 1 / 0, name="worker"); thread.start(); thread.join()
async def main():
    async def fail(): raise KeyError("never looked at")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task; gc.collect()
    asyncio.get_running_loop().call_soon(lambda: [][1])
    await asyncio.sleep(0)
asyncio.run(main())
raise RuntimeError("the end\x1b[31m")
"""


def said(*, as_json: bool) -> tuple[int, bytes]:
    done = subprocess.run(
        [sys.executable, "-c", SPEAKERS.format(as_json=as_json)], capture_output=True, timeout=60, check=False
    )
    assert done.stdout == b""
    return done.returncode, done.stderr


def test_whoever_speaks_says_one_json_object_a_line() -> None:
    code, octets = said(as_json=True)
    assert code == 1
    entries = [json.loads(line) for line in octets.decode().splitlines()]
    assert [entry["event"] for entry in entries] == [
        "ours",
        "library says",
        "record of a library cannot be written",
        "warning",
        "error that cannot be raised",
        "thread ends by an error",
        "library says",
        "library says",
        "process ends by an error",
    ]
    assert entries[0]["reply"] == "a\\x1b[2Jb\\u202ec\\x9bd\\u2028e\\nf"
    assert entries[0]["deep"] == {"k\\x1b": ["v\\x07"]}
    assert (entries[1]["library"], entries[1]["text"]) == ("mail.log", "('192.0.2.1', 25) said \\x1b]0;title\\x07")
    assert entries[6]["text"].startswith("Task exception was never retrieved\\nfuture: ")
    assert "IndexError" in entries[7]["exception"]
    assert "\n" in entries[8]["exception"]  # a traceback keeps its lines, inside of its string
    assert entries[8]["exception"].endswith("RuntimeError: the end\\x1b[31m")


def test_no_control_character_reaches_a_terminal() -> None:
    _, octets = said(as_json=False)
    for sent in (b"\x1b[2J", b"\x1b]0;", b"\x07", "\u202e".encode(), "\x9b".encode(), b"\x1b[31m"):
        assert sent not in octets.replace(b"\x1b[31m\x1b[1m", b""), sent  # a colour of our own


async def test_what_a_stranger_sends_to_the_inbound_listener_is_escaped(tmp_path: Path, database: Database) -> None:
    config = tmp_path / "back.toml"
    config.write_text(
        f'''
[node]
name = "back"
journal_dir = "{tmp_path / "journal"}"
[database]
dsn = "{database.dsn}"
[inbound]
listen = ["127.0.0.1:0"]
domains = ["back.example"]
spool_dir = "{tmp_path / "spool"}"
'''
    )
    process = await launch("inbound", "run", "--config", str(config), "--log-json")
    lines: list[bytes] = []
    async with asyncio.timeout(60):
        async for line in process.stderr:
            lines.append(line)
            if json.loads(line)["event"] == "running":
                break
    port = int(json.loads(lines[-1])["listening"][0].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    hostile = [b"\x1b]0;owned\x07\x1b[2J", "\u202e\u2028\x9b".encode(), b"\xff\xfe\x00", b'{"event": "forged"}']
    for octets in hostile:
        writer.write(octets + b"\r\nEHLO " + octets + b"\r\nMAIL FROM:<" + octets + b"@x.test> X\r\n")
        writer.write(b"A" * 5_000 + octets + b"\r\n")
    writer.write(b"QUIT\r\n")
    async with asyncio.timeout(30):
        await reader.read()  # until it hangs up
    writer.close()
    process.send_signal(signal.SIGTERM)
    lines += [line async for line in process.stderr]
    assert await asyncio.wait_for(process.wait(), 30) == 0
    entries = [json.loads(line) for line in lines]
    assert any("\\x1b]0;owned\\x07\\x1b[2j" in entry.get("text", "").lower() for entry in entries), entries
    assert not any(entry["event"] == "forged" for entry in entries)
    for entry in entries:
        for value in entry.values():
            assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e]", str(value)), entry


async def test_an_outage_of_the_database_is_said_once_when_it_begins_and_once_when_it_ends(tmp_path: Path) -> None:
    async with own_server() as (server, database), World(tmp_path, database) as world:
        node = world.node(lease_s=6.0)
        await node.start()
        assert node.process is not None
        delivery = await world.deliver(addresses(200))
        await world.wait_for(delivery)
        for times in (1, 2):
            await asyncio.to_thread(server.stop)
            await until("it says so", lambda times=times: len(node.said("database is away")) == times)
            await until("its lease ends", lambda: node.said("sending")[-1:] and node.said("sending")[-1]["held_by"])
            await asyncio.to_thread(server.start)
            await until("it is back", lambda times=times: len(node.said("database is back")) == times)
            delivery = await world.deliver(addresses(200))
            await world.wait_for(delivery)
        assert await node.stop() == 0
    lines = (node.directory / f"{node.name}.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["event"] for entry in entries if entry["event"].startswith("database is")] == [
        "database is away",
        "database is back",
    ] * 2
    assert not [entry for entry in entries if "exception" in entry]
    assert not [entry for entry in entries if "library" in entry]
