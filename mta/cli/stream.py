"""``mta stream``: the event streams of a node's settings, how they fare, and what an operator may do about it."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from mta.cli.terminal import AsJson, Dsn, err, out, parse_time, print_json, print_table, with_database
from mta.model.errors import BadInput
from mta.queue import streams
from mta.queue.connection import Conn
from mta.queue.streams import Behind, Place, StreamRow, Wanted
from mta.settings.config import load_settings
from mta.settings.streams import FilesSettings, KafkaSettings, NatsSettings, StreamSettings, WebhookSettings
from mta.stream.sink import Away, Refused
from mta.stream.stream import wanted_by
from mta.stream.streams import made_up_batch, make_sink

app = typer.Typer(help="Event streams: what became of each recipient, told to other programs.", no_args_is_help=True)
Config = Annotated[
    Path | None, typer.Option(help="The node's mta.toml; without it the defaults hold.", envvar="MTA_CONFIG")
]
Name = Annotated[str, typer.Argument(help="The stream's name.", show_default=False)]

NOT_WELL_EXIT = 1


def _configured(config: Path | None, name: str) -> StreamSettings:
    known = load_settings(config).streams
    for one in known:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in known) or "none"
    raise BadInput(name, f"no [[stream]] of this name is configured; there are: {names}")


def _leads_to(stream: StreamSettings) -> str:
    match stream:
        case WebhookSettings():
            return stream.url
        case FilesSettings():
            return stream.directory
        case KafkaSettings():
            return f"{stream.topic} at {', '.join(stream.servers)}"
        case NatsSettings():
            return f"{stream.subject} at {', '.join(stream.servers)}"
    return ""


@app.command("list")
def list_(config: Config = None, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Streams that are configured here, and those of which the database knows."""
    configured = {one.name: one for one in load_settings(config).streams}
    known = {row.name: row for row in with_database(dsn, streams.all_streams)}
    told: list[dict[str, Any]] = []
    for name in sorted(configured | known):
        stream, row = configured.get(name), known.get(name)
        told.append(
            {
                "name": name,
                "sink": None if stream is None else stream.sink,
                "to": None if stream is None else _leads_to(stream),
                "kinds": None if stream is None else stream.kinds,
                "deliveries": None if stream is None else stream.deliveries,
                "state": "never ran" if row is None else row.state,
                "events": 0 if row is None else row.events,
            }
        )
    if as_json:
        print_json(told)
        return
    columns = ("name", "sink", "to", "kinds", "deliveries", "state", "events")
    rows = [
        [", ".join(map(str, one[key])) or "all" if isinstance(one[key], tuple) else one[key] for key in columns]
        for one in told
    ]
    print_table("Event streams", columns, rows)


