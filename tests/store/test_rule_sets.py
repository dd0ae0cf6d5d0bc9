"""Applied rule sets: the newest holds, equal ones are not stored twice, every change is heard of."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from mta.model.errors import BadInput
from mta.queue import rule_sets
from mta.queue.rule_sets import Bundle, How, make_bundle
from tests.support.postgres import Database


def of(text: str, **others: str) -> Bundle:
    return make_bundle("mx-rules.toml", {"mx-rules.toml": text, **others})


async def test_nothing_is_in_force_at_first(conn: asyncpg.Connection) -> None:
    assert await rule_sets.newest_id(conn) == 0
    assert await rule_sets.in_force(conn) is None
    assert await rule_sets.history(conn, 10) == []
    with pytest.raises(BadInput, match="rule set 3: does not exist"):
        await rule_sets.get(conn, 3)


async def test_texts_come_back_as_they_were(conn: asyncpg.Connection) -> None:
    bundle = of('# ümlaut "quoted" \\ and\ttab\r\n', **{"rules/google.toml": ""})
    applied, is_new = await rule_sets.apply(conn, bundle, How.APPLY, applied_by="ann@host", note="first")
    assert is_new
    found = await rule_sets.in_force(conn)
    assert found == (applied, bundle)
    assert (applied.how, applied.who, applied.note, applied.digest) == (
        How.APPLY,
        "ann@host",
        "first",
        bundle.digest.hex(),
    )
    assert await rule_sets.get(conn, applied.id) == found


async def test_what_is_in_force_is_not_stored_again(conn: asyncpg.Connection) -> None:
    first, _ = await rule_sets.apply(conn, of("# a"), How.SIGHUP, node="one")
    assert await rule_sets.apply(conn, of("# a"), How.APPLY, applied_by="ann@host") == (first, False)
    second, is_new = await rule_sets.apply(conn, of("# b"), How.APPLY, applied_by="ann@host")
    assert is_new
    # What held before is new again once something else is in force.
    third, is_new = await rule_sets.apply(conn, of("# a"), How.APPLY, applied_by="ann@host")
    assert is_new
    assert [one.id for one in await rule_sets.history(conn, 10)] == [third.id, second.id, first.id]
    assert first.who == "node one"


def test_a_digest_goes_by_names_and_texts_but_not_their_order() -> None:
    assert of("# a", x="1", y="2").digest == of("# a", y="2", x="1").digest
    assert len({of("# a").digest, of("# a", x="").digest, of("# a", x="1").digest, of("# b").digest}) == 4


@pytest.mark.parametrize(
    ("root", "texts", "fault"),
    [
        ("a", {"b": ""}, "a: is not among the texts"),
        ("a", {"a": "\0"}, "a: holds a NUL"),
        ("a", {"a": "#" * (rule_sets.BUNDLE_BYTES_MAX + 1)}, "at most 10,485,760"),
    ],
)
def test_what_cannot_be_stored_is_refused(root: str, texts: dict[str, str], fault: str) -> None:
    with pytest.raises(BadInput, match=fault):
        make_bundle(root, texts)


async def test_a_long_note_is_refused_and_nothing_stored(conn: asyncpg.Connection) -> None:
    for note in ("x" * 501, "a\nb"):
        with pytest.raises(BadInput, match="note: must be at most 500 printable"):
            await rule_sets.apply(conn, of("# a"), How.APPLY, applied_by="ann@host", note=note)
    assert await rule_sets.newest_id(conn) == 0


async def test_a_node_starts_with_its_file_when_that_is_new_and_else_with_what_is_in_force(
    conn: asyncpg.Connection,
) -> None:
    first, bundle = await rule_sets.begin_with(conn, of("# a"), "one")
    assert (first.how, first.node, bundle) == (How.START, "one", of("# a"))
    second, _ = await rule_sets.apply(conn, of("# b"), How.APPLY, applied_by="ann@host")
    assert await rule_sets.begin_with(conn, of("# a"), "one") == (second, of("# b"))
    third, bundle = await rule_sets.begin_with(conn, of("# c"), "two")
    assert (third.node, bundle) == ("two", of("# c"))
    assert len(await rule_sets.history(conn, 10)) == 3


async def test_two_nodes_that_start_at_once_with_one_file_make_one_set(database: Database) -> None:
    async with database.pool.acquire() as one, database.pool.acquire() as two:
        found = await asyncio.gather(
            rule_sets.begin_with(one, of("# a"), "one"), rule_sets.begin_with(two, of("# a"), "two")
        )
        assert found[0] == found[1]
        assert len(await rule_sets.history(one, 10)) == 1


async def test_going_back_goes_back_step_by_step(conn: asyncpg.Connection) -> None:
    for text in ("# a", "# b", "# c"):
        await rule_sets.apply(conn, of(text), How.APPLY, applied_by="ann@host")

    async def back() -> str:
        current = await rule_sets.in_force(conn)
        assert current is not None
        chosen, bundle = await rule_sets.before(conn, current[0].id)
        applied, is_new = await rule_sets.apply(
            conn, bundle, How.ROLLBACK, applied_by="ann@host", restores=chosen.restores or chosen.id
        )
        assert is_new
        assert applied.restores is not None
        return bundle.texts["mx-rules.toml"]

    assert [await back(), await back()] == ["# b", "# a"]
    with pytest.raises(BadInput, match="is the first; there is none before it"):
        await back()
    # A new set after that: the way back leads to what was in force before it.
    await rule_sets.apply(conn, of("# d"), How.APPLY, applied_by="ann@host")
    assert await back() == "# a"


async def test_each_change_is_announced_when_it_is_there(database: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with database.pool.acquire() as listener, database.pool.acquire() as writer:

        def on_news(*news: object) -> None:
            heard.put_nowait(str(news[3]))

        await listener.add_listener(rule_sets.CHANNEL, on_news)
        applied, _ = await rule_sets.apply(writer, of("# a"), How.APPLY, applied_by="ann@host")
        assert await asyncio.wait_for(heard.get(), 10) == str(applied.id)
        await rule_sets.apply(writer, of("# a"), How.APPLY, applied_by="ann@host")
        second, _ = await rule_sets.apply(writer, of("# b"), How.APPLY, applied_by="ann@host")
        assert await asyncio.wait_for(heard.get(), 10) == str(second.id)
        await listener.remove_listener(rule_sets.CHANNEL, on_news)


async def test_at_once_from_two_hands_the_later_one_holds(database: Database) -> None:
    async with database.pool.acquire() as one, database.pool.acquire() as two:
        for number in range(5):
            await asyncio.gather(
                rule_sets.apply(one, of(f"# a{number}"), How.APPLY, applied_by="ann@host"),
                rule_sets.apply(two, of(f"# b{number}"), How.SIGHUP, node="two"),
            )
        rows = await rule_sets.history(one, 100)
        assert len(rows) == 10
        assert rows == sorted(rows, key=lambda row: row.applied_at, reverse=True)
        assert await rule_sets.newest_id(two) == rows[0].id
