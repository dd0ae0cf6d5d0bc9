"""``mta delivery``: made, filled, steered, audited."""

from __future__ import annotations

import contextlib
import datetime
import json
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mta.cli.audit_text import print_audit
from mta.cli.preview import preview, signers_of
from mta.cli.terminal import (
    AsJson,
    DeliveryId,
    Dsn,
    err,
    out,
    parse_duration,
    parse_time,
    print_json,
    print_table,
    shown,
    warn,
    with_database,
)
from mta.cli.waves import CalendarWaves, WaveEvery, WaveShare, print_waves, too_late, waves_from
from mta.message import load_content
from mta.message.advice import one_click_advice
from mta.model.duplicates import DeliveryKind, Duplicates
from mta.model.errors import BadInput
from mta.model.outcome import InDoubtPolicy
from mta.queue import audit as audits
from mta.queue import deliveries, overview, source, waves
from mta.queue.connection import Conn
from mta.queue.load import LoadSummary, append_source
from mta.queue.states import DeliveryState
from mta.traffic.waves import Wave

LOG_BYTES_PER_RECIPIENT = 350  # an attempt with its two indexes, measured: docs/operating.md, "Sizing"

app = typer.Typer(help="Deliveries: make, fill, steer and audit them.", no_args_is_help=True)

app.command()(preview)

SettingsFile = Annotated[
    Path | None,
    typer.Option(help="The node's mta.toml: will it be signed?", exists=True, dir_okay=False, show_default=False),
]
InputFile = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, readable=True, show_default=False)]

