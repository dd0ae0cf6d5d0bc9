"""Waves, scheduled starts, simulation, part size and preview, as an operator asks for them."""

from __future__ import annotations

import asyncio
import datetime
import json
from pathlib import Path

import asyncpg
import pytest

from mta.message.advice import size_advice
from mta.model.limits import automatic_part_recipients
from mta.queue import deliveries
from mta.sink.record import read_body
from tests.support.cli import Cli
from tests.support.content import content_json, new_delivery
from tests.support.keys import ed25519_pem, rsa_pem
from tests.support.node import World, addresses
from tests.support.postgres import Database


@pytest.fixture
def cli(dsn: str, tmp_path: Path) -> Cli:
    return Cli(dsn, tmp_path)


def rows(cli: Cli, count: int) -> str:
    (cli.directory / "rows.csv").write_text("email,first\n" + "".join(f"u{n}@example.com,Ann\n" for n in range(count)))
    return "rows.csv"


def filled(cli: Cli, count: int, *options: str) -> str:
    made = cli.create(*options)
    cli.json("delivery", "append", made, rows(cli, count))
    return made


def planned(cli: Cli, made: str) -> list[int]:
    return [wave["recipients"] for wave in cli.json("delivery", "show", made)["waves_planned"]]


def test_equal_waves_are_asked_for_planned_and_shown(cli: Cli) -> None:
    made = filled(cli, 10, "--wave-share", "30%", "--wave-every", "2h")
    assert planned(cli, made) == []
    assert cli.run("delivery", "start", made).stderr == ""
    assert planned(cli, made) == [3, 3, 3, 1]
    shown = cli.json("delivery", "show", made)
    assert shown["waves"] == {"share": "30%", "every_s": 7200}
    hours = [datetime.datetime.fromisoformat(shown[key]) for key in ("started_at", "last_wave_at")]
    assert hours[1] - hours[0] == datetime.timedelta(hours=6)
    assert "as planned" in cli.run("delivery", "show", made).stdout


