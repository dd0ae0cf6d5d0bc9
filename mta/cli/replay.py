"""``mta rules replay``: the record under other rules."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mta.cli.daemon import Config, dsn_of, settings_of
from mta.cli.terminal import AsJson, Dsn, parse_duration, print_json, print_table, with_database
from mta.model.errors import BadInput
from mta.queue import history
from mta.queue.connection import Conn
from mta.settings import load_rules
from mta.simulation.picture import duration
from mta.simulation.replay import Lines, Replay, scenario_of
from mta.simulation.replay import replay as play
from mta.simulation.scenario import NodeModel


def replay(
    rules: Annotated[Path, typer.Option(help="The rules to try.", show_default=False)],
    since: Annotated[str, typer.Option(help="How far back: 30m, 2h, 1d.")] = "2h",
    pool: Annotated[str, typer.Option(help="The egress pool that all of it leaves from.")] = "default",
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Feed the recorded history to other rules: what would have been sent when, which refusals were avoided."""
    settings = settings_of(config)
    back = parse_duration(since, "--since")
    if pool not in settings.pools:
        raise BadInput("--pool", f"no pool is named {pool!r}; known: {', '.join(settings.pools)}")
    rule_set = load_rules(rules)

    async def work(conn: Conn) -> tuple[list[history.Attempts], dict[str, dict[str, list[str]]]]:
        begin = datetime.datetime.now(datetime.UTC) - back
        return await history.attempts_since(conn, begin), await history.hosts_since(conn, begin)

    attempts, hosts = with_database(dsn_of(dsn, settings), work)
    lines = [Lines(*msgspec.structs.astuple(one)) for one in attempts if one.site in hosts]
    if not lines:
        raise BadInput("--since", f"nothing was attempted in the last {since}")
    children, master = settings.children, settings.master
    node = NodeModel(
        children=children.effective_count,
        batch_recipients=children.batch_recipients,
        sessions_max=children.sessions_max,
        ready_recipients_max=master.ready_recipients_max,
        ready_per_site_max=master.ready_per_site_max,
        claim_parts_max=master.claim_parts_max,
    )
    scenario = scenario_of(lines, hosts, {}, rules=rule_set, pool=settings.pools[pool], node=node, nodes=1)
    told = play(lines, scenario)
    if as_json:
        print_json(told)
    else:
        _show(told)


def _show(told: Replay) -> None:
    print_table(
        "The record under these rules",
        ("site", "recipients", "refused then", "now", "avoided", "per minute then", "now", "done then", "now"),
        [
            (
                site.site,
                site.recipients,
                site.recorded_refusals,
                site.refusals,
                site.refusals_avoided,
                site.recorded_peak_per_minute,
                site.peak_per_minute,
                duration(site.recorded_last_s),
                duration(site.done_s),
            )
            for site in told.sites[:40]
        ],
    )
    for assumption in told.assumptions:
        typer.echo(f"assumed: {assumption}")
    typer.echo(
        f"{told.recipients:,} recipients, {told.recorded_attempts:,} attempts with {told.recorded_refusals:,} refusals "
        f"for going too fast; under these rules {told.attempts:,} with {told.refusals:,}: "
        f"{told.refusals_avoided:,} avoided; done after {duration(told.done_s)} instead of "
        f"{duration(told.recorded_last_s)}"
    )
