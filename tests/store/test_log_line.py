"""Log lines built in a child arrive in the database as they were meant, whatever stands in them."""

from __future__ import annotations

import io

import asyncpg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mta.outcomes.line import COLUMNS, completed, escaped, log_line, session_columns, volume_of

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(address=TEXT, reference=st.none() | TEXT, reply=TEXT, site=TEXT)
async def test_any_text_goes_through_copy_and_back(
    conn: asyncpg.Connection, address: str, reference: str | None, reply: str, site: str
) -> None:
    line = log_line(
        "2026-01-02T03:04:05+00:00",
        1,
        65536,
        2,
        1,
        "1\t0\t250\t2.0.0",
        address,
        reference,
        session_columns(site, "mx.test", "127.0.0.1", "e"),
        escaped(reply),
        4_711,
    )
    assert completed(line.encode()) == line.encode()
    assert volume_of(line.encode()) == (1_767_323_040, "e", 4_711)
    await conn.execute("TRUNCATE mta.delivery_log")
    await conn.copy_to_table(
        "delivery_log", schema_name="mta", columns=list(COLUMNS), source=io.BytesIO(line.encode()), format="text"
    )
    [row] = await conn.fetch("SELECT address, reference, reply, site, egress, bytes FROM mta.delivery_log")
    assert tuple(row) == (address, reference, reply, site, "e", 4_711)


def test_what_postgresql_cannot_hold_is_shown_as_an_escape() -> None:
    assert escaped("a\x00b\ud800") == "a\\\\x00b\\\\ud800"


async def test_a_line_that_a_journal_kept_from_before_an_upgrade_goes_in_too(conn: asyncpg.Connection) -> None:
    columns = session_columns("s", "mx.test", "127.0.0.1", "e")
    line = log_line("2026-01-02T03:04:05+00:00", 1, 2, 3, 1, "1\t0\t250\t", "a@d.test", None, columns, "ok", 7).encode()
    before_types = line.rsplit(b"\t", 2)[0] + b"\n"
    before_bytes = line.rsplit(b"\t", 3)[0] + b"\n"
    assert completed(line) == completed(before_types) == line
    assert completed(before_bytes) == line.replace(b"ok\t7\t", b"ok\t0\t")
    lines = io.BytesIO(completed(before_bytes) + completed(before_types))
    await conn.copy_to_table("delivery_log", schema_name="mta", columns=list(COLUMNS), source=lines, format="text")
    assert [tuple(row) for row in await conn.fetch("SELECT bytes, type, category FROM mta.delivery_log")] == [
        (0, 0, 0),
        (7, 0, 0),
    ]
