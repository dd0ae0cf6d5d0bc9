"""A delivery's content for tests, as small as it can be."""

from __future__ import annotations

import json

import asyncpg

from mta.model.duplicates import Duplicates
from mta.queue import deliveries


def content_json(subject: str = "News", text: str = "Hello", **more: object) -> bytes:
    return json.dumps({"sender": "Shop <news@shop.example>", "subject": subject, "text": text, **more}).encode()


async def new_delivery(conn: asyncpg.Connection, **fields: object) -> int:
    """A delivery whose parts can be claimed when they are appended: nobody looks for duplicates before."""
    values: dict[str, object] = {"name": "test", "content": content_json(), "duplicates": Duplicates.KEEP, **fields}
    return await deliveries.create(conn, deliveries.NewDelivery(**values))  # type: ignore[arg-type]
