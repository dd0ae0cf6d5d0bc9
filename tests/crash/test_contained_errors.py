"""Errors of ours that are met before anything is in the books cost one domain, one part, one delivery; and no node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from mta.master import intake
from mta.master.daemon import Daemon
from mta.master.routing import Routing
from mta.model.outcome import Status
from mta.settings.config import load_settings
from mta.telemetry import faults
from tests.support.node import World, addresses
from tests.support.outcomes import log_of
from tests.support.postgres import Database


def failing(function: Callable[..., Any], is_meant: Callable[..., bool]) -> Callable[..., Any]:
    def failing_sometimes(*given: Any) -> Any:
        if is_meant(*given):
            raise ZeroDivisionError("of ours")
        return function(*given)

    return failing_sometimes


async def test_a_bad_domain_part_and_delivery_leave_all_others_alone(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_kinds", {})
    bad: set[int] = set()
    monkeypatch.setattr(Routing, "_way", failing(Routing._way, lambda _, part, domain: domain == "d3.test"))
    monkeypatch.setattr(
        intake, "LeasedPart", failing(intake.LeasedPart, lambda claimed, book: b"u260@" in claimed.recipients)
    )
    monkeypatch.setattr(intake, "DeliveryBook", failing(intake.DeliveryBook, lambda view, _: view.id in bad))
    async with World(tmp_path, database) as world:
        # 0 to 255 in one part, the others in a second one, which cannot be read.
        delivery = await world.deliver(addresses(300))
        bad.add(await world.deliver(["ann@d0.test"]))
        after = await world.deliver(addresses(50, domains=3))
        daemon = Daemon(load_settings(world.node().config))
        with structlog.testing.capture_logs() as said:
            run = asyncio.create_task(daemon.run())
            await world.wait_for(after)
            shown = await world.wait_for(delivery, lambda shown: shown.delivered + shown.deferrals == 256)
            daemon.stop()
            await asyncio.wait_for(run, 60)
        asyncio.get_running_loop().set_exception_handler(None)
        rows = [row for row in await log_of(world, delivery) if row["status"] == Status.DEFERRED]
        assert {row["address"].partition("@")[2] for row in rows} == {"d3.test"}
        assert {row["enhanced"] for row in rows} == {"4.3.0"}
        assert len(rows) == shown.deferrals == 26
        assert (await world.audit(delivery)).is_clean
        async with database.pool.acquire() as conn:
            assert await conn.fetchval("SELECT held FROM mta.delivery_part WHERE delivery_id = $1 AND held", delivery)
    # One entry of each kind, whatever it cost; with the traceback.
    entries = [entry for entry in said if entry["event"] == "internal error"]
    assert sorted(entry["doing"] for entry in entries) == [
        "finding the way of recipients",
        "reading a delivery",
        "reading a part, which is held",
    ]
    assert all(isinstance(entry["exc_info"], ZeroDivisionError) for entry in entries)
