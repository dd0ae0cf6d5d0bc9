"""mta.append_part, for applications inside their own transactions; and the examples of docs/api.md."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import asyncpg
import pytest

from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.queue import deliveries
from tests.support.content import new_delivery
from tests.support.postgres import Database

APPEND = "SELECT mta.append_part($1, $2, $3, $4)"
DOCS = Path(__file__).parents[2] / "docs" / "api.md"


async def _append(
    conn: asyncpg.Connection, delivery_id: int | None, recipients: object, fields: tuple = (), key: str = "k"
) -> int:
    return await conn.fetchval(APPEND, delivery_id, key, list(fields), json.dumps(recipients))


async def test_a_part_is_appended_in_the_callers_transaction(database: Database, conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    recipients = [
        [
            "Ann@EXAMPLE.com",
            "r",
            ["Ann", 'q"\\'],
        ],
        ["bob@example.com", None, ["", "é"]],
    ]
    transaction = conn.transaction()
    await transaction.start()
    await _append(conn, made, recipients, ("a", "b"))
    await transaction.rollback()
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_append") == 0

    append_id = await _append(conn, made, recipients, ("a", "b"))
    part = await conn.fetchrow("SELECT * FROM mta.delivery_part")
    assert (part["append_id"], part["count"], part["fields"]) == (append_id, 2, ["a", "b"])
    assert json.loads(part["recipients"]) == [
        ["Ann@example.com", "r", ["Ann", 'q"\\']],
        ["bob@example.com", None, ["", "é"]],
    ]
    assert (await deliveries.show(conn, made)).appended == 2


async def test_short_forms_mean_no_reference_and_no_values(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    await _append(conn, made, [["ann@example.com"], ["bob@example.com", "r"]])
    stored = json.loads(await conn.fetchval("SELECT recipients FROM mta.delivery_part"))
    assert stored == [["ann@example.com", None, []], ["bob@example.com", "r", []]]


async def test_the_same_again_is_the_same_answer_and_other_content_an_error(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    first = await _append(conn, made, [["ann@example.com"]])
    await deliveries.seal(conn, made)
    assert await _append(conn, made, [["ann@example.com", None, []]]) == first
    with pytest.raises(asyncpg.UniqueViolationError, match="key k: was appended before with other content"):
        await _append(conn, made, [["bob@example.com"]])
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match=f"delivery {made} is sealed"):
        await _append(conn, made, [["bob@example.com"]], key="new")
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_part") == 1


async def test_two_at_once_with_one_key_get_one_answer(database: Database, conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    async with database.pool.acquire() as other:
        transaction = conn.transaction()
        await transaction.start()
        first = await _append(conn, made, [["ann@example.com"]])
        waiting = asyncio.create_task(_append(other, made, [["ann@example.com"]]))
        await transaction.commit()
        assert await asyncio.wait_for(waiting, 5) == first


@pytest.mark.parametrize(
    ("recipients", "fields", "what"),
    [
        ({}, (), "recipients: must be an array"),
        ([], (), "recipients: must be 1 to 10000"),
        ([["a@example.com"]] * 10_001, (), "recipients: must be 1 to 10000"),
        (["a@example.com"], (), r"recipients\[0\]: must be"),
        ([["a@example.com", None, [], 1]], (), r"recipients\[0\]: must be"),
        ([["a@example.com"], [7]], (), r"recipients\[1\]: must be"),
        ([["a@example.com", 7]], (), r"recipients\[0\].reference: must be a string or null"),
        ([["a@example.com", "a\nb"]], (), r"recipients\[0\].reference: holds a control character"),
        ([["a@example.com", "a" * 201]], (), r"recipients\[0\].reference: is longer"),
        ([["a@example.com", None, "v"]], ("f",), r"recipients\[0\].values: must be an array"),
        ([["a@example.com", None, ["v"]]], (), r"recipients\[0\].values: has 1 values for 0 fields"),
        ([["a@example.com"]], ("f",), r"recipients\[0\].values: has 0 values for 1 fields"),
        ([["a@example.com", None, ["x", 7]]], ("f", "g"), r"recipients\[0\].g: must be a string"),
        ([["a@example.com", None, ["x\r\nBcc: y"]]], ("f",), r"recipients\[0\].f: holds a control character"),
        ([["a@example.com", None, ["\x7f"]]], ("f",), r"recipients\[0\].f: holds a control character"),
        ([["a@example.com", None, ["x" * 65_537]]], ("f",), r"recipients\[0\].f: is longer than 65536 bytes"),
        ([["a@example.com", None, ["v"]]], ("f f",), "fields: a name must be"),
        ([["a@example.com", None, ["v", "v"]]], ("f", "f"), "fields: a name is null or there twice"),
    ],
)
async def test_what_is_wrong_is_said_with_its_place(
    conn: asyncpg.Connection, recipients: object, fields: tuple, what: str
) -> None:
    made = await new_delivery(conn)
    with pytest.raises(asyncpg.InvalidParameterValueError, match=what):
        await _append(conn, made, recipients, fields)


async def test_a_value_with_escapes_that_are_no_control_characters_is_good(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    await _append(conn, made, [["a@example.com", None, ['C:\\new\\table "x" \\u0007']]], ("f",))


async def test_bad_keys_and_deliveries_are_refused(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    for key in ("", "x" * 201, "a\nb"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="key: "):
            await _append(conn, made, [["a@example.com"]], key=key)
    with pytest.raises(asyncpg.InvalidParameterValueError, match="there is no delivery 4711"):
        await _append(conn, 4711, [["a@example.com"]])
    with pytest.raises(asyncpg.InvalidParameterValueError, match="must not be null"):
        await _append(conn, None, [["a@example.com"]])


ADDRESSES = [
    *(
        "ann@example.com",
        "Ann.B+tag@sub.example.com",
        "é@example.com",
        "a@xn--bcher-kva.example",
        "a@b",
        "a'b@x.example",
    ),
    *(
        "",
        "@",
        "a",
        "a@",
        "@b.example",
        "a b@x.example",
        "a@x..example",
        ".a@x.example",
        "a.@x.example",
        "a..b@x.example",
    ),
    *("a@-x.example", "a@x-.example", "a@x_y.example", "a@x.example.", "a@x.123", "a@b@x.example", "a\n@x.example"),
    *(
        "a@x.example\n",
        "a\x7f@x.example",
        "a\u200b@x.example",
        "a\u202e@x.example",
        "a\u00a0b@x.example",
        "<a@x.example>",
    ),
    *("a,b@x.example", "a@[192.0.2.1]", '"a b"@x.example', "a@bücher.example", f"{'a' * 65}@x.example"),
    *(
        f"{'a' * 64}@x.example",
        f"a@{'x' * 64}.example",
        f"a@{'x' * 63}.example",
        "a@" + "x." * 126 + "yz",
        "a@" + "x." * 126,
    ),
]


async def test_sql_accepts_no_address_that_the_program_refuses(conn: asyncpg.Connection) -> None:
    query = "SELECT a, mta.address_fault(a) FROM unnest($1::text[]) a"
    for address, fault in await conn.fetch(query, ADDRESSES):
        try:
            canonical = parse_mailbox(address, "address").text
        except BadInput:
            assert fault is not None, address
            continue
        # The three forms that only the program itself takes.
        is_wider = address[0] == '"' or "[" in address or "ü" in address
        assert (fault is not None) == is_wider, (address, fault)
        if fault is None:
            local, _, domain = address.rpartition("@")
            assert canonical == f"{local}@{domain.lower()}"


async def test_a_snapshot_from_before_the_seal_cannot_append_after_it(
    database: Database, conn: asyncpg.Connection
) -> None:
    made = await new_delivery(conn)
    async with database.pool.acquire() as application, application.transaction(isolation="repeatable_read"):
        await application.fetchval("SELECT count(*) FROM mta.delivery")
        await deliveries.seal(conn, made)
        with pytest.raises(asyncpg.SerializationError):
            async with application.transaction():
                await _append(application, made, [["ann@example.com"]])
    assert await conn.fetchval("SELECT count(*) FROM mta.delivery_part") == 0


async def test_nobody_may_append_unasked(conn: asyncpg.Connection) -> None:
    made = await new_delivery(conn)
    await conn.execute("CREATE ROLE stranger; GRANT USAGE ON SCHEMA mta TO stranger; SET ROLE stranger")
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await _append(conn, made, [["ann@example.com"]])
    finally:
        await conn.execute("RESET ROLE; DROP OWNED BY stranger; DROP ROLE stranger")


async def test_the_examples_of_the_documentation_work_as_they_stand(conn: asyncpg.Connection) -> None:
    role, one, many, correction = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    made = await new_delivery(conn)
    assert made == 1
    await conn.execute(role)
    try:
        await conn.execute("CREATE TABLE shop_order (id int, email text, first_name text, total text)")
        await conn.execute("ALTER TABLE shop_order OWNER TO shop; SET ROLE shop")
        await conn.execute(one)
        await conn.execute("INSERT INTO shop_order VALUES (4712, 'bob@example.com', 'Bob', '5.00')")
        await conn.execute(many)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("SELECT * FROM mta.delivery_part")
    finally:
        await conn.execute("RESET ROLE; DROP OWNED BY shop; DROP ROLE shop")
    await conn.execute(correction)
    assert await conn.fetchval("SELECT text FROM mta.quarantine WHERE address = 'ann@example.com'") == "account closed"
    parts = await conn.fetch("SELECT recipients FROM mta.delivery_part ORDER BY id")
    assert [json.loads(part[0]) for part in parts] == [
        [["ann@example.com", "order 4711", ["Ann", "19.90"]]],
        [["ann@example.com", "order 4711", ["Ann", "19.90"]], ["bob@example.com", "order 4712", ["Bob", "5.00"]]],
    ]