Kind = Annotated[DeliveryKind, typer.Option(help="An audience, or events, each a message: what becomes of duplicates.")]
OfDuplicates = Annotated[
    Duplicates | None,
    typer.Option(
        "--duplicates",
        help="Recipients whose address was there before; else a campaign excludes them.",
        show_default=False,
    ),
]
IgnoreCase = Annotated[bool, typer.Option("--duplicates-ignore-case", help="Ann@ and ann@ are duplicates too.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Its name, for people.", show_default=False)],
    content: Annotated[
        Path | None,
        typer.Option(help="Content as TOML or JSON.", exists=True, dir_okay=False, readable=True, show_default=False),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Subject, may have {{fields}}.", show_default=False)] = None,
    sender: Annotated[str | None, typer.Option("--from", help='"Shop" <news@example.com>', show_default=False)] = None,
    text: InputFile = None,
    html: InputFile = None,
    priority: Annotated[int, typer.Option(help="0 (least) to 4 (most urgent).")] = 2,
    weight: Annotated[int, typer.Option(help="Share among deliveries of one priority, 1 to 1000.")] = 1,
    pool: Annotated[str, typer.Option(help="Egress pool.")] = "default",
    in_doubt: Annotated[
        InDoubtPolicy, typer.Option(help="When a final dot was never answered.")
    ] = InDoubtPolicy.RESEND,
    valid_for: Annotated[str, typer.Option(help="How long to try: 90s, 30m, 12h, 5d.")] = "5d",
    start_at: Annotated[
        str | None, typer.Option(help="Not before this time (ISO 8601 with zone).", show_default=False)
    ] = None,
    keep_quarantined: Annotated[
        bool, typer.Option("--keep-quarantined", help="A proof: also who is in quarantine is mailed.")
    ] = False,
    kind: Kind = DeliveryKind.CAMPAIGN,
    duplicates: OfDuplicates = None,
    duplicates_ignore_case: IgnoreCase = False,
    deadline: Annotated[
        str | None,
        typer.Option(help="To be done by (ISO 8601 with zone): goes before others then.", show_default=False),
    ] = None,
    retry: Annotated[
        str | None, typer.Option(help="Retry schedule: a preset's name, or JSON.", show_default=False)
    ] = None,
    part_recipients: Annotated[int, typer.Option(help="Recipients a part; 0: automatic.")] = 0,
    wave_share: WaveShare = None,
    wave_every: WaveEvery = None,
    wave: CalendarWaves = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Ask for each recipient, and send nothing.")] = False,
    config: SettingsFile = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Make a delivery. It sends nothing before it is started."""
    new = deliveries.NewDelivery(
        name=name,
        content=_content(content, subject, sender, text, html),
        priority=priority,
        weight=weight,
        egress_pool=pool,
        in_doubt_policy=in_doubt,
        part_recipients=part_recipients,
        starts_at=None if start_at is None else parse_time(start_at, "--start-at"),
        validity=parse_duration(valid_for, "--valid-for"),
        # A preset's name may stand without the quotes that make it JSON.
        retry=json.dumps(retry) if retry is not None and retry.isidentifier() and retry != "null" else retry,
        waves=waves_from(wave_share, wave_every, wave or []),
        is_simulated=simulate,
        keeps_quarantined=keep_quarantined,
        kind=kind,
        duplicates=duplicates,
        duplicates_ignore_case=duplicates_ignore_case,
        deadline=None if deadline is None else parse_time(deadline, "--deadline"),
    )
    warn(_advice(new.content, config))
    made = with_database(dsn, lambda conn: deliveries.create(conn, new))
    if as_json:
        print_json({"id": made})
    else:
        out.print(f"delivery {made} made; next: mta delivery append {made} FILE, mta delivery start {made}")


@app.command()
def duplicate(
    delivery_id: DeliveryId,
    name: Annotated[str | None, typer.Option(help="Another name.", show_default=False)] = None,
    simulate: Annotated[
        bool | None, typer.Option("--simulate/--no-simulate", help="Else as the other.", show_default=False)
    ] = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Make a new delivery like another: without its recipients, part size and time of start."""
    made = with_database(dsn, lambda conn: deliveries.duplicate(conn, delivery_id, name=name, is_simulated=simulate))
    if as_json:
        print_json({"id": made})
    else:
        out.print(f"delivery {made} made, like delivery {delivery_id}")


@app.command()
def append(
    delivery_id: DeliveryId,
    file: Annotated[str, typer.Argument(help="CSV or NDJSON; - reads standard input.", show_default=False)],
    form: Annotated[
        source.SourceFormat | None, typer.Option("--format", help="Else by the file's suffix.", show_default=False)
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Between the columns of CSV; else as the header has it.", show_default=False)
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of CSV; else UTF-8.", show_default=False)] = None,
    on_bad_row: Annotated[
        source.OnBadRow, typer.Option(help="Leave it out, or refuse its part.")
    ] = source.OnBadRow.SKIP,
    part_recipients: Annotated[
        int | None, typer.Option(help="Recipients a part; 0: automatic; else as the delivery says.", show_default=False)
    ] = None,
    key_prefix: Annotated[
        str | None, typer.Option(help="Of the parts' keys; else the file's name.", show_default=False)
    ] = None,
    seal: Annotated[
        bool, typer.Option("--seal", help="Afterwards nothing more can be appended; if all rows were taken.")
    ] = False,
    seal_anyway: Annotated[bool, typer.Option("--seal-anyway", help="Seal it though rows were left out.")] = False,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Append recipients. Run the same again after it was cut short: what is there already is not appended twice."""
    name = "stdin" if file == "-" else Path(file).name
    form = form or (source.SourceFormat.NDJSON if name.endswith((".ndjson", ".jsonl")) else source.SourceFormat.CSV)

    async def work(conn: Conn) -> LoadSummary:
        asked = (
            (await deliveries.show(conn, delivery_id)).part_recipients if part_recipients is None else part_recipients
        )
        total = None if file == "-" else source.count_lines(Path(file))
        with _opened(file) as stream, _progress_bar(total, is_shown=not as_json) as on_progress:
            wanted = await deliveries.fields_used(conn, delivery_id)
            rows = source.open_rows(stream, name, form, delimiter=delimiter, encoding=encoding, wanted=wanted)
            warn(rows.notes)
            size = source.part_recipients_for(asked, total)
            parts = source.read_parts(rows, key_prefix or name, size, on_bad_row)
            summary = await append_source(conn, delivery_id, parts, on_progress)
        if seal_anyway or (seal and summary.is_complete):
            summary.duplicates = await deliveries.seal(conn, delivery_id)
        return summary

    summary = with_database(dsn, work)
    if as_json:
        print_json({"is_complete": summary.is_complete, **msgspec.to_builtins(summary)})
    else:
        _print_summary(summary, is_unsealed=seal and not (seal_anyway or summary.is_complete))
    if not summary.is_complete:
        raise typer.Exit(1)


@app.command("list")
def list_(
    state: Annotated[DeliveryState | None, typer.Option(help="Only those in this state.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=100_000)] = 50,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Deliveries with their counters, the newest first."""
    found = with_database(dsn, lambda conn: deliveries.list_deliveries(conn, state=state, limit=limit))
    if as_json:
        for one in found:
            print_json(_as_json(one))
        return
    print_table(
        "Deliveries (recipients)",
        (
            *("id", "name", "state", "sealed", "appended", "waiting", "delivered", "failed", "expired", "cancelled"),
            *("simulated", "held"),
        ),
        [
            (
                *(str(one.id), one.name, _state(one), one.sealed, one.appended, one.waiting),
                *(one.delivered, one.failed, one.expired, one.cancelled, one.simulated, one.held),
            )
            for one in found
        ],
    )


@app.command()
def show(delivery_id: DeliveryId, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """All about one delivery."""

    async def work(conn: Conn) -> tuple[deliveries.Delivery, list[Wave]]:
        return await deliveries.show(conn, delivery_id), await waves.planned(conn, delivery_id)

    found, planned = with_database(dsn, work)
    if as_json:
        print_json({**_as_json(found), "waves_planned": [wave._asdict() for wave in planned]})
    else:
        print_table(f"Delivery {delivery_id}", ("what", "value"), list(_as_json(found).items()))
        if planned:
            print_waves(planned)
    warn(too_late(found))


@app.command()
def start(
    delivery_id: DeliveryId,
    at: Annotated[
        str | None, typer.Option(help="Not before this time (ISO 8601 with zone).", show_default=False)
    ] = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Begin to send, now or at the time that is set."""
    time = None if at is None else parse_time(at, "--at")

    async def look_around(conn: Conn) -> tuple[deliveries.Delivery, list[overview.LargeDelivery]]:
        return await deliveries.show(conn, delivery_id), await overview.large_beside(conn, delivery_id)

    state = with_database(dsn, lambda conn: deliveries.start(conn, delivery_id, at=time))
    found, beside = with_database(dsn, look_around)
    if as_json:
        print_json({"id": delivery_id, "state": state})
    else:
        out.print(f"delivery {delivery_id} is {_state(found)}")
    warn(too_late(found))
    warn(_scheduled_together(beside))


@app.command()
def pause(delivery_id: DeliveryId, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Hand out no more of it, until it is resumed."""
    _change(delivery_id, deliveries.pause, dsn, as_json)


@app.command()
def resume(delivery_id: DeliveryId, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Go on after a pause."""
    _change(delivery_id, deliveries.resume, dsn, as_json)


@app.command()
def cancel(delivery_id: DeliveryId, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Send no more of it, for ever; what waits is recorded as cancelled."""
    _change(delivery_id, deliveries.cancel, dsn, as_json)


@app.command()
def seal(delivery_id: DeliveryId, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Nothing more will be appended: it finishes when all of it is settled."""
    found = with_database(dsn, lambda conn: deliveries.seal(conn, delivery_id))
    if as_json:
        print_json({"id": delivery_id, "sealed": True, "duplicates": found})
    else:
        out.print(f"delivery {delivery_id} is sealed")
        _print_duplicates(found)


@app.command()
def audit(delivery_id: DeliveryId, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Prove from queue and log that nothing is lost, repeated or invented; exit 1 when something is."""
    found = with_database(dsn, lambda conn: audits.audit(conn, delivery_id))
    if as_json:
        print_json({"is_clean": found.is_clean, **msgspec.to_builtins(found)})
    else:
        print_audit(found)
    if not found.is_clean:
        raise typer.Exit(1)


@app.command("in-doubt")
def in_doubt(
    delivery_id: DeliveryId,
    resend: Annotated[bool, typer.Option("--resend", help="Send the held ones again.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="Record the held ones as failed.")] = False,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Messages whose final dot was never answered: list them, or settle those that are held."""
    if resend and drop:
        raise BadInput("--resend --drop", "cannot be asked for together")
    if resend or drop:
        action = audits.Action.RESEND if resend else audits.Action.DROP
        settled = with_database(dsn, lambda conn: audits.settle_in_doubt(conn, delivery_id, action))
        if as_json:
            print_json({"id": delivery_id, "action": action, "settled": settled})
        else:
            out.print(f"{settled:,} held messages of delivery {delivery_id}: {action.value}")
        return
    found = with_database(dsn, lambda conn: audits.in_doubt(conn, delivery_id))
    if as_json:
        for doubt in found:
            print_json(doubt)
        return
    print_table(
        f"In doubt, delivery {delivery_id}",
        ("at", "address", "attempt", "MX host", "policy", "held", "cause"),
        [(one.at, one.address, one.attempt, one.mx_host, one.policy, one.held, one.cause) for one in found],
    )


def _scheduled_together(beside: list[overview.LargeDelivery]) -> Iterator[str]:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)  # clocks differ somewhat
    for one in beside:
        if one.begins_at <= soon:
            yield (
                f"delivery {one.id} ({one.name}) still has {one.waiting:,} recipients to send: they share the capacity"
            )
        else:
            yield (
                f"scheduled together with delivery {one.id} ({one.name}), which begins with {one.waiting:,} recipients "
                f"at {shown(one.begins_at)}: they share the capacity"
            )


def _state(found: deliveries.Delivery) -> str:
    """A delivery that is started for later is running; what people want to know is when it begins."""
    now = datetime.datetime.now(datetime.UTC)
    is_ahead = found.state is DeliveryState.RUNNING and found.starts_at is not None and found.starts_at > now
    return f"{found.state.value}, starts at {shown(found.starts_at)}" if is_ahead else found.state.value


def _change(delivery_id: int, change: Callable[[Conn, int], Awaitable[DeliveryState]], dsn: str, as_json: bool) -> None:
    state = with_database(dsn, lambda conn: change(conn, delivery_id))
    if as_json:
        print_json({"id": delivery_id, "state": state})
    else:
        out.print(f"delivery {delivery_id} is {state.value}")


def _advice(content: bytes, config: Path | None) -> list[str]:
    message = load_content(content, "content")
    advice = one_click_advice(message, None if config is None else signers_of(config, message.sender))
    return [] if advice is None else [advice]


def _content(file: Path | None, subject: str | None, sender: str | None, text: Path | None, html: Path | None) -> bytes:
    """The content as JSON; whether it is good is for ``deliveries.create`` to say."""
    pieces: dict[str, Any] = {
        "subject": subject,
        "sender": sender,
        "text": None if text is None else _read_text(text),
        "html": None if html is None else _read_text(html),
    }
    given = {key: value for key, value in pieces.items() if value is not None}
    if file is None:
        if subject is None or sender is None:
            raise BadInput("--content", "is missing; or give --subject, --from, and --text or --html")
        return msgspec.json.encode(given)
    if given:
        raise BadInput("--content", "holds the whole content: it cannot go with --subject, --from, --text or --html")
    content = _read_text(file)
    if file.suffix != ".toml":
        return content.encode()
    try:
        return msgspec.json.encode(tomllib.loads(content))
    except tomllib.TOMLDecodeError as error:
        raise BadInput(str(file), str(error)) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(str(path), f"is not UTF-8: {error.reason} at byte {error.start}") from error


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield typer.get_binary_stream("stdin")
    else:
        with Path(file).open("rb") as stream:
            yield stream


@contextlib.contextmanager
def _progress_bar(total: int | None, *, is_shown: bool) -> Iterator[Callable[[LoadSummary], None]]:
    columns = (
        SpinnerColumn(),
        TextColumn("appending"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows, {task.speed} a second"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=not is_shown) as progress:
        task = progress.add_task("append", total=total)
        yield lambda summary: progress.update(task, completed=summary.rows_read)


def _print_summary(summary: LoadSummary, *, is_unsealed: bool) -> None:
    for bad in summary.bad_rows:
        err.print(shown(str(bad)), highlight=False, soft_wrap=True)
    if summary.bad > len(summary.bad_rows):
        err.print(f"... and {summary.bad - len(summary.bad_rows):,} more bad rows")
    out.print(
        f"{summary.rows_read:,} rows read: {summary.appended:,} appended, {summary.already_there:,} there already, "
        f"{summary.bad:,} bad, {summary.refused:,} refused with a bad one of their part"
    )
    if summary.excluded:
        out.print(f"{summary.excluded:,} of them are not mailed: in quarantine or denylisted")
    _print_duplicates(summary.duplicates)
    if summary.queue_bytes:
        # What the outcomes will add, by the figures of docs/operating.md, "Sizing".
        log_bytes = summary.appended * LOG_BYTES_PER_RECIPIENT
        out.print(
            f"space: {summary.queue_bytes / 1e6:,.1f} MB in the queue until it is sent; its log will take about "
            f"{log_bytes / 1e6:,.1f} MB"
        )
    if is_unsealed:
        refused = f", with the parts {', '.join(summary.refused_parts[:20])}" if summary.refused_parts else ""
        why = f"{summary.bad:,} bad rows were left out{refused}: mend them and append again, or use --seal-anyway"
        err.print(f"not sealed: {why}", soft_wrap=True)


def _print_duplicates(found: int) -> None:
    if found:
        out.print(f"{found:,} recipients are not mailed: their addresses were in the delivery before")


def _as_json(found: deliveries.Delivery) -> dict[str, Any]:
    fields = msgspec.to_builtins(found)
    del fields["validity"]
    fields["waves"] = None if found.waves is None else msgspec.json.decode(found.waves)
    seconds = int(found.validity.total_seconds())
    return {**fields, "validity_s": seconds, "final": found.final, "waiting": found.waiting}
