"""``mta quarantine``: addresses that are not mailed any more."""

from __future__ import annotations

import datetime
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from mta.cli import address_file
from mta.cli.rules_common import operator
from mta.cli.terminal import AsJson, Dsn, out, parse_time, print_json, print_table, warn, with_database
from mta.model.errors import BadInput
from mta.model.quarantine import AddressStatus
from mta.queue import feed, quarantine
from mta.queue.connection import Conn
from mta.queue.quarantine import Entry
from mta.settings.config import load_settings

app = typer.Typer(help="Addresses that are not mailed any more: quarantine, denylist, allowlist.", no_args_is_help=True)
_STATUSES: Final = {status.label: status for status in AddressStatus}
_SETTABLE: Final = {"quarantined", "denylisted", "allowlisted", "valid"}
Address = Annotated[str, typer.Argument(help="An address, or @example.com for a whole domain.", show_default=False)]
Status = Annotated[str, typer.Option(help=f"{', '.join(sorted(_SETTABLE))}.")]
Config = Annotated[
    Path | None,
    typer.Option(help="mta.toml, for its figures; without it the defaults.", envvar="MTA_CONFIG"),
]
_encode: Final = msgspec.json.Encoder().encode
Reason = Annotated[str, typer.Option("--because", help="Why; stays on record.")]


def _status(text: str, allowed: set[str] | frozenset[str]) -> AddressStatus:
    if text not in allowed:
        raise BadInput("--status", f"{text!a} is not allowed; expected one of {', '.join(sorted(allowed))}")
    return _STATUSES[text]


