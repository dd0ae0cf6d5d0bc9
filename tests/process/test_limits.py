"""The classic rules, proved where they count: in the record of a far end that enforces the same limits itself.

Several children, real connections. The sink plays a provider whose limits equal those of the rule, so that the
least excess would be a violation in its record.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.node import World, until
from tests.support.outcomes import leased, queue_says
from tests.support.postgres import Database

HOSTS = ("127.0.0.1", "127.0.0.2")
ZONES: dict[str, object] = {
    "mx1.test": {"A": [HOSTS[0]]},
    "mx2.test": {"A": [HOSTS[1]]},
    "*.both.test": {"MX": [(10, "mx1.test"), (10, "mx2.test")]},
    "*.one.test": {"MX": [(10, "mx1.test")]},
    "*.two.test": {"MX": [(10, "mx2.test")]},
}
EGRESSES = """
[[egress]]
name = "a"
id = 1
helo = "a.example"
source_ipv4 = "127.0.0.11"

[[egress]]
name = "b"
id = 2
helo = "b.example"
source_ipv4 = "127.0.0.12"
"""
SLOW_DOT = '[[rule]]\nstep = "dot"\ndelay_ms = 10\n'  # so that connections are in use at the same time


def rule(**keys: object) -> str:
    written = "\n".join(
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in keys.items()
    )
    return f'[[rule]]\nname = "held"\nmx = "*"\n{written}\n'


def spread(count: int, *zones: str) -> list[str]:
    return [f"u{number}@d{number % 9}.{zones[number % len(zones)]}.test" for number in range(count)]


def world_with(tmp_path: Path, database: Database, provider: str, script: str = SLOW_DOT) -> World:
    return World(tmp_path, database, ZONES, sink_addresses=HOSTS, provider=provider, script=script)


async def test_connections_by_path_and_messages_by_connection(tmp_path: Path, database: Database) -> None:
    provider = 'scope = "path"\nconnections_max = 3\nmessages_per_connection_max = 7\n'
    async with world_with(tmp_path, database, provider) as world:
        rules = rule(scope="path", connections_max=3, messages_per_connection_max=7)
        await world.node(rules=rules, children=3, settings=EGRESSES).start()
        delivery = await world.deliver(spread(900, "both", "one", "two"))
        assert (await world.wait_for(delivery)).delivered == 900
        record = world.record()
        assert record.violations == []
        paths = [f"{client}>{host}" for client in ("127.0.0.11", "127.0.0.12") for host in HOSTS]
        assert record.connections_max_by("path") == dict.fromkeys(paths, 3)
        assert record.messages_per_connection_max() == 7


async def test_connections_of_a_shared_limit_over_hosts_egresses_and_children(
    tmp_path: Path, database: Database
) -> None:
    async with world_with(tmp_path, database, 'scope = "path"\nconnections_max = 2\n') as world:
        rules = rule(scope="shared", connections_max=5, connections_per_path_max=2, messages_per_connection_max=20)
        await world.node(rules=rules, children=3, settings=EGRESSES).start()
        delivery = await world.deliver(spread(900, "both", "one", "two"))
        assert (await world.wait_for(delivery)).delivered == 900
        record = world.record()
        assert record.violations == []
        assert record.connections_max_seen("all") == 5
        assert record.messages_per_connection_max() <= 20


async def test_one_message_on_each_connection(tmp_path: Path, database: Database) -> None:
    provider = 'scope = "client"\nconnections_max = 4\nmessages_per_connection_max = 1\n'
    async with world_with(tmp_path, database, provider, script="") as world:
        await world.node(rules=rule(connections_max=4, messages_per_connection_max=1), settings=EGRESSES).start()
        delivery = await world.deliver(spread(200, "both", "one"))
        assert (await world.wait_for(delivery)).delivered == 200
        record = world.record()
        assert record.violations == []
        assert len(record.messages_per_connection()) == 200
        assert max(record.connections_max_by("client").values()) == 4


async def test_an_hourly_limit_is_held_in_its_slices_by_each_egress(tmp_path: Path, database: Database) -> None:
    provider = 'scope = "client"\nmessages_per_period_max = 100\nperiod_s = 300\n'
    async with world_with(tmp_path, database, provider) as world:
        # 1,200 an hour are 100 in any five minutes.
        await world.node(rules=rule(messages_per_hour_max=1_200), children=3, settings=EGRESSES).start()
        delivery = await world.deliver(spread(700, "both", "one", "two"))
        await world.wait_for(delivery, lambda shown: shown.delivered == 200)
        await queue_says("the rest has returned to the queue", lambda: surplus_is_back(world))
        record = world.record()
        assert record.violations == []
        assert record.max_in_window_by(300, "client") == {"127.0.0.11": 100, "127.0.0.12": 100}
        assert (await world.show(delivery)).deferrals == 0


async def test_an_hourly_limit_survives_the_death_of_the_master(tmp_path: Path, database: Database) -> None:
    provider = 'scope = "client"\nmessages_per_period_max = 100\nperiod_s = 300\n'
    async with world_with(tmp_path, database, provider, script=SLOW_DOT.replace("10", "60")) as world:
        rules = rule(scope="shared", messages_per_hour_max=1_200, connections_max=4)
        node = world.node(rules=rules, children=2, lease_s=3)
        await node.start()
        await world.deliver(spread(400, "one", "two"))
        for goal in (25, 60):
            await until(f"{goal} are at the sink", lambda goal=goal: len(world.record().accepted) >= goal)  # type: ignore[misc]
            await node.kill()
            await node.start()
        # What was in doubt at a death is counted as used: a few credits may be lost, never one gained.
        await until("the slice is used up", lambda: len(world.record().accepted) >= 85)
        await queue_says("the rest has returned to the queue", lambda: surplus_is_back(world))
        record = world.record()
        assert record.violations == []
        assert 85 <= record.max_in_window(300, "all") <= 100


async def surplus_is_back(world: World) -> bool:
    """What is left in memory goes soon, as far as the limit allows; it is little."""
    return 0 < await leased(world) <= 150


LIMITS_S = {"helo": 0.9, "mail": 0.9, "rcpt": 0.9, "data": 1.6, "dot": 2.2}
TIMEOUTS = """
[rule.timeouts]
greeting_s = 0.4
command_s = 0.9
data_s = 1.6
dot_s = 2.2
quit_s = 0.2
"""
FIRST_BACKOFF_S = 4.0


async def test_a_far_end_that_stalls_at_any_stage_is_dropped_when_the_rule_says(
    tmp_path: Path, database: Database
) -> None:
    """Each stage has an egress of its own, by which the sink knows where to stall."""
    stages = ["connect", *LIMITS_S]
    egresses, script = "", ""
    for number, stage in enumerate(stages, 21):
        egresses += f'[[egress]]\nname = "{stage}"\nid = {number}\nhelo = "{stage}.example"\n'
        egresses += f'source_ipv4 = "127.0.0.{number}"\ninclude_domains = ["d.{stage}.test"]\n'
        script += f'[[rule]]\nstep = "{stage}"\nclient = "127.0.0.{number}"\nnever_answer = true\n'
    zones: dict[str, object] = {"mx1.test": {"A": [HOSTS[0]]}, "*.test": {"MX": [(10, "mx1.test")]}}
    async with World(tmp_path, database, zones, script=script) as world:
        await world.node(rules=rule(connections_max=2) + TIMEOUTS, settings=egresses).start()
        await world.deliver([f"ann@d.{stage}.test" for stage in stages])

        def seen() -> dict[str, list[float]]:
            """When the connections of each stage were opened and closed, in order."""
            times: dict[str, list[float]] = {stage: [] for stage in stages}
            for event in world.record().connections:
                times[stages[int(event.client.rpartition(".")[2]) - 21]].append(event.at_s)
            return times

        await until("every stage was given up", lambda: all(len(times) >= 2 for times in seen().values()))
        for stage, (opened_s, closed_s, *_) in seen().items():
            if stage == "connect":
                # The sink is deaf there, so what it sees is the next try.
                assert 0.4 + FIRST_BACKOFF_S - 0.05 <= closed_s - opened_s <= 0.4 + FIRST_BACKOFF_S + 1.5
            else:
                # Deadlines are looked at once a second; a QUIT may follow.
                assert LIMITS_S[stage] - 0.05 <= closed_s - opened_s <= LIMITS_S[stage] + 2.0, stage
