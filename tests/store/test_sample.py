"""The recipient whose message a preview shows."""

from __future__ import annotations

import datetime
import time

import asyncpg

from mta.model.duplicates import Duplicates
from mta.queue.append import append_parts
from mta.queue.part import Part
from mta.queue.sample import sample
from tests.support.content import new_delivery


async def test_a_preview_is_dated_now_also_of_what_is_not_looked_at_for_duplicates_yet(
    conn: asyncpg.Connection,
) -> None:
    delivery = await new_delivery(conn, duplicates=Duplicates.EXCLUDE)
    await append_parts(conn, delivery, [Part("one", (), [("ann@example.com", None, [])])])
    found = await sample(conn, delivery, ())
    assert (found.address, found.is_made_up) == ("ann@example.com", False)
    assert abs(found.dated_unix_s - time.time()) < 60


async def test_a_preview_of_a_later_start_is_dated_then(conn: asyncpg.Connection) -> None:
    delivery = await new_delivery(conn)
    await append_parts(conn, delivery, [Part("one", (), [("ann@example.com", None, [])])])
    at = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(hours=5)
    await conn.execute("UPDATE mta.delivery SET starts_at = $2 WHERE id = $1", delivery, at)
    assert (await sample(conn, delivery, ())).dated_unix_s == int(at.timestamp())
