"""`mta deliverability` and `mta monitor domains` as they are typed, against a real HTTPS server on loopback."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trustme

from mta.bundle import BUNDLE_BYTES_MAX
from mta.bundle.update import take_update
from mta.model.failure import Category
from mta.queue import updates
from mta.settings import load_settings
from mta.settings.shipped import BOUNCE_RULES, PROVIDERS
from tests.support.authorities import ca_file, server_context
from tests.support.bundles import MX_RULES, Maker, changed, texts
from tests.support.cli import Cli
from tests.support.node import World, addresses, until
from tests.support.postgres import Database


class Server:
    """HTTPS; ``answers``: path -> octets of a body, or a whole HTTP response. Without TLS when there is no context."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.port = 0

    @asynccontextmanager
    async def serving(self, context: ssl.SSLContext | None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.decode("ascii").split(" ")[1]
            self.asked.append(path)
            body = self.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            if not body.startswith(b"HTTP/"):
                body = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            writer.write(body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass  # the client has left, or would not have us
        finally:
            writer.close()


class Scene:
    """A node's settings, a maker of bundles, and the command line."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.directory = directory
        self.maker = Maker()
        self.authority = trustme.CA()
        self.server = Server()
        self.cli = Cli(dsn, directory)
        (directory / "mx-rules.toml").write_text(MX_RULES)
        for name, text in texts("mailbox_full", connections=2).items():
            (directory / name).write_text(text)

    def settings(self, source: str) -> None:
        (self.directory / "mta.toml").write_text(
            f'[rules]\nfile = "mx-rules.toml"\n[failures]\nbounce_rules = "{BOUNCE_RULES}"\n[deliverability]\n'
            f'source = "{source}"\npublic_keys = ["{self.maker.public}"]\n'
            f'ca_file = "{ca_file(self.directory, self.authority)}"\n'
        )

    async def run(self, *words: str, expect: int = 0) -> Any:
        arguments = ("deliverability", *words, "--config", "mta.toml")
        return await asyncio.to_thread(self.cli.json, *arguments, expect=expect)

    async def run_plain(self, *words: str) -> Any:
        """What needs neither settings nor a database."""
        return await asyncio.to_thread(self.cli.json, "deliverability", *words)


@pytest.fixture
async def scene(tmp_path: Path, dsn: str) -> AsyncIterator[Scene]:
    found = Scene(tmp_path, dsn)
    certificate = found.authority.issue_cert("localhost")
    async with found.server.serving(server_context(certificate)):
        found.settings(f"https://localhost:{found.server.port}/b.json")
        yield found


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()


async def test_an_update_over_https_from_the_first_to_the_rollback(conn: asyncpg.Connection, scene: Scene) -> None:
    status = await scene.run("status")
    assert (status["update"], status["last_attempt"], status["enabled"]) == (None, None, False)
    scene.server.answers["/b.json"] = scene.maker.bundle(1, texts(connections=4), note="figures of spring")
    assert (await scene.run("update", "--dry-run"))["result"] == "tried"
    assert (await scene.run("status"))["update"] is None
    done = await scene.run("update", "--by", "ann@desk")
    assert (done["result"], done["version"]) == ("applied", 1)
    assert (await scene.run("update"))["result"] == "current"
    status = await scene.run("status")
    assert (status["update"]["version"], status["update"]["note"]) == (1, "figures of spring")
    assert status["update"]["applied_by"] == "ann@desk"
    shown = await scene.run("show")
    assert shown["texts"] == texts(connections=4)

    # Moved by its owner, within HTTPS.
    scene.server.answers["/new.json"] = scene.maker.bundle(2, texts(connections=5))
    scene.server.answers["/b.json"] = redirect("/new.json")
    assert (await scene.run("update"))["version"] == 2
    assert (await scene.run("rollback", "--by", "ann@desk"))["update"]["version"] == 1
    assert (await scene.run("update", expect=1))["result"] == "refused"
    assert (await scene.run("update", "--allow-older"))["result"] == "applied"
    assert (await scene.run("rollback", "--to-shipped"))["update"]["version"] == 0
    await asyncio.to_thread(
        scene.cli.run, "deliverability", "rollback", "--to-shipped", "--config", "mta.toml", expect=2
    )
    history = (await scene.run("history"))["attempts"]
    assert [(one["result"], one["version"]) for one in reversed(history)] == [
        *(("tried", 1), ("applied", 1), ("current", 1), ("applied", 2), ("rolled-back", 1)),
        *(("refused", 2), ("applied", 2), ("rolled-back", 0)),
    ]
    assert {one["source"] for one in history if one["source"]} == {f"https://localhost:{scene.server.port}/b.json"}
    assert await updates.texts_in_force(conn) == {}


async def test_whatever_is_wrong_on_the_way_changes_nothing(conn: asyncpg.Connection, scene: Scene) -> None:
    good = scene.maker.bundle(5, texts(connections=4))
    scene.server.answers["/b.json"] = good
    settings = load_settings(scene.directory / "mta.toml", environment={}, host_name="h")
    await take_update(conn, settings, "ann@desk")
    plain = Server()
    plain.answers["/b.json"] = scene.maker.bundle(6)
    newer = scene.maker.bundle(6)
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(newer), newer[:-200])
    cases = {
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n": ("failed", "answered with status 500"),
        cut: ("failed", "RemoteProtocolError"),
        newer[:-200]: ("refused", "not all of one"),
        b"<html>please sign in</html>": ("refused", "is no bundle"),
        Maker().bundle(6): ("refused", "does not name"),
        changed(newer, files=texts("user_unknown")): ("refused", "is not the file that was signed"),
        scene.maker.bundle(4): ("refused", "is older than version 5"),
        scene.maker.bundle(6, texts("sleepy")): ("refused", "bundle 6/bounce-rules.toml:3: rule.category: 'sleepy'"),
        b" " * (BUNDLE_BYTES_MAX + 1): ("failed", "is larger than"),
        redirect("/b.json"): ("failed", "more than 5 redirects"),
    }
    async with plain.serving(None):
        cases[redirect(f"http://127.0.0.1:{plain.port}/b.json")] = ("failed", "which is not https")
        for answer, (result, what) in cases.items():
            scene.server.answers["/b.json"] = answer
            told = await take_update(conn, settings, "ann@desk")
            assert (told.result.value, what in told.detail) == (result, True), told
        assert plain.asked == []
    found = await updates.in_force(conn)
    assert found is not None
    assert (found.version, found.texts) == (5, texts(connections=4))
    history = await updates.history(conn, 100)
    assert len(history) == len(cases) + 1
    assert all(one.by_whom for one in history)


async def test_only_a_server_that_proves_who_it_is_is_asked(conn: asyncpg.Connection, scene: Scene) -> None:
    scene.server.answers["/b.json"] = scene.maker.bundle(1)
    scene.authority = trustme.CA()  # that of somebody else
    scene.settings(f"https://localhost:{scene.server.port}/b.json")
    told = await scene.run("update", expect=1)
    assert (told["result"], scene.server.asked) == ("failed", [])
    assert "certificate" in told["detail"].lower()
    for source, what in (("http://localhost/b", "expected https"), ("missing.json", "cannot be opened")):
        told = await scene.run("update", "--from", source, expect=1)
        assert what in told["detail"]
    assert await updates.in_force(conn) is None


async def test_a_bundle_made_here_is_taken_there(tmp_path: Path, scene: Scene, conn: asyncpg.Connection) -> None:
    key = (await scene.run_plain("keygen", "--out", "key.pem"))["public_key"]
    scene.maker.public = key
    scene.settings("out/b.json")
    (tmp_path / "out").mkdir()
    make = ("make", "--key", "key.pem", "--out", "out/b.json", "--bounce-rules", BOUNCE_RULES, "--providers", PROVIDERS)
    made = await scene.run_plain(*make, "--version", "1", "--note", "hello")
    assert (made["manifest"]["version"], made["signed_by"]) == (1, key)
    assert (await scene.run("update"))["result"] == "applied"
    assert await updates.texts_in_force(conn) == texts("mailbox_full", connections=2)
    # The shipped files can be made into one as they are; what nobody could load is not made.
    assert (await scene.run_plain("make", "--key", "key.pem", "--out", "out/c.json", "--version", "2"))["bytes"] > 1_000
    (tmp_path / BOUNCE_RULES).write_text("[[rule]]\nname = 1\n")
    refused = await asyncio.to_thread(scene.cli.run, "deliverability", *make, "--version", "3", expect=2)
    assert "bounce-rules.toml:2" in refused.stderr
    assert json.loads((tmp_path / "out/b.json").read_text())["manifest"].startswith('{"version":1,')


async def test_a_running_node_refuses_and_paces_by_an_update_at_once(tmp_path: Path, database: Database) -> None:
    maker = Maker()
    script = '[[rule]]\nstep = "rcpt"\ncode = 550\ntext = "this mailbox is sleeping"\n'
    async with World(tmp_path, database, script=script) as world:
        (tmp_path / "one").mkdir()
        for name, text in texts("user_unknown", connections=2).items():
            (tmp_path / "one" / name).write_text(text)
        settings = f'[failures]\nbounce_rules = "{BOUNCE_RULES}"\n[deliverability]\npublic_keys = ["{maker.public}"]\n'
        node = world.node(children=1, rules=MX_RULES, settings=settings)
        await node.start()
        first = await world.deliver(addresses(1))
        await world.wait_for(first, lambda shown: shown.failed)
        bundle = tmp_path / "b.json"
        bundle.write_bytes(maker.bundle(1, texts("spam_content", connections=3)))
        cli = Cli(database.dsn, tmp_path)
        words = ("deliverability", "update", "--from", str(bundle), "--config", str(node.config))
        assert (await asyncio.to_thread(cli.json, *words))["result"] == "applied"
        await until("both kinds of rules are new", lambda: node.said("rules applied"))
        await until("bounce rules are new", lambda: node.said("bounce rules are of a deliverability update"))
        second = await world.deliver(addresses(1))
        await world.wait_for(second, lambda shown: shown.failed)
    async with database.pool.acquire() as conn:
        rows = await conn.fetch("SELECT DISTINCT delivery_id, category FROM mta.delivery_log ORDER BY 1")
    assert [tuple(row) for row in rows] == [(first, Category.USER_UNKNOWN), (second, Category.SPAM_CONTENT)]


async def test_rates_by_domain_as_they_are_typed(tmp_path: Path, dsn: str, conn: asyncpg.Connection) -> None:
    await conn.execute(
        """
        INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,
                                      address, site, mx_host, peer, egress, reply)
        SELECT now() - interval '1 hour', 7, n, 1, 1, CASE WHEN n <= 3 THEN 2 ELSE 1 END, CASE WHEN n <= 3 THEN 1 ELSE 0
               END, 250, '', 'u' || n || '@d.test', 'mx.big.example+1-abc+sts', '', '', 'e1', ''
        FROM generate_series(1, 100) n
        """
    )
    for name, text in {"mx-rules.toml": MX_RULES, **texts()}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "mta.toml").write_text('[rules]\nfile = "mx-rules.toml"\n')
    cli = Cli(dsn, tmp_path)

    async def ask(*words: str) -> Any:
        return await asyncio.to_thread(cli.json, "monitor", "domains", "--config", "mta.toml", *words)

    told = await ask()
    (row,) = told["rows"]
    assert (row["name"], row["sent"], row["hard"], row["hard_percent"], row["marks"]) == (
        *("d.test", 100, 3, 3.0),
        ["hard"],
    )
    assert (told["since_s"], told["others"], told["total"]["sent"]) == (86_400, None, 100)
    assert (await ask("--by", "provider"))["rows"][0]["name"] == "big"
    assert (await ask("--by", "site", "--delivery", "7"))["rows"][0]["name"] == "mx.big.example+1-abc"
    assert (await ask("--delivery", "8"))["rows"] == []
    assert (await ask("--since", "30m"))["rows"] == []
    shown = await asyncio.to_thread(cli.run, "monitor", "domains", "--config", "mta.toml")
    assert "hard > 2 %" in shown.stdout
    await asyncio.to_thread(cli.run, "monitor", "domains", "--since", "400d", expect=2)


async def test_an_alert_about_an_egress_as_it_is_shown(tmp_path: Path, dsn: str, conn: asyncpg.Connection) -> None:
    await conn.execute(
        """
        INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced,
                                      address, site, mx_host, peer, egress, reply, type, category)
        SELECT now() - interval '5 minutes', 7, n, 1, 1, 2, 20, 554, '5.7.1', 'u@d.test', 'mx.big.example', '', '',
               'out-1', 'listed, see https://list.example.org', 3, 12
        FROM generate_series(1, 30) n
        """
    )
    cli = Cli(dsn, tmp_path)
    (tmp_path / "mta.toml").write_text("[alarms]\nrefusals_min = 31\n")
    check = ("monitor", "check", "--config", "mta.toml")
    assert (await asyncio.to_thread(cli.json, *check))["alerts"] == []
    (tmp_path / "mta.toml").write_text("[alarms]\nrefusals_min = 30\n")
    (new,) = (await asyncio.to_thread(cli.json, *check))["alerts"]
    assert (new["kind"], new["egress"], new["category"], new["delivery_id"]) == (
        *("our-fault", "out-1", "ip_blocked"),
        None,
    )
    assert new["reply"] == "554 5.7.1 listed, see https://list.example.org"
    assert (await asyncio.to_thread(cli.json, *check))["alerts"] == []
    (kept,) = (await asyncio.to_thread(cli.json, "monitor", "alerts"))["alerts"]
    assert kept["since"] == new["since"]
    assert "out-1" in (await asyncio.to_thread(cli.run, "monitor", "alerts")).stdout
