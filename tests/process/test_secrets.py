"""Passwords on the command line, in settings and in processes: who is shown none, and who has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.node import World
from tests.support.postgres import Database

SECRET = "s3cr3t"
COMMANDS = (
    ("delivery", "list"),
    ("queue", "show"),
    ("monitor", "alerts"),
    ("db", "status"),
    ("run",),
    ("keep",),
    ("explain", "a.test"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_malformed_dsn_is_one_line_that_shows_nothing_of_it(command: tuple[str, ...], tmp_path: Path) -> None:
    done = Cli(f"postgresql://u:{SECRET}/x@127.0.0.1/db", tmp_path).run(*command, expect=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "MTA_DATABASE_URL" in done.stderr
    assert "%2F" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_config_check_refuses_a_password_file_that_others_can_read(tmp_path: Path) -> None:
    file, password = tmp_path / "mta.toml", tmp_path / "password"
    password.write_text(SECRET)
    file.write_text(
        '[[inbound.mailbox]]\nkind = "imap"\nhost = "mail.example"\nuser = "back"\npassword_file = "password"\n'
    )
    password.chmod(0o644)
    cli = Cli("", tmp_path)
    refused = cli.run("config", "check", str(file), expect=1)
    assert "has mode 0644" in refused.stderr
    password.chmod(0o640)
    cli.run("config", "check", str(file))
    file.write_text(f"[database]\ndsn = ['postgresql://u:{SECRET}@h/db']\n")
    assert SECRET not in cli.run("config", "check", str(file), expect=1).stderr


async def test_children_do_not_know_where_the_database_is(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTA_DATABASE_URL", database.dsn)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    async with World(tmp_path, database) as world:
        node = world.node(children=1)
        await node.start()
        [child] = node.child_pids()
        names = environment_of(child)
        assert "PATH" in names
        assert not [name for name in names if name == "MTA_DATABASE_URL" or name.startswith("PG")]
        assert await node.stop() == 0


def environment_of(pid: int) -> set[str]:
    return {one.partition(b"=")[0].decode() for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if one}
