"""A local socket at which the daemon answers questions: one line of JSON for each, one line back.

It stands in the journal directory, so who holds that directory's lock owns it, and only the daemon's own user (and
root) can ask. A question is answered in the master's loop; answers are bounded, and a client that stalls, floods or
talks nonsense costs its own connection and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from mta.model.errors import BadInput

SOCKET_NAME: Final = "control.sock"
QUESTION_BYTES_MAX: Final = 16 * 1024
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
CLIENTS_MAX: Final = 16
IDLE_S: Final = 10.0  # without a whole question, or with an answer that is not taken
ASK_TIMEOUT_S: Final = 10.0

Question = Mapping[str, Any]
Answerer = Callable[[Question], Awaitable[object]]

log = structlog.get_logger()
_encode = msgspec.json.Encoder().encode


class NoDaemon(Exception):  # noqa: N818 - reads as the sentence it prints
    """No daemon answers at this journal directory."""


class Control:
    """Answers for as long as `run` runs. ``answerers``: by the word that a question has under ``ask``."""

    def __init__(self, directory: Path, answerers: Mapping[str, Answerer]) -> None:
        self._directory = directory
        self._answerers = answerers
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled. A socket that cannot be made is logged, and the daemon does without."""
        try:
            listening = _bound(self._directory)
        except OSError as error:
            log.warning("control socket cannot be opened", error=str(error))
            return
        server = await asyncio.start_unix_server(self._accept, sock=listening, limit=QUESTION_BYTES_MAX)
        try:
            await server.serve_forever()
        finally:
            server.close()
            for client in self._clients:
                client.cancel()
            (self._directory / SOCKET_NAME).unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="control client")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readuntil(b"\n")
                answer = await self._answer(line)
                async with asyncio.timeout(IDLE_S):
                    writer.write(answer + b"\n")
                    await writer.drain()
        except asyncio.LimitOverrunError:
            writer.write(_refusal(f"a question has at most {QUESTION_BYTES_MAX} bytes") + b"\n")
        except asyncio.IncompleteReadError:
            pass  # it has asked all that it wanted
        except (OSError, TimeoutError):
            # It says nothing, or does not take its answer: what waits for it is dropped.
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        """Whatever is asked, there is an answer: nothing that goes wrong here may reach the daemon's loop."""
        try:
            question = msgspec.json.decode(line)
            if not isinstance(question, dict) or not isinstance(question.get("ask"), str):
                return _refusal('a question is {"ask": WORD, ...}')
            answerer = self._answerers.get(question["ask"])
            if answerer is None:
                return _refusal(f"cannot be asked: {question['ask']!r}; known: {', '.join(sorted(self._answerers))}")
            answer = _encode({"answer": await answerer(question)})
        except msgspec.DecodeError as error:
            return _refusal(f"is no JSON: {error}")
        except BadInput as error:
            return _refusal(str(error))
        except Exception as error:
            log.exception("question could not be answered", question=line[:200].decode(errors="replace"))
            return _refusal(f"{type(error).__name__}: {error}")
        if len(answer) > ANSWER_BYTES_MAX:
            return _refusal(f"the answer has {len(answer)} bytes, at most {ANSWER_BYTES_MAX} are sent: ask for less")
        return answer


def _refusal(why: str) -> bytes:
    return _encode({"error": why})


@contextlib.contextmanager
def _short_path(directory: Path) -> Any:
    """The socket's path by way of an open directory: the name of a socket may have 107 bytes only (unix(7))."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET_NAME}"
    finally:
        os.close(fd)


def _bound(directory: Path) -> socket.socket:
    """A listening socket in the place of whatever an earlier run left; the caller holds the directory's lock."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(directory) as path:
            (directory / SOCKET_NAME).unlink(missing_ok=True)
            before = os.umask(0o177)  # from its first moment on; nothing else runs in between
            try:
                listening.bind(path)
            finally:
                os.umask(before)
        listening.setblocking(False)
        listening.listen(CLIENTS_MAX)
    except BaseException:
        listening.close()
        raise
    return listening


def ask(directory: Path, word: str, **more: object) -> Any:
    """Asks the daemon whose journal is there. Raises NoDaemon when none answers, BadInput when it refuses."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(ASK_TIMEOUT_S)
            with _short_path(directory) as path:
                asking.connect(path)
            asking.sendall(_encode({"ask": word, **more}) + b"\n")
            line = _read_line(asking)
    except PermissionError as error:
        raise BadInput(str(directory / SOCKET_NAME), "may only be asked by the daemon's own user, or root") from error
    except OSError as error:
        raise NoDaemon(f"no daemon answers at {directory / SOCKET_NAME}: {error.strerror or error}") from error
    told = msgspec.json.decode(line)
    if "error" in told:
        raise BadInput(f"daemon, {word}", told["error"])
    return told["answer"]


def _read_line(asking: socket.socket) -> bytes:
    chunks = []
    while True:
        chunk = asking.recv(1 << 16)
        chunks.append(chunk)
        if not chunk or chunk.endswith(b"\n"):
            break
    if not chunks[-1]:
        raise ConnectionError("it closed without an answer")
    return b"".join(chunks)
