"""Updates in the database: put into force as a whole or not at all, on record each time, and obeyed by every node."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from mta.bundle.update import Outcome, take_update
from mta.keeper.keeper import Keeper
from mta.keeper.updating import Updating
from mta.master.qualification import Qualification
from mta.master.rulebook import Rulebook
from mta.model.errors import BadInput
from mta.model.failure import Evidence
from mta.queue import rule_sets, updates
from mta.queue.rule_sets import How, make_bundle
from mta.queue.updates import Result
from mta.settings import Settings, load_settings
from mta.settings.shipped import BOUNCE_RULES, PROVIDERS
from mta.traffic.rules import RuleSet
from tests.support.bundles import MX_RULES, Maker, changed, texts
from tests.support.node import until
from tests.support.postgres import Database

SLEEPS = Evidence(550, "5.2.1", "this mailbox is sleeping", "rcpt", "mx.big.example")


class Site:
    """An operator's directory: settings, own files, shipped files, and where bundles arrive."""

    def __init__(self, directory: Path, maker: Maker, settings: str = "") -> None:
        self.maker = maker
        self.source = directory / "bundle.json"
        self.own = directory / "bounce-rules.local.toml"
        self.mx_rules = directory / "mx-rules.toml"
        self.mx_rules.write_text(MX_RULES)
        for name, text in texts("mailbox_full", connections=2).items():
            (directory / name).write_text(text)
        self.config = directory / "mta.toml"
        self.config.write_text(
            f'[rules]\nfile = "mx-rules.toml"\n[failures]\nbounce_rules = "{BOUNCE_RULES}"\n'
            f'[deliverability]\nsource = "bundle.json"\npublic_keys = ["{maker.public}"]\n{settings}'
        )

    @property
    def settings(self) -> Settings:
        return load_settings(self.config, environment={}, host_name="h")

    def offer(self, version: int, **kinds: Any) -> None:
        self.source.write_bytes(self.maker.bundle(version, texts(**kinds)))

    async def take(self, conn: asyncpg.Connection, **options: Any) -> Outcome:
        return await take_update(conn, self.settings, "ann@desk", **options)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, Maker())


async def state(conn: asyncpg.Connection) -> tuple[int, dict[str, str]]:
    found = await updates.in_force(conn)
    return (0, {}) if found is None else (found.version, found.texts)


async def test_a_good_bundle_is_in_force_and_on_record(conn: asyncpg.Connection, site: Site) -> None:
    site.offer(3)
    outcome = await site.take(conn)
    assert (outcome.result, outcome.version) == (Result.APPLIED, 3)
    found = await updates.in_force(conn)
    assert found is not None
    assert (found.version, found.texts, found.applied_by) == (3, texts(), "ann@desk")
    assert (found.source, found.signed_by) == (str(site.source), site.maker.public)
    again = await site.take(conn)
    assert (again.result, again.detail) == (Result.CURRENT, "bundle 3: is in force already")
    history = await updates.history(conn, 10)
    assert [(one.result, one.version, one.by_whom, one.source) for one in history] == [
        (Result.CURRENT, 3, "ann@desk", str(site.source)),
        (Result.APPLIED, 3, "ann@desk", str(site.source)),
    ]
    assert history[1].update_id == found.id


def _own_rule_is_broken(site: Site) -> None:
    site.own.write_text('[[rule]]\nname = "mine"\ncategory = "no such"\npattern = "x"\n')


def _mx_rules_do_not_fit(site: Site) -> None:
    site.mx_rules.write_text(MX_RULES.replace('name = "everybody"', 'name = "big"'))