@app.command()
def show(address: Address, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """What is known of an address and of its domain; exit code 1 when nothing is."""

    async def work(conn: Conn) -> tuple[list[Entry], bool]:
        names = [address] if address.startswith("@") else [address, f"@{address.rpartition('@')[2]}"]
        found = [entry for name in names if (entry := await quarantine.find(conn, name)) is not None]
        return found, not await quarantine.not_mailed(conn, [quarantine.checked(address, "address")])

    found, is_mailed = with_database(dsn, work)
    if as_json:
        print_json({"address": address, "is_mailed": is_mailed, "entries": [_plain(entry) for entry in found]})
    elif found:
        _table(found)
        out.print("it is mailed" if is_mailed else "it is not mailed", highlight=False)
    else:
        out.print("nothing is known of it: it is mailed", highlight=False)
    if not found:
        raise typer.Exit(1)


@app.command()
def search(
    status: Annotated[str | None, typer.Option(help=", ".join(_STATUSES) + ".")] = None,
    domain: Annotated[str | None, typer.Option(help="Of this domain.")] = None,
    text: Annotated[str | None, typer.Option(help="With this in the text of their last error.")] = None,
    since: Annotated[str | None, typer.Option(help="Changed since then (ISO 8601 with zone).")] = None,
    until: Annotated[str | None, typer.Option(help="Changed before then.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 100,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Addresses, those that changed last first."""
    chosen = None if status is None else _status(status, _STATUSES.keys() | set())
    times = [None if one is None else parse_time(one, "--since/--until") for one in (since, until)]
    found = with_database(
        dsn,
        lambda conn: quarantine.search(
            conn, status=chosen, domain=domain, text=text, since=times[0], until=times[1], limit=limit
        ),
    )
    if as_json:
        print_json([_plain(entry) for entry in found])
    else:
        _table(found)


@app.command()
def add(
    address: Address, status: Status = "quarantined", because: Reason = "", dsn: Dsn = "", as_json: AsJson = False
) -> None:
    """Set an address, or a domain, by hand."""
    chosen, checked = _status(status, _SETTABLE), quarantine.checked(address, "address")
    changed = with_database(dsn, lambda conn: quarantine.put(conn, [checked], chosen, because, operator()))
    _told(changed, as_json)


@app.command()
def lift(address: Address, because: Reason = "", dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Have an address mailed again, and begin to count its errors anew."""
    checked = quarantine.checked(address, "address")
    changed = with_database(dsn, lambda conn: quarantine.put(conn, [checked], AddressStatus.VALID, because, operator()))
    _told(changed, as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="- is stdin.", show_default=False)],
    status: Annotated[str, typer.Option(help="Where a row has none; as of `mta quarantine add`.")] = "quarantined",
    because: Reason = "imported",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Set many by hand: an address (or @domain) a line, a CSV with a column address, or NDJSON as `export` writes it.

    CSV and NDJSON may have a status in each row. A row that cannot be used is an error, and nothing is changed by the
    file. Addresses with errors that are only counted are left out.
    """
    default = _status(status, _SETTABLE)
    changed, left_out = with_database(dsn, lambda conn: _import(conn, file, default, because))
    if as_json:
        print_json({"changed": changed, "left_out": left_out})
    else:
        more = f"; {left_out:,} with counted errors left out" if left_out else ""
        out.print(f"{changed:,} changed{more}", highlight=False)


@app.command()
def export(
    status: Annotated[str | None, typer.Option(help=", ".join(_STATUSES) + ".")] = None,
    kind: Annotated[str, typer.Option("--format", help="ndjson or csv.")] = "ndjson",
    dsn: Dsn = "",
) -> None:
    """All of them on stdout, one a line, in no order; `mta quarantine import` takes them."""
    chosen = None if status is None else _status(status, _STATUSES.keys() | set())
    if kind not in ("ndjson", "csv"):
        raise BadInput("--format", f"{kind!a} is not allowed; expected ndjson or csv")

    async def work(conn: Conn) -> None:
        lines = address_file.csv_writer(sys.stdout) if kind == "csv" else None
        async for entry in quarantine.export(conn, chosen):
            plain = _plain(entry)
            if lines is None:
                sys.stdout.write(_encode(plain).decode() + "\n")
            else:
                lines(plain)

    with_database(dsn, work)


@app.command()
def status(dsn: Dsn = "", as_json: AsJson = False) -> None:
    """How many addresses there are of each status, and how far the keeper has come with the log."""

    async def work(conn: Conn) -> tuple[dict[AddressStatus, int], list[feed.Standing]]:
        return await quarantine.counts(conn), await feed.standings(conn)

    counts, readers = with_database(dsn, work)
    if as_json:
        print_json({"addresses": {one.label: count for one, count in counts.items()}, "readers": readers})
        return
    print_table("Addresses", ("status", "addresses"), [(one.label, count) for one, count in counts.items()])
    print_table(
        "Readers of the log",
        ("name", "transactions behind", "last looked"),
        [(one.name, one.transactions_behind, one.moved_at) for one in readers],
    )


@app.command()
def outage(
    since: Annotated[str, typer.Option(help="Begin of the outage (ISO 8601 with zone).")],
    until: Annotated[str, typer.Option(help="Its end.")],
    text: Annotated[str | None, typer.Option(help="Errors with this in their text.")] = None,
    domain: Annotated[str | None, typer.Option(help="Addresses of this domain.")] = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """After a provider's outage: what its errors put here by mistake is mailed again."""
    begin, end = parse_time(since, "--since"), parse_time(until, "--until")

    async def work(conn: Conn) -> tuple[int, list[feed.Standing]]:
        lifted = await quarantine.outage(conn, operator(), begin, end, text=text, domain=domain)
        return lifted, await feed.standings(conn)

    lifted, readers = with_database(dsn, work)
    _told(lifted, as_json)
    if any(one.name == quarantine.POINTER and one.moved_at < end for one in readers):
        warn(["the keeper has not come so far yet: do this again when `mta keep` has caught up"])


@app.command()
def release(config: Config = None, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """What time heals, now; `mta keep` does it by itself each hour."""
    now, rules = datetime.datetime.now(datetime.UTC), load_settings(config).quarantine
    _told(with_database(dsn, lambda conn: quarantine.release(conn, now, rules)), as_json)


async def _import(conn: Conn, file: Path, default: AddressStatus, because: str) -> tuple[int, int]:
    changed, left_out = Counter[AddressStatus](), 0
    batches: dict[AddressStatus, list[str]] = {}

    async def flush(status: AddressStatus) -> None:
        changed[status] += await quarantine.put(conn, batches.pop(status), status, because, operator())

    async with conn.transaction():
        for where, address, label in address_file.rows(file):
            chosen = default if not label else _STATUSES.get(label)
            if chosen is AddressStatus.WITH_ERRORS:
                left_out += 1
                continue
            if chosen is None:
                raise BadInput(
                    where, f"status {label!a} is not allowed; expected one of {', '.join(sorted(_SETTABLE))}"
                )
            batch = batches.setdefault(chosen, [])
            batch.append(quarantine.checked(address, where))
            if len(batch) >= quarantine.IMPORT_ROWS:
                await flush(chosen)
        for status in list(batches):
            await flush(status)
    return changed.total(), left_out


def _plain(entry: Entry) -> dict[str, object]:
    names = {"status": entry.status.label, "reason": entry.reason.name.lower(), "category": entry.category.label}
    return {**msgspec.structs.asdict(entry), **names}


def _told(changed: int, as_json: bool) -> None:
    if as_json:
        print_json({"changed": changed})
    else:
        out.print(f"{changed:,} changed", highlight=False)


def _table(entries: list[Entry]) -> None:
    print_table(
        "Addresses",
        ("address", "status", "errors", "reason", "text", "changed", "by"),
        [
            (
                *(one.address, one.status.label, one.errors, one.reason.name.lower(), one.text),
                *(one.changed_at, one.changed_by or "the rules"),
            )
            for one in entries
        ],
    )
