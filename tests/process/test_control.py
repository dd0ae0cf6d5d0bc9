"""The control socket: what is asked gets an answer, and nobody who asks badly does any harm."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mta.master import control
from mta.master.control import Control, NoDaemon, Question, ask
from mta.model.errors import BadInput


async def _echo(question: Question) -> object:
    return dict(question)


async def _broken(question: Question) -> object:
    raise KeyError("a bug of ours")


async def _large(question: Question) -> object:
    return "x" * (control.ANSWER_BYTES_MAX + 1)


@asynccontextmanager
async def answering(directory: Path) -> AsyncIterator[Control]:
    made = Control(directory, {"echo": _echo, "broken": _broken, "large": _large})
    running = asyncio.create_task(made.run())
    for _ in range(200):
        if (directory / control.SOCKET_NAME).exists():
            break
        await asyncio.sleep(0.01)
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def asked(directory: Path, word: str, **more: object) -> Any:
    return await asyncio.to_thread(ask, directory, word, **more)


async def raw(directory: Path, octets: bytes) -> Any:
    reader, writer = await asyncio.open_unix_connection(str(directory / control.SOCKET_NAME), limit=1 << 23)
    writer.write(octets)
    line = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return json.loads(line)


async def test_a_question_is_answered_and_only_the_owner_may_ask(tmp_path: Path) -> None:
    async with answering(tmp_path):
        assert await asked(tmp_path, "echo", site="mx.test") == {"ask": "echo", "site": "mx.test"}
        mode = os.stat(tmp_path / control.SOCKET_NAME).st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    assert not (tmp_path / control.SOCKET_NAME).exists()
    with pytest.raises(NoDaemon, match="no daemon answers"):
        ask(tmp_path, "echo")


async def test_what_a_dead_run_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / control.SOCKET_NAME))
    left.close()
    with pytest.raises(NoDaemon):
        ask(tmp_path, "echo")
    async with answering(tmp_path):
        await asyncio.sleep(0.05)
        assert await asked(tmp_path, "echo") == {"ask": "echo"}


async def test_a_directory_of_a_long_name_will_do(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    async with answering(deep):
        assert await asked(deep, "echo") == {"ask": "echo"}


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"no json\n", "is no JSON"),
        (b"[1]\n", 'a question is {"ask": WORD'),
        (b'{"ask": 7}\n', 'a question is {"ask": WORD'),
        (b'{"ask": "weather"}\n', "known: broken, echo, large"),
        (b'{"ask": "broken"}\n', "KeyError"),
        (b'{"ask": "large"}\n', "ask for less"),
        (b"x" * (control.QUESTION_BYTES_MAX + 1), "at most 16384 bytes"),
    ],
)
async def test_nonsense_gets_a_sentence_and_the_next_question_an_answer(
    tmp_path: Path, octets: bytes, said: str
) -> None:
    async with answering(tmp_path):
        assert said in (await raw(tmp_path, octets))["error"]
        assert await asked(tmp_path, "echo") == {"ask": "echo"}


async def test_a_refusal_is_bad_input(tmp_path: Path) -> None:
    async with answering(tmp_path):
        with pytest.raises(BadInput, match="cannot be asked"):
            await asked(tmp_path, "weather")


async def test_who_stalls_or_takes_no_answer_is_dropped_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "IDLE_S", 0.2)
    async with answering(tmp_path) as made:
        path = str(tmp_path / control.SOCKET_NAME)
        silent = await asyncio.open_unix_connection(path)
        half = await asyncio.open_unix_connection(path)
        half[1].write(b'{"ask": "ec')
        # Asks for much and reads nothing of it.
        deaf = socket.socket(socket.AF_UNIX)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(path)
        deaf.sendall(json.dumps({"ask": "echo", "text": "x" * 15_000}).encode() + b"\n")
        flood = b"".join(json.dumps({"ask": "echo", "text": "x" * 15_000}).encode() + b"\n" for _ in range(200))
        deaf.setblocking(False)
        try:
            deaf.send(flood)
        except BlockingIOError:
            pass  # it does not read on either, which is what is wanted
        assert await asked(tmp_path, "echo") == {"ask": "echo"}
        for _ in range(300):
            if not made._clients:
                break
            await asyncio.sleep(0.01)
        assert not made._clients
        assert await silent[0].read() == b""
        silent[1].close()
        half[1].close()
        deaf.close()


async def test_more_clients_than_are_served_are_turned_away(tmp_path: Path) -> None:
    async with answering(tmp_path):
        path = str(tmp_path / control.SOCKET_NAME)
        held = [await asyncio.open_unix_connection(path) for _ in range(control.CLIENTS_MAX)]
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_unix_connection(path)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        for _, other in [*held, (reader, writer)]:
            other.close()
        await asyncio.sleep(0.1)
        assert await asked(tmp_path, "echo") == {"ask": "echo"}
