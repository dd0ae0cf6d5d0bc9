"""What we use of others that they have not promised: each is named here, and a test fails when it changes.

aiosmtpd's server is made to be inherited from, but much of what a heavy server must replace has a leading underscore:
so it is pinned to one version, and that version's source to its digest. asyncio and asyncpg are held by what they do.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import aiosmtpd.smtp
import asyncpg
import pytest

ROOT = Path(__file__).parents[2]
AIOSMTPD_SMTP = "989628e6e5b740fef3ecc184e71294aee0a4218cc992ca2ad91d4397a20f254f"
# What inherits from a class of others, with the private names of theirs that it calls, replaces or reads.
INHERITED = {
    "mta/sink/dialogue.py": {
        *("_getaddr", "_handle_client", "_handler_coroutine", "_reader", "_reset_timeout"),
        *("_set_post_data_state", "_set_rset_state", "_timeout_cb", "_timeout_duration", "_timeout_handle", "_writer"),
    },
    "mta/inbound/connection.py": {
        *("_cb_client_connected", "_create_envelope", "_getaddr", "_handle_client", "_reader", "_reset_timeout"),
        *("_smtp_methods", "_timeout_cb"),
    },
    "mta/queue/connection.py": {"_cancel", "_transport"},
}
# Private names of objects that are not ours: asyncio.StreamReader's buffer; os._exit, which is documented.
REACHED_INTO = {name: {"_buffer"} for name in ("mta/sink/dialogue.py", "mta/inbound/connection.py")} | {
    name: {"_exit"} for name in ("mta/inbound/readers.py", "mta/inbound/spool.py", "mta/child/worker.py")
}
_NAMED_TUPLES = {"_replace", "_asdict", "_fields"}
_ONLY_ANNOTATIONS = {"_Regexp", "_Hash"}  # never looked up while a program runs


@cache
def sources() -> dict[str, ast.Module]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in (ROOT / "mta").rglob("*.py")}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_own(value: ast.expr) -> bool:
    return ast.unparse(value) in {"self", "cls", "super()"}


def private(tree: ast.Module) -> Iterator[ast.Attribute]:
    return (one for one in ast.walk(tree) if isinstance(one, ast.Attribute) and is_private(one.attr))


def defined(tree: ast.Module) -> set[str]:
    """Private names that a module makes: functions, classes, and what is set on ``self`` or declared in a class."""
    made: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            made.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
    return made


def methods(tree: ast.Module) -> set[str]:
    of_classes = (node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {one.name for body in of_classes for one in body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_whatever_is_reached_into_and_not_ours_is_named_here() -> None:
    ours = set().union(*(defined(tree) for tree in sources().values())) | _NAMED_TUPLES | _ONLY_ANNOTATIONS
    found: dict[str, set[str]] = {}
    for name, tree in sources().items():
        for one in private(tree):
            if not is_own(one.value) and one.attr not in ours:
                found.setdefault(name, set()).add(one.attr)
    assert found == REACHED_INTO


def test_whatever_is_inherited_and_private_is_named_here() -> None:
    theirs = {
        "mta/sink/dialogue.py": aiosmtpd.smtp.SMTP,
        "mta/inbound/connection.py": aiosmtpd.smtp.SMTP,
        "mta/queue/connection.py": asyncpg.Connection,
    }
    for name, parent in theirs.items():
        module = inspect.getmodule(parent)
        assert module is not None
        known = set(re.findall(r"\b_[a-z]\w*", inspect.getsource(module)))
        used = {one.attr for one in private(sources()[name]) if is_own(one.value)} | methods(sources()[name])
        assert {one for one in used & known if is_private(one)} == INHERITED[name], name


def test_aiosmtpd_is_the_one_that_was_read() -> None:
    """Changed? Read what it does now with each name of INHERITED, run sink's and inbound's tests, enter the digest."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [one for one in requirements if one.startswith("aiosmtpd")] == [f"aiosmtpd=={aiosmtpd.__version__}"]
    assert hashlib.sha256(inspect.getsource(aiosmtpd.smtp).encode()).hexdigest() == AIOSMTPD_SMTP


async def test_a_stream_reader_gives_first_what_is_put_before_its_buffer() -> None:
    """As mta.sink.dialogue does for the CRLF of the DATA command."""
    reader = asyncio.StreamReader()
    reader.feed_data(b".\r\nQUIT\r\n")
    buffer = reader._buffer  # type: ignore[attr-defined]
    assert isinstance(buffer, bytearray)
    buffer[:0] = b"\r\n"
    assert await reader.readuntil(b"\r\n.\r\n") == b"\r\n.\r\n"
    assert bool(reader._buffer)  # type: ignore[attr-defined]
    assert await reader.readline() == b"QUIT\r\n"
    assert not reader._buffer  # type: ignore[attr-defined]


def test_a_stream_protocol_is_set_up_by_the_call_that_the_listener_makes() -> None:
    """mta.inbound.connection goes around aiosmtpd's constructor to this one."""
    parameters = list(inspect.signature(asyncio.StreamReaderProtocol.__init__).parameters)
    assert parameters == ["self", "stream_reader", "client_connected_cb", "loop"]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="it is public from 3.13 on, and that is what is asked then")
def test_tls_objects_give_the_chain_that_was_shown() -> None:
    import _ssl

    assert callable(_ssl._SSLSocket.get_unverified_chain)  # type: ignore[attr-defined]


def test_asyncpg_cancels_and_keeps_its_transport_as_the_queue_expects() -> None:
    assert inspect.iscoroutinefunction(asyncpg.Connection._cancel)
    assert list(inspect.signature(asyncpg.Connection._cancel).parameters) == ["self", "waiter", "cancel_waiter"]
    assert "_transport" in asyncpg.Connection.__slots__