def test_a_calendar_is_asked_for_by_delays_and_times(cli: Cli) -> None:
    options = ("--wave", "0s=4", "--wave", "1d=50%", "--wave", "2199-01-31T08:00:00+01:00=1")
    made = filled(cli, 10, *options)
    warned = cli.run("delivery", "start", made).stderr
    assert planned(cli, made) == [4, 5, 1]
    # In 2199 it is valid no more: said at the start, and whenever it is shown.
    assert f"the last wave of delivery {made} is due at 2199-01-31 07:00:00Z, when its validity is over" in warned
    assert "will expire unsent" in cli.run("delivery", "show", made).stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--wave-share", "30%"), "--wave-share: and --wave-every go together"),
        (("--wave", "10%"), "is not WHEN=SHARE"),
        (("--wave", "tomorrow=10%"), "is no time"),
        (("--wave", "5x=10%"), "length of time"),
        (("--wave", "0s=10%", "--wave-share", "30%", "--wave-every", "2h"), "equal waves or a calendar"),
        (("--wave-share", "half", "--wave-every", "2h"), "is no share"),
    ],
)
def test_waves_that_cannot_be_meant_are_one_clear_line(cli: Cli, options: tuple[str, ...], words: str) -> None:
    (cli.directory / "body.txt").write_text("x")
    made = ("delivery", "create", "--name", "x", "--from", "a@b.example", "--subject", "s", "--text", "body.txt")
    done = cli.run(*made, *options, expect=2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_start_can_be_set_when_it_is_started_and_large_ones_together_are_warned_of(cli: Cli) -> None:
    large = 100_000
    (cli.directory / "rows.csv").write_text("email,first\n" + "u@example.com,Ann\n" * large)
    noon = "2199-01-31T12:00:00+00:00"
    first, second = cli.create(), cli.create("--start-at", "2199-01-31T12:30:00+00:00")
    for made in (first, second):
        cli.json("delivery", "append", made, "rows.csv", "--part-recipients", "10000")
    assert cli.run("delivery", "start", first, "--at", noon).stderr == ""
    assert cli.json("delivery", "show", first)["started_at"] == "2199-01-31T12:00:00Z"
    warned = " ".join(cli.run("delivery", "start", second).stderr.split())
    assert f"scheduled together with delivery {first} (Spring), which begins with 100,000 recipients" in warned
    assert "at 2199-01-31 12:00:00Z" in warned
    assert "was started before" in cli.run("delivery", "start", first, "--at", noon, expect=2).stderr
    assert "has no time zone" in cli.run("delivery", "start", first, "--at", "2199-01-31T12:00:00", expect=2).stderr


def test_a_simulation_is_asked_for_and_a_duplicate_can_be_the_real_one(cli: Cli) -> None:
    made = cli.create("--simulate", "--part-recipients", "500")
    assert cli.json("delivery", "show", made)["is_simulated"] is True
    same = str(cli.json("delivery", "duplicate", made)["id"])
    real = str(cli.json("delivery", "duplicate", made, "--no-simulate", "--name", "real")["id"])
    shown = cli.json("delivery", "show", same)
    assert (shown["is_simulated"], shown["part_recipients"], shown["appended"]) == (True, 0, 0)
    shown = cli.json("delivery", "show", real)
    assert (shown["is_simulated"], shown["name"]) == (False, "real")


@pytest.mark.parametrize(("total", "size"), [(0, 8), (1_000, 8), (100_000, 97), (1_000_000, 256)])
def test_the_automatic_part_size_goes_by_the_total(total: int, size: int) -> None:
    assert automatic_part_recipients(total) == size


async def test_parts_are_of_the_size_that_is_asked_for_or_automatic(conn: asyncpg.Connection, cli: Cli) -> None:
    for total, options, sizes in (
        (1_000, (), {8}),
        (1_000, ("--part-recipients", "500"), {500}),
        (30_000, (), {29, 14}),
    ):
        await asyncio.to_thread(filled, cli, total, *options)
        found = await conn.fetch(
            "SELECT DISTINCT count FROM mta.delivery_part WHERE delivery_id = (SELECT max(id) FROM mta.delivery)"
        )
        assert {row["count"] for row in found} == sizes


def test_up_to_35_kb_nothing_is_said_and_from_60_kb_on_it_is_a_warning() -> None:
    assert size_advice(35_000) is None
    assert "35 kB at most are advised" in str(size_advice(35_001))
    assert "35 kB at most are advised" in str(size_advice(60_000))
    assert "is large: 60.0 kB; above 60 kB" in str(size_advice(60_001))


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [(20_000, None), (36_000, "the message has 36"), (61_000, "the message is large: 61")],
)
async def test_the_size_at_preview_is_advised_or_warned_of(
    conn: asyncpg.Connection, cli: Cli, size_bytes: int, words: str | None
) -> None:
    line = "x" * 58 + "\n"  # 60 octets on the wire
    small = await new_delivery(conn, content=content_json(text=line))
    headers_bytes = (await asyncio.to_thread(cli.json, "delivery", "preview", str(small)))["size_bytes"] - 60
    made = await new_delivery(conn, content=content_json(text=line * ((size_bytes - headers_bytes) // 60 + 1)))
    found = await asyncio.to_thread(cli.json, "delivery", "preview", str(made))
    assert size_bytes < found["size_bytes"] < size_bytes + 999
    assert [str(words) in one for one in found["advice"]] == [True] * (words is not None)
    spoken = await asyncio.to_thread(cli.run, "delivery", "preview", str(made))
    assert f"{found['size_bytes']:,} bytes on the wire" in spoken.stdout
    assert ("warning:" in spoken.stderr) is (words is not None)


def one_click(**changes: object) -> str:
    leave = {"url": "https://shop.example/u/{{address|url}}", **changes}
    return json.dumps({"sender": "news@shop.example", "subject": "Hi", "text": "Hi", "list_unsubscribe": leave})


@pytest.mark.parametrize(
    ("content", "config", "words"),
    [
        (one_click(), ("--config", "unsigned.toml"), "no signature covers its headers"),
        (one_click(), (), "name the node's settings"),
        (one_click(), ("--config", "signed.toml"), None),
        (one_click(one_click=False), ("--config", "unsigned.toml"), None),
    ],
)
def test_one_click_unsubscription_without_a_signature_is_warned_of(
    cli: Cli, content: str, config: tuple[str, ...], words: str | None
) -> None:
    signed = '[[dkim]]\ndomain = "shop.example"\nselector = "e1"\nkey = "ed.pem"\n'
    for name, text in (("signed.toml", signed), ("unsigned.toml", ""), ("content.json", content)):
        (cli.directory / name).write_text(text)
    (cli.directory / "ed.pem").write_bytes(ed25519_pem())
    (cli.directory / "ed.pem").chmod(0o600)
    made = cli.run("delivery", "create", "--name", "x", "--content", "content.json", *config)
    previewed = cli.run("delivery", "preview", made.stdout.split()[1], *config)
    for stderr in (made.stderr, previewed.stderr):
        assert words in stderr if words else "one-click" not in stderr


async def test_the_preview_is_the_message_that_the_far_end_gets(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, bodies=True) as world:
        content = content_json(
            text="Hello {{first}}, größe\n.dot\n" * 50, html="<p>{{first}}</p>", subject="Hi {{first}}"
        )
        delivery = await world.deliver(addresses(3), content=content, start=False)
        cli = Cli(database.dsn, tmp_path)
        found = await asyncio.to_thread(cli.json, "delivery", "preview", str(delivery))
        assert (found["address"], found["is_made_up"]) == ("u0@d0.test", False)
        node = world.node(children=1)
        await node.start()
        async with database.pool.acquire() as conn:
            await deliveries.start(conn, delivery)
        await world.wait_for(delivery)
        (message,) = [one for one in world.record().accepted if one.recipients == ("u0@d0.test",)]
        assert (message.size_bytes, message.mail_from) == (found["size_bytes"], found["return_path"])
        sent = read_body(world.record_dir, message).decode().split("\r\n")
        told = found["message"].split("\r\n")
        # The date is that of the start, which came later.
        assert [line for line in sent if not line.startswith("Date:")] == [
            line for line in told if not line.startswith("Date:")
        ]


async def test_with_the_nodes_settings_the_preview_weighs_what_a_signed_message_does(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database, bodies=True) as world:
        delivery = str(await world.deliver(addresses(1), start=False))
        cli = Cli(database.dsn, tmp_path)
        entry = '[[dkim]]\ndomain = "shop.example"\nselector = "s1"\nkey = "s1.pem"\n'
        node = world.node(children=1, settings=entry)
        with_config = ("delivery", "preview", delivery, "--config", str(node.config))
        missing = await asyncio.to_thread(lambda: cli.run(*with_config, expect=2))
        assert "s1.pem" in missing.stderr
        (node.directory / "s1.pem").write_bytes(rsa_pem())
        (node.directory / "s1.pem").chmod(0o600)
        found = await asyncio.to_thread(cli.json, *with_config)
        unsigned = await asyncio.to_thread(cli.json, "delivery", "preview", delivery)
        await node.start()
        await asyncio.to_thread(cli.run, "delivery", "start", delivery)
        await world.wait_for(int(delivery))
        (message,) = world.record().accepted
        assert message.size_bytes == found["size_bytes"] > unsigned["size_bytes"] + 300


async def test_a_preview_takes_another_recipient_and_other_values(conn: asyncpg.Connection, cli: Cli) -> None:
    made = str(await new_delivery(conn, content=content_json(text="Hello {{first}}")))
    made_up = await asyncio.to_thread(cli.json, "delivery", "preview", made)
    assert (made_up["address"], made_up["is_made_up"]) == ("ann@example.com", True)
    assert "Hello=20first" in made_up["message"]
    options = ("--to", "bob@example.com", "--value", "first=Bob")
    other = await asyncio.to_thread(cli.json, "delivery", "preview", made, *options)
    assert "Hello=20Bob" in other["message"]
    assert "To: bob@example.com" in other["message"]
    refused = await asyncio.to_thread(lambda: cli.run("delivery", "preview", made, "--value", "last=X", expect=2))
    assert "is not NAME=TEXT with one of: first" in refused.stderr


async def test_a_delivery_that_is_scheduled_is_sent_at_its_time_and_not_before(
    tmp_path: Path, database: Database
) -> None:
    async with World(tmp_path, database) as world:
        cli = Cli(database.dsn, tmp_path)
        node = world.node(children=1)
        await node.start()
        starts_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=8)
        made = await asyncio.to_thread(cli.create, "--start-at", starts_at.isoformat())
        csv = "email,first\n" + "".join(f"{address},Ann\n" for address in addresses(20))
        await asyncio.to_thread(lambda: cli.json("delivery", "append", made, "-", "--seal", stdin=csv))
        assert (await asyncio.to_thread(cli.json, "delivery", "start", made))["state"] == "running"
        assert world.record().accepted == []
        assert (await world.wait_for(int(made))).delivered == 20
        assert min(message.unix_s for message in world.record().accepted) >= starts_at.timestamp()
        assert (await world.audit(int(made))).is_clean
