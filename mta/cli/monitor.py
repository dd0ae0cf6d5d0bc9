"""``mta monitor``: volume, errors, rates by domain, alerts, and why a delivery is slow."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from mta.cli.daemon import Config, dsn_of, settings_of
from mta.cli.monitor_domains import domains
from mta.cli.terminal import AsJson, DeliveryId, Dsn, err, out, print_json, print_table, shown, with_database
from mta.master.control import NoDaemon, ask
from mta.model.errors import BadInput
from mta.queue import faults, process_alerts, refusals
from mta.queue import monitor as queries
from mta.queue import slow as slowness
from mta.queue.connection import Conn
from mta.queue.refusals import PathRefusalRow
from mta.traffic.diagnosis import NodeFacts, diagnose

app = typer.Typer(help="Volume, errors, alerts, and why a delivery is slow.", no_args_is_help=True)

Egress = Annotated[str | None, typer.Option(help="Of this egress only.", show_default=False)]
Hours = Annotated[int, typer.Option(help="Look back so many hours.", min=1, max=24)]


@app.callback()
def monitor() -> None:
    """Volume, errors, alerts, and why a delivery is slow."""


@app.command()
def throughput(
    hours: Annotated[int, typer.Option(help="Look back 1, 3 or 24 hours.")] = 1,
    egress: Egress = None,
    node: Annotated[str | None, typer.Option(help="Of this node only.", show_default=False)] = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Messages and bytes an hour, success against error, in buckets of time."""
    if hours not in queries.BUCKETS_S:
        raise BadInput("--hours", f"must be one of {', '.join(map(str, queries.BUCKETS_S))}")
    width_s, buckets = with_database(dsn, lambda conn: queries.throughput(conn, hours, egress=egress, node=node))
    if as_json:
        rows = [{**msgspec.to_builtins(one), "errors": one.errors} for one in buckets]
        print_json({"hours": hours, "bucket_s": width_s, "buckets": rows})
        return
    per_hour = 3_600 / width_s
    print_table(
        f"Throughput of {hours} h, by {width_s // 60} minutes; the last one is not over",
        (
            *("from", "delivered", "an hour", "MB", "MB an hour", "errors", "of it failed", "deferred", "in doubt"),
            *("expired", "success %"),
        ),
        [
            (
                *(one.begins_at, one.delivered, round(one.delivered * per_hour), one.bytes_delivered / 1e6),
                *(one.bytes_delivered / 1e6 * per_hour, one.errors, one.failed, one.deferred, one.in_doubt),
                *(one.expired, _percent(one.delivered, one.delivered + one.errors)),
            )
            for one in buckets
        ],
    )


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