BAD = {
    "none is there": (lambda site: site.source.unlink(), Result.FAILED, "cannot be opened", None),
    "half of it": (
        lambda site: site.source.write_bytes(site.maker.bundle(4)[:400]),
        *(Result.REFUSED, "is no bundle, or not all of one", None),
    ),
    "a stranger's": (
        lambda site: site.source.write_bytes(Maker().bundle(4)),
        *(Result.REFUSED, "does not name", None),
    ),
    "changed": (
        lambda site: site.source.write_bytes(changed(site.maker.bundle(4), files=texts("user_unknown"))),
        *(Result.REFUSED, "is not the file that was signed", None),
    ),
    "older": (lambda site: site.offer(2), Result.REFUSED, "is older than version 3", 2),
    "another with the same version": (
        lambda site: site.offer(3, connections=9),
        *(Result.REFUSED, "no version is used twice", 3),
    ),
    "a rule that is none": (
        lambda site: site.offer(4, category="sleepy"),
        *(Result.REFUSED, "bundle 4/bounce-rules.toml:3: rule.category: 'sleepy' is not allowed", 4),
    ),
    "a limit that is none": (
        lambda site: site.offer(4, connections=-1),
        *(Result.REFUSED, "bundle 4/providers.toml:8: rule.connections_max", 4),
    ),
    "it does not go with the operator's bounce rules": (
        lambda site: (site.offer(4), _own_rule_is_broken(site)),
        *(Result.REFUSED, "bounce-rules.local.toml:3: rule.category", 4),
    ),
    "it does not go with the operator's MX rules": (
        lambda site: (site.offer(4), _mx_rules_do_not_fit(site)),
        *(Result.REFUSED, "mx-rules.toml:5: rule.name: the name 'big' is taken", 4),
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_bundle_changes_nothing_and_its_attempt_is_on_record(
    conn: asyncpg.Connection, site: Site, case: str
) -> None:
    site.offer(3)
    await site.take(conn)
    before = await state(conn)
    prepare, result, what, version = BAD[case]
    prepare(site)
    files = {path: path.read_bytes() for path in site.config.parent.iterdir()}
    outcome = await site.take(conn)
    assert (outcome.result, outcome.version) == (result, version)
    assert what in outcome.detail
    assert await state(conn) == before
    (last,) = await updates.history(conn, 1)
    assert (last.result, last.version, last.detail, last.update_id) == (result, version, outcome.detail, None)
    assert files == {path: path.read_bytes() for path in site.config.parent.iterdir()}


async def test_it_is_checked_against_the_rules_in_force_too(conn: asyncpg.Connection, site: Site) -> None:
    applied = {"r.toml": MX_RULES.replace('name = "everybody"', 'name = "fresh"'), **texts(connections=2)}
    del applied[BOUNCE_RULES]
    await rule_sets.apply(conn, make_bundle("r.toml", applied), How.APPLY)
    files = texts()
    files[PROVIDERS] = files[PROVIDERS].replace('name = "big"\nprovider', 'name = "fresh"\nprovider')
    site.source.write_bytes(site.maker.bundle(4, files))
    outcome = await site.take(conn)
    assert (outcome.result, await state(conn)) == (Result.REFUSED, (0, {}))
    assert "r.toml:5: rule.name: the name 'fresh' is taken" in outcome.detail


async def test_without_a_source_or_a_key_there_is_no_attempt(conn: asyncpg.Connection, site: Site) -> None:
    site.offer(1)
    site.config.write_text('[deliverability]\nsource = "bundle.json"\n')
    with pytest.raises(BadInput, match=r"public_keys: is empty"):
        await site.take(conn)
    site.config.write_text("")
    with pytest.raises(BadInput, match=r"source: is not set"):
        await site.take(conn)
    assert await updates.history(conn, 10) == []


async def test_a_trial_changes_nothing(conn: asyncpg.Connection, site: Site) -> None:
    site.offer(1)
    assert (await site.take(conn, dry_run=True)).result is Result.TRIED
    assert await state(conn) == (0, {})
    site.offer(2, category="sleepy")
    assert (await site.take(conn, dry_run=True)).result is Result.REFUSED
    assert [one.result for one in await updates.history(conn, 9)] == [Result.REFUSED, Result.TRIED]


async def test_an_older_one_is_taken_when_it_is_asked_for(conn: asyncpg.Connection, site: Site) -> None:
    for version in (5, 6):
        site.offer(version)
        await site.take(conn)
    site.offer(4)
    assert (await site.take(conn)).result is Result.REFUSED
    assert (await site.take(conn, allow_older=True)).result is Result.APPLIED
    assert (await state(conn))[0] == 4


async def test_of_two_at_the_same_time_the_newer_wins(database: Database, site: Site, tmp_path: Path) -> None:
    sources = []
    for version in range(1, 7):
        path = tmp_path / f"{version}.json"
        path.write_bytes(site.maker.bundle(version, texts(connections=version)))
        sources.append(path)

    async def one(path: Path) -> Outcome:
        async with database.pool.acquire() as other:
            return await site.take(other, source=str(path))

    outcomes = await asyncio.gather(*(one(path) for path in reversed(sources)))
    async with database.pool.acquire() as conn:
        assert await state(conn) == (6, texts(connections=6))
        versions = [row[0] for row in await conn.fetch("SELECT version FROM mta.deliverability_update ORDER BY id")]
        assert versions == sorted(set(versions))
        assert len(await updates.history(conn, 100)) == 6
    assert {one.result for one in outcomes} <= {Result.APPLIED, Result.REFUSED}


async def test_back_to_the_one_before_step_by_step_and_no_schedule_undoes_it(
    conn: asyncpg.Connection, site: Site
) -> None:
    for version in (1, 2, 3):
        site.offer(version, connections=version)
        await site.take(conn)
    for expected in (2, 1):
        current = await updates.in_force(conn)
        assert current is not None
        before = await updates.before(conn, current.id)
        await updates.roll_back(conn, before, "ann@desk")
        assert await state(conn) == (expected, texts(connections=expected))
    current = await updates.in_force(conn)
    assert current is not None
    assert await updates.before(conn, current.id) is None
    await updates.roll_back(conn, None, "ann@desk")
    assert await state(conn) == (0, {})
    # What the source still has was rolled back by somebody who knew why.
    outcome = await site.take(conn)
    assert (outcome.result, outcome.detail) == (
        Result.REFUSED,
        "bundle 3: was rolled back; --allow-older takes it all the same",
    )
    site.offer(4)
    assert (await site.take(conn)).result is Result.APPLIED
    results = [one.result for one in await updates.history(conn, 5)]
    assert results == [Result.APPLIED, Result.REFUSED, *[Result.ROLLED_BACK] * 3]


# --- who obeys -----------------------------------------------------------------------------------


async def test_nodes_use_an_update_at_once_in_the_place_of_what_is_shipped(
    database: Database, conn: asyncpg.Connection, site: Site
) -> None:
    adopted: list[RuleSet] = []
    book = Rulebook(site.mx_rules, "n", adopted.append)
    book.read()
    await book.begin(conn)
    told: list[int] = []
    judged = Qualification(site.settings.failures, lambda: told.append(1))
    judged.read()
    await judged.begin(conn)
    assert book.rules.match("mx.big.example", 1).connections_max == 2
    assert judged.judge.verdict(SLEEPS).category.label == "mailbox_full"

    running = asyncio.create_task(book.run(database.pool))
    try:
        site.offer(1, connections=8)
        await site.take(conn)
        await until("an update is adopted", lambda: adopted)
        await judged.begin(conn)
        assert adopted[-1].match("mx.big.example", 1).connections_max == 8
        assert adopted[-1].match("mx.other.example", 1).connections_max == 10
        assert judged.judge.verdict(SLEEPS).category.label == "account_disabled"
        # The set that was applied stays what it was; a reload of the same file does not bring back the old text.
        in_force = await rule_sets.in_force(conn)
        assert in_force is not None
        assert in_force[1].texts[PROVIDERS] == texts(connections=2)[PROVIDERS]
        site.mx_rules.write_text(MX_RULES.replace("10", "11"))
        book.reload()
        await until("it is read anew", lambda: book.rules.match("mx.other.example", 1).connections_max == 11)
        assert book.rules.match("mx.big.example", 1).connections_max == 8
        judged.reload()
        assert judged.judge.verdict(SLEEPS).category.label == "account_disabled"

        await updates.roll_back(conn, None, "ann@desk")
        await until("it is rolled back", lambda: book.rules.match("mx.big.example", 1).connections_max == 2)
        await judged.begin(conn)
        assert judged.judge.verdict(SLEEPS).category.label == "mailbox_full"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_node_that_starts_later_has_the_update_and_the_operators_own_rules_first(
    conn: asyncpg.Connection, site: Site
) -> None:
    site.offer(1, connections=8)
    await site.take(conn)
    site.own.write_text(texts("user_unknown")[BOUNCE_RULES])
    book = Rulebook(site.mx_rules, "n", lambda rules: None)
    book.read()
    await book.begin(conn)
    assert book.rules.match("mx.big.example", 1).connections_max == 8
    judged = Qualification(site.settings.failures, lambda: None)
    judged.read()
    await judged.begin(conn)
    verdict = judged.judge.verdict(SLEEPS)
    assert (verdict.category.label, verdict.rule) == ("user_unknown", "bounce-rules.local.toml: sleeping")


async def test_a_node_that_cannot_read_an_update_goes_on_without_it(conn: asyncpg.Connection, site: Site) -> None:
    # As one of a later program would be.
    site.offer(1, connections=8)
    await site.take(conn)
    await conn.execute("UPDATE mta.deliverability_update SET texts = $1::text::jsonb", '{"providers.toml": "x = 1"}')
    await conn.execute(
        "UPDATE mta.deliverability_update SET texts = texts || jsonb_build_object('bounce-rules.toml', 'y = 2')"
    )
    book = Rulebook(site.mx_rules, "n", lambda rules: None)
    book.read()
    await book.begin(conn)
    assert book.rules.match("mx.big.example", 1).connections_max == 2
    judged = Qualification(site.settings.failures, lambda: None)
    judged.read()
    await judged.begin(conn)
    assert judged.judge.verdict(SLEEPS).category.label == "mailbox_full"
    site.own.write_text(texts("user_unknown")[BOUNCE_RULES])
    judged.reload()
    assert judged.judge.verdict(SLEEPS).category.label == "user_unknown"


# --- by itself -----------------------------------------------------------------------------------


async def test_the_keeper_takes_what_is_new_in_the_morning(database: Database, tmp_path: Path) -> None:
    site = Site(tmp_path, Maker(), 'enabled = true\ndaily_at = "04:30"\n')
    site.offer(1)
    start = datetime.datetime.now(datetime.UTC).replace(hour=12, minute=0) - datetime.timedelta(days=30)
    now = start
    updating = Updating(site.settings, lambda: now)

    async def look() -> Result | None:
        outcome = await updating.look(database.pool)
        async with database.pool.acquire() as conn:
            # The history's clock is the database's; here it follows ours.
            await conn.execute(
                "UPDATE mta.deliverability_attempt SET at = $1 WHERE id = (SELECT max(id) FROM"
                " mta.deliverability_attempt) AND $2",
                *(now, outcome is not None),
            )
        return None if outcome is None else outcome.result

    assert await look() is Result.APPLIED
    assert await look() is None
    site.offer(2)
    now = start + datetime.timedelta(hours=16)
    assert await look() is None  # 04:00
    now = start + datetime.timedelta(hours=16, minutes=30)
    assert await look() is Result.APPLIED
    site.source.unlink()
    now = start + datetime.timedelta(days=3)
    assert [await look() for _ in range(3)] == [Result.FAILED, None, None]
    site.offer(3)
    now += datetime.timedelta(minutes=59)
    assert await look() is None
    now += datetime.timedelta(minutes=1)
    assert await look() is Result.APPLIED
    assert await look() is None


async def test_a_keeper_takes_updates_beside_its_work_and_qualifies_by_them(database: Database, tmp_path: Path) -> None:
    site = Site(tmp_path, Maker(), "enabled = true\n")
    config = site.config.read_text()
    site.config.write_text(f'{config}\n[database]\ndsn = "{database.dsn}"\n')
    site.offer(1, category="policy")  # its code alone says otherwise
    keeper = Keeper(site.settings)
    running = asyncio.create_task(keeper.run())
    try:
        await until(
            "the update is used",
            lambda: running.done() or keeper._qualifier.qualify(SLEEPS).category.label == "policy",
        )
        assert not running.done(), running.exception()
        async with database.pool.acquire() as conn:
            (attempt,) = await updates.history(conn, 10)
        assert (attempt.result, attempt.by_whom) == (Result.APPLIED, "")
    finally:
        keeper.stop()
        await asyncio.wait_for(running, 10)
