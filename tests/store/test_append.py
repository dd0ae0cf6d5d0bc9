"""Appending from Python: checked at the door, all or nothing, once for ever under a key."""

from __future__ import annotations

import asyncio
import datetime
import json

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.message.fields import fault_in_value
from mta.model.errors import BadInput
from mta.model.limits import MERGE_VALUE_BYTES_MAX, PART_RECIPIENTS_MAX
from mta.queue import append, deliveries
from mta.queue.append import append_parts
from mta.queue.migrate import known_migrations
from mta.queue.part import Part, Row, check_rows, pack_part
from tests.support.content import content_json, new_delivery
from tests.support.postgres import Database

ANN: Row = ("ann@example.com", None, [])
BOB: Row = ("bob@example.com", "r-2", [])


async def _stored(conn: asyncpg.Connection) -> list[asyncpg.Record]:
    return await conn.fetch("SELECT * FROM mta.delivery_part ORDER BY id")


async def test_parts_are_stored_as_they_came_with_canonical_addresses(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    rows: list[Row] = [("Ann@Example.COM", "ref 1", ["Ann", 'say "hi" \\ €']), ("jo@bücher.example", None, ["", "x"])]
    results = await append_parts(conn, made, [Part("k:1", ("name", "note"), rows), Part("k:2", (), [ANN])])
    assert [(one.key, one.recipients, one.is_new) for one in results] == [("k:1", 2, True), ("k:2", 1, True)]
    part = (await _stored(conn))[0]
    assert part["append_id"] == results[0].append_id
    assert (part["fields"], part["count"], part["owner"], part["attempt"]) == (["name", "note"], 2, None, 0)
    assert json.loads(part["recipients"]) == [
        ["Ann@example.com", "ref 1", ["Ann", 'say "hi" \\ €']],
        ["jo@xn--bcher-kva.example", None, ["", "x"]],
    ]


async def test_the_same_append_again_is_the_same_answer_also_after_the_seal(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    first = await append_parts(conn, made, [Part("a", (), [ANN]), Part("b", (), [BOB])])
    await deliveries.seal(conn, made)
    again = await append_parts(conn, made, [Part("b", (), [BOB]), Part("a", (), [ANN])])
    assert [(one.key, one.append_id, one.is_new) for one in again] == [
        ("b", first[1].append_id, False),
        ("a", first[0].append_id, False),
    ]
    assert len(await _stored(conn)) == 2


@pytest.mark.parametrize("other", [Part("a", (), [BOB]), Part("a", ("x",), [("ann@example.com", None, ["1"])])])
async def test_the_same_key_with_other_content_is_refused_and_nothing_kept(
    conn: asyncpg.Connection, other: Part
) -> None:
    made = await new_delivery(conn)
    await append_parts(conn, made, [Part("a", (), [ANN])])
    with pytest.raises(BadInput, match=r"part a: was appended to delivery .* before with other content"):
        await append_parts(conn, made, [Part("new", (), [BOB]), other])
    assert len(await _stored(conn)) == 1


async def test_the_same_parts_from_two_sides_at_once_are_appended_once(database: Database) -> None:
    parts = [Part(f"k{i}", (), [(f"user{i}@example.com", None, [])]) for i in range(40)]
    async with database.pool.acquire() as one, database.pool.acquire() as other:
        made = await new_delivery(one)
        first, second = await asyncio.gather(
            append_parts(one, made, parts), append_parts(other, made, list(reversed(parts)))
        )
        assert {r.key: r.append_id for r in first} == {r.key: r.append_id for r in second}
        assert sum(r.is_new for r in [*first, *second]) == 40
        assert len(await _stored(one)) == 40


async def test_a_due_time_is_kept_and_needs_a_zone(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    due_at = datetime.datetime(2031, 2, 3, 4, 5, tzinfo=datetime.UTC)
    await append_parts(conn, made, [Part("a", (), [ANN])], due_at=due_at)
    assert (await _stored(conn))[0]["due_at"] == due_at
    with pytest.raises(BadInput, match="due_at: has no time zone"):
        await append_parts(conn, made, [Part("b", (), [ANN])], due_at=due_at.replace(tzinfo=None))


async def test_a_part_without_a_field_that_the_content_uses_is_refused(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn, content=content_json(subject="Hi {{name}}", text="{{address}}"))
    with pytest.raises(BadInput, match=rf"delivery {made}, content.subject: the field name is not known"):
        await append_parts(conn, made, [Part("a", ("Name",), [("ann@example.com", None, ["Ann"])])])
    await append_parts(conn, made, [Part("a", ("name", "more"), [("ann@example.com", None, ["Ann", "-"])])])


@pytest.mark.parametrize("action", [deliveries.cancel])
async def test_a_delivery_that_ended_takes_no_more(conn: asyncpg.Connection, action: object) -> None:
    made = await new_delivery(conn)
    await deliveries.cancel(conn, made)
    with pytest.raises(BadInput, match="is cancelled: nothing can be appended"):
        await append_parts(conn, made, [Part("a", (), [ANN])])
    with pytest.raises(BadInput, match="does not exist"):
        await append_parts(conn, 4711, [Part("a", (), [ANN])])


@pytest.mark.parametrize(
    ("row", "column", "what"),
    [
        (("ann@", None, ["v"]), "address", "has no domain"),
        (("ann@example.com\r\nX: y", None, ["v"]), "address", "in its domain"),
        (("ann@example.com", "r\n", ["v"]), "reference", "control character"),
        (("ann@example.com", "r" * 201, ["v"]), "reference", "200 are allowed"),
        (("ann@example.com", None, []), "values", "has 0 values for 1 fields"),
        (("ann@example.com", None, ["a", "b"]), "values", "has 2 values for 1 fields"),
        (("ann@example.com", None, ["a\0b"]), "first", "NUL"),
        (("ann@example.com", None, ["a\nb"]), "first", "line feed"),
        (("ann@example.com", None, ["\ud800"]), "first", "surrogate"),
        (("ann@example.com", None, ["€" * (MERGE_VALUE_BYTES_MAX // 3 + 1)]), "first", "65536 are allowed"),
        (("ann@example.com", None, "v"), "row", "must be"),
        (("ann@example.com", None, [7]), "row", "must be"),
        ((7, None, ["v"]), "row", "must be"),
        (("ann@example.com", 7, ["v"]), "row", "must be"),
        (("ann@example.com",), "row", "must be"),
    ],
)
def test_a_bad_row_is_named_by_row_and_column(row: Row, column: str, what: str) -> None:
    part = Part("k", ("first",), [("ok@example.com", None, ["v"]), row])
    with pytest.raises(BadInput) as refused:
        pack_part(part)
    assert refused.value.where == f"part k, row 2, {column}"
    assert what in refused.value.what


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (Part("", (), [ANN]), "key: has 0 characters"),
        (Part("k" * 201, (), [ANN]), "key: has 201 characters"),
        (Part("k\n", (), [ANN]), "control character"),
        (Part("k", (), []), "has 0 recipients"),
        (Part("k", (), [ANN] * (PART_RECIPIENTS_MAX + 1)), "has 10001 recipients"),
        (Part("k", ("a", "a"), [("ann@example.com", None, ["", ""])]), "names the merge field a twice"),
        (Part("k", ("first name",), [("ann@example.com", None, [""])]), "is no name for a merge field"),
        (Part("k", tuple(f"f{i}" for i in range(201)), [("ann@example.com", None, [""] * 201)]), "201 merge fields"),
    ],
)
def test_a_bad_part_is_refused(part: Part, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        pack_part(part)


def test_a_part_too_large_as_a_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = [("ann@example.com", None, ["x" * 60_000])] * 300
    with pytest.raises(BadInput, match="make smaller parts"):
        pack_part(Part("k", ("v",), rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=2), max_size=6))
def test_good_rows_beside_bad_ones_are_kept_untouched(values: list[list[str]]) -> None:
    rows: list[Row] = [("ann@example.com", None, value) for value in values]
    good, faults = check_rows(("a", "b"), rows)
    bad = {i for i, value in enumerate(values) if any(fault_in_value(text) is not None for text in value)}
    assert {fault.row for fault in faults} == bad
    assert good == [row for i, row in enumerate(rows) if i not in bad]


async def test_one_key_twice_in_a_call_is_refused_and_no_part_is_no_work(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    with pytest.raises(BadInput, match="the same key stands twice"):
        await append_parts(conn, made, [Part("a", (), [ANN]), Part("a", (), [ANN])])
    assert await append_parts(conn, made, []) == []


def test_the_lock_is_the_same_in_python_and_sql() -> None:
    expected = "pg_advisory_xact_lock_shared(20180,"
    scripts = [one.sql for one in known_migrations() if "FUNCTION mta.append_part" in one.sql]
    assert len(scripts) == 3
    assert expected in append._LOCK
    assert all(expected in script for script in scripts)
    assert "pg_advisory_xact_lock(20180," in deliveries._NO_APPENDS_LOCK