@app.command()
def errors(
    minimum: Annotated[int, typer.Option("--min", help="List paths with so many errors or more.", min=1)] = (
        queries.ERRORS_MIN
    ),
    hours: Hours = 1,
    egress: Egress = None,
    domain: Annotated[str | None, typer.Option(help="To this recipient domain only.", show_default=False)] = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """What servers refuse, by recipient domain and egress, with the last reply; of one egress or domain, all of it."""
    if egress is not None or domain is not None:
        _errors_of(hours, egress, domain, dsn, as_json)
        return
    found, refused = with_database(dsn, lambda conn: _found(conn, hours, minimum))
    if as_json:
        print_json({"hours": hours, "min": minimum, "paths": found, "refused": refused})
        return
    print_table(
        f"Paths with {minimum} errors or more in {hours} h; go on with --egress or --domain",
        ("domain", "egress", "errors", "failed", "deferred", "in doubt", "last", "MX host", "last reply"),
        [
            (
                *(one.domain, one.egress or None, one.errors, one.failed, one.deferred, one.in_doubt, one.last_at),
                *(one.mx_host or None, _reply(one.code, one.enhanced, one.reply)),
            )
            for one in found
        ],
    )
    if refused:
        _print_refused(hours, refused)


async def _found(conn: Conn, hours: int, minimum: int) -> tuple[list[queries.PathErrors], list[PathRefusalRow]]:
    return await queries.errors(conn, hours=hours, minimum=minimum), await refusals.listed(conn, hours=hours)


def _print_refused(hours: int, refused: list[PathRefusalRow]) -> None:
    """Their recipients went by other paths or were deferred, so the attempts above say nothing of most of them."""
    print_table(
        f"Paths that were left alone for a time in {hours} h, as hosts refused what came from there",
        ("egress", "MX host", "address", "about", "at", "recipients", "since", "rests until", "last reply", "node"),
        [
            (
                *(one.egress, one.mx_host, one.peer, one.scope, one.stage, one.refused, one.since, one.rests_until),
                *(_reply(one.code, one.enhanced, one.reply), one.node),
            )
            for one in refused
        ],
    )


def _errors_of(hours: int, egress: str | None, domain: str | None, dsn: str, as_json: bool) -> None:
    figures, replies = with_database(dsn, lambda conn: queries.paths(conn, hours=hours, egress=egress, domain=domain))
    if as_json:
        print_json({"hours": hours, "egress": egress, "domain": domain, "paths": figures, "replies": replies})
        return
    print_table(
        f"Attempts of {hours} h",
        (
            *("domain", "egress", "attempted", "delivered", "refused", "unreachable", "failed", "deferred", "in doubt"),
            *("expired", "cancelled"),
        ),
        [
            (
                *(one.domain, one.egress or None, one.attempted, one.delivered, one.refused, one.unreachable),
                *(one.failed, one.deferred, one.in_doubt, one.expired, one.cancelled),
            )
            for one in figures
        ],
    )
    print_table(
        "Replies",
        ("times", "last", "reply"),
        [(one.times, one.last_at, _reply(one.code, one.enhanced, one.reply)) for one in replies],
    )


def _reply(code: int, enhanced: str, text: str) -> str:
    return " ".join(part for part in (str(code or ""), enhanced, text) if part)


@app.command()
def alerts(
    limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=10_000)] = 100,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Alerts that were raised, the latest first."""
    _print_alerts("Alerts", with_database(dsn, lambda conn: queries.alerts(conn, limit=limit)), as_json)


@app.command()
def check(
    success_min: Annotated[float, typer.Option(help="Of what has ended, so many % are to be delivered.")] = 80.0,
    outcomes_min: Annotated[int, typer.Option(help="Outcomes before a share of them says anything.")] = 50,
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Raise what is to be raised now (nodes do so each minute by themselves), and print what is new."""
    bounds = queries.AlertBounds(outcomes_min=outcomes_min, success_percent_min=success_min)
    of_faults = settings_of(config).alarms

    async def work(conn: Conn) -> list[queries.Alert]:
        found = await queries.check_alerts(conn, bounds)
        keys = {one.key for one in await process_alerts.look(conn)}
        processes = [one for one in await queries.alerts(conn, limit=len(keys) + 100) if one.key in keys]
        new = await faults.look(conn, of_faults, is_turn_taken=True)
        of_ours = await queries.alerts(conn, limit=len(new), kind=queries.AlertKind.OUR_FAULT) if new else []
        return found + processes + of_ours

    _print_alerts("New alerts", with_database(dsn, work), as_json)


app.command()(domains)


def _print_alerts(title: str, found: list[queries.Alert], as_json: bool) -> None:
    if as_json:
        plain = [{**msgspec.to_builtins(one), "category": one.category.label} for one in found]
        print_json({"alerts": plain})
        return
    rows = [
        (
            *(one.raised_at, one.kind.value, None if one.delivery_id is None else str(one.delivery_id), one.detail),
            *(one.since, one.ended_at, one.reply or None),
        )
        for one in found
    ]
    print_table(title, ("at", "about", "delivery", "what", "since", "ended", "last reply, or what to do"), rows)


@app.command()
def slow(delivery_id: DeliveryId, config: Config = None, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Say why a delivery is slow: every cause that holds it up, the weightiest first."""
    settings = settings_of(config)
    node: NodeFacts | None = None
    no_daemon = ""
    try:
        told: Any = ask(settings.journal_dir, "slow", delivery=delivery_id)
        node = msgspec.convert(told, NodeFacts)
    except (NoDaemon, BadInput) as error:
        no_daemon = str(error)

    async def work(conn: Conn) -> Any:
        return await slowness.facts(conn, delivery_id, node)

    facts = with_database(dsn_of(dsn, settings), work)
    causes = diagnose(facts)
    if as_json:
        print_json({"delivery": delivery_id, "causes": causes, "facts": facts, "no_daemon": no_daemon})
        return
    if no_daemon:
        err.print(f"{no_daemon}: told from the database alone", markup=False, highlight=False, soft_wrap=True)
    left = facts.recipients - facts.ended
    starts = f" and starts at {shown(facts.starts_at)}" if facts.starts_in_s > 0 else ""
    out.print(f"delivery {delivery_id} is {facts.state}{starts}: {left:,} of {facts.recipients:,} recipients are open")
    for number, cause in enumerate(causes, 1):
        out.print(f"{number}. {cause.kind.value} ({100 * cause.share:.0f} %): {shown(cause.what)}", soft_wrap=True)
        out.print(f"   do: {shown(cause.do)}", soft_wrap=True)