@app.command()
def lag(config: Config = None, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """How far behind each stream is, and why; exit code 1 when one is stopped, or waits for its sink."""
    configured = {one.name: one for one in load_settings(config).streams}

    async def work(conn: Conn) -> list[tuple[StreamRow, Behind]]:
        rows = await streams.all_streams(conn)
        return [(row, await streams.behind(conn, row.place, _wanted(configured.get(row.name)))) for row in rows]

    found = with_database(dsn, work)
    now = datetime.datetime.now(datetime.UTC)
    told = [_lag(row, behind, now, row.name in configured) for row, behind in found]
    told += [_never_ran(name) for name in sorted(configured.keys() - {row.name for row, _ in found})]
    if as_json:
        print_json(told)
    else:
        columns = ("name", "state", "events behind", "seconds behind", "failing since", "error", "batch")
        print_table("Event streams", columns, [[one[column.replace(" ", "_")] for column in columns] for one in told])
        if any(one["is_counted_up_to_here"] for one in told):
            out.print(f"events behind are counted up to {streams.COUNTED_MAX:,}", highlight=False)
        for one in told:
            if not one["is_configured"]:
                out.print(f"{one['name']} is not configured here; if nowhere: mta stream forget", highlight=False)
    if any(one["state"] in ("retrying", "stopped") for one in told):
        raise typer.Exit(NOT_WELL_EXIT)


def _wanted(stream: StreamSettings | None) -> Wanted:
    return Wanted() if stream is None else wanted_by(stream)


def _lag(row: StreamRow, behind: Behind, now: datetime.datetime, is_configured: bool) -> dict[str, Any]:
    return {
        "name": row.name,
        "is_configured": is_configured,
        "state": row.state,
        "events_behind": behind.events,
        "is_counted_up_to_here": behind.events >= streams.COUNTED_MAX,
        "seconds_behind": 0.0 if behind.oldest_at is None else max(0.0, (now - behind.oldest_at).total_seconds()),
        "failing_since": row.failing_since,
        "error": row.error or None,
        "batch": row.batch or None,
        "events": row.events,
        "moved_at": row.moved_at,
    }


def _never_ran(name: str) -> dict[str, Any]:
    unknown = ("events_behind", "seconds_behind", "failing_since", "error", "batch", "events", "moved_at")
    return {
        "name": name,
        "is_configured": True,
        "state": "never ran",
        "is_counted_up_to_here": False,
        **dict.fromkeys(unknown),
    }


@app.command()
def replay(
    name: Name,
    since: Annotated[str, typer.Option("--from", help="Every event since then (ISO 8601 with zone).")],
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Tell events again, from a time on, as far as the log still has them; some older ones may come with them."""
    at = parse_time(since, "--from")

    async def work(conn: Conn) -> bool:
        place = await streams.place_at(conn, at)
        if place is None:
            return False
        await _put(conn, name, place)
        return True

    is_set = with_database(dsn, work)
    if as_json:
        print_json({"name": name, "from": at, "replayed": is_set})
    elif is_set:
        out.print(f"{name} goes on from {at.isoformat()}", highlight=False)
    else:
        out.print("the log has nothing since then; nothing is changed", highlight=False)


@app.command()
def skip(
    name: Name,
    everything: Annotated[
        bool, typer.Option("--all", help="Tell nothing of what waits: go on with what comes now. It is not filed.")
    ] = False,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Give up the batch that the sink does not take: it is filed in refused_dir, and the stream goes on behind it."""

    async def work(conn: Conn) -> str | None:
        if everything:
            await _put(conn, name, await streams.place_now(conn))
            return None
        await _existing(conn, name)
        return await streams.skip(conn, name)

    batch = with_database(dsn, work)
    if not everything and batch is None:
        raise BadInput(name, "there is no batch that its sink does not take")
    if as_json:
        print_json({"name": name, "batch": batch, "all": everything})
    elif everything:
        out.print(f"{name} goes on with what comes now", highlight=False)
    else:
        out.print(f"batch {batch} will be filed, and {name} goes on behind it, within seconds", highlight=False)


@app.command()
def forget(name: Name, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Drop the place of a stream that is configured no more. One that is configured begins anew."""
    done = with_database(dsn, lambda conn: streams.forget(conn, name))
    if not done:
        raise BadInput(name, "the database knows no stream of this name")
    if as_json:
        print_json({"name": name, "forgotten": True})
    else:
        out.print(f"{name} is forgotten", highlight=False)


@app.command("test")
def try_out(name: Name, config: Config = None, as_json: AsJson = False) -> None:
    """Send one made-up event of the kind 'test' to the sink, past the stream; exit code 1 when it is not taken."""
    stream = _configured(config, name)
    error = ""

    async def send() -> str:
        sink = make_sink(stream)
        try:
            return await sink.test(made_up_batch(datetime.datetime.now(datetime.UTC)))
        finally:
            await sink.close()

    try:
        said = asyncio.run(send())
    except (Away, Refused) as why:
        said, error = "", str(why)
    if as_json:
        print_json({"name": name, "ok": not error, "said": said or None, "error": error or None})
    elif error:
        err.print(f"{name}: {error}", markup=False, highlight=False, soft_wrap=True)
    else:
        out.print(f"{name}: {said}", markup=False, highlight=False, soft_wrap=True)
    if error:
        raise typer.Exit(NOT_WELL_EXIT)


async def _existing(conn: Conn, name: str) -> StreamRow:
    found = await streams.find(conn, name)
    if found is None:
        known = ", ".join(row.name for row in await streams.all_streams(conn)) or "none"
        raise BadInput(name, f"no stream of this name ever ran; there are: {known}")
    return found


async def _put(conn: Conn, name: str, place: Place) -> None:
    await _existing(conn, name)
    await streams.put(conn, name, place)
