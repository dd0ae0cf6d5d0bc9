"""STARTTLS as the rules want it, against servers that offer it and servers that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.model.outcome import Status
from tests.support.node import World, until
from tests.support.outcomes import statuses
from tests.support.postgres import Database

POLICIES = ("required", "opportunistic", "disabled")
RULES = "".join(f'[[rule]]\nname = "{policy}"\nmx = "{policy}.test"\ntls = "{policy}"\n' for policy in POLICIES)
# An address for each policy, so that the record tells its connections apart.
ADDRESS = {policy: f"127.0.0.{number}" for number, policy in enumerate(POLICIES, 2)}
ZONES: dict[str, object] = {f"{policy}.test": {"A": [ADDRESS[policy]]} for policy in POLICIES}


@pytest.mark.parametrize("offers_tls", [True, False])
async def test_a_rule_decides_whether_mail_goes_encrypted_in_clear_or_not_at_all(
    tmp_path: Path, database: Database, offers_tls: bool
) -> None:
    async with World(tmp_path, database, ZONES, sink_addresses=list(ADDRESS.values()), tls=offers_tls) as world:
        node = world.node(rules=RULES, children=1)
        await node.start()
        ids = {policy: await world.deliver([f"u{n}@{policy}.test" for n in range(5)]) for policy in POLICIES}
        for policy in POLICIES if offers_tls else POLICIES[1:]:
            assert (await world.wait_for(ids[policy])).delivered == 5

        def seen(policy: str) -> list[str]:
            return [
                "TLS" if one.tls else "clear"
                for one in world.record().connections
                if one.local == ADDRESS[policy] and not one.is_open
            ]

        if not offers_tls:
            # Refused in clear: the session ends before a recipient is named, and no attempt is counted.
            await until("required TLS gives up the session", lambda: seen("required"))
            assert await statuses(world, ids["required"]) == {}
        assert await node.stop() == 0
        offered = "TLS" if offers_tls else "clear"
        wanted = {"required": {offered}, "opportunistic": {offered}, "disabled": {"clear"}}
        assert {policy: set(seen(policy)) for policy in POLICIES} == wanted
        assert len(world.record().accepted) == (15 if offers_tls else 10)
        assert await statuses(world, ids["disabled"]) == {Status.DELIVERED: 5}
