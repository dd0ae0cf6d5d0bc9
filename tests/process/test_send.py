"""``mta send``: one test message through a real node to a real server, and the way it went."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from tests.support.cli import Cli
from tests.support.node import World
from tests.support.postgres import Database

SCRIPT = """
[[rule]]
step = "rcpt"
local_part = "nobody"
code = 550
text = "5.1.1 no such user here"

[[rule]]
step = "rcpt"
local_part = "later"
code = 451
text = "4.7.1 come again"
"""
RULES = """
[[rule]]
name = "all-of-it"
mx = "*"
scope = "path"
connections_max = 2
"""


async def test_the_way_of_a_test_message_is_printed(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, script=SCRIPT) as world:
        node = world.node(rules=RULES)
        await node.start()
        cli = Cli(database.dsn, tmp_path)

        def send(*to: str, expect: int = 0, wait: str = "30s") -> list[str]:
            given = ["send", *(word for one in to for word in ("--to", one)), "--from", "Shop <news@shop.example>"]
            return cli.on_terminal(*given, "--config", str(node.config), "--wait", wait, expect=expect)

        lines = await asyncio.to_thread(send, "Ann@d0.test")
        text = "\n".join(lines)
        assert "attempt 1: delivered" in text
        for words in ("site   mx.test", "host   mx.test [127.0.0.1]", "egress default", "rule   all-of-it", "TLS    "):
            assert words in text, text
        assert "reply  250" in text
        assert max(map(cell_len, lines)) <= 80
        text = "\n".join(await asyncio.to_thread(send, "nobody@d1.test", "bob@d1.test", expect=1))
        assert "reply  550 5.1.1 no such user here" in text
        assert "is     hard, user_unknown, user_unknown" in text
        text = "\n".join(await asyncio.to_thread(send, "later@d2.test", expect=1, wait="2s"))
        assert "attempt 1: deferred" in text
        assert "no outcome yet: it waits until" in text
        assert world.record().recipients()["Ann@d0.test"] == 1


async def test_without_a_node_it_says_so(dsn: str, tmp_path: Path) -> None:
    cli = Cli(dsn, tmp_path)
    done = cli.run("send", "--to", "ann@d0.test", "--from", "n@shop.example", "--wait", "1s", expect=1)
    assert "no node lives" in done.stderr
    assert "no outcome yet" in done.stdout
    told: Any = json.loads(
        cli.run("send", "--to", "a@d0.test", "--from", "n@s.example", "--wait", "1s", "--json", expect=1).stdout
    )
    assert (told["is_delivered"], told["nodes_living"], told["ways"][0]["attempts"]) == (False, 0, [])
    refused = cli.run("send", "--to", "a b", "--from", "n@s.example", expect=2).stderr
    assert refused.startswith("error: --to: ")
    assert "sender" in cli.run("send", "--to", "a@d0.test", "--from", "nobody", expect=2).stderr
