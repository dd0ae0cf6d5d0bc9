"""``mta quarantine``: addresses that are not mailed any more."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from mta.cli.rules_common import operator
from mta.cli.terminal import AsJson, Dsn, out, parse_time, print_json, print_table, with_database
from mta.model.errors import BadInput
from mta.model.quarantine import AddressStatus
from mta.queue import quarantine
from mta.queue.connection import Conn
from mta.queue.quarantine import Entry, QuarantineRules

app = typer.Typer(help="Addresses that are not mailed any more: quarantine, denylist, allowlist.", no_args_is_help=True)
_STATUSES: Final = {status.label: status for status in AddressStatus}
_SETTABLE: Final = {"quarantined", "denylisted", "allowlisted", "valid"}
Address = Annotated[str, typer.Argument(help="An address, or @example.com for a whole domain.", show_default=False)]
Status = Annotated[str, typer.Option(help=f"{', '.join(sorted(_SETTABLE))}.")]
Reason = Annotated[str, typer.Option("--because", help="Why; stays on record.")]


def _status(text: str, allowed: set[str] | frozenset[str]) -> AddressStatus:
    if text not in allowed:
        raise BadInput("--status", f"{text!a} is not allowed; expected one of {', '.join(sorted(allowed))}")
    return _STATUSES[text]


@app.command()
def show(address: Address, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """What is known of an address; exit code 1 when nothing is."""
    found = with_database(dsn, lambda conn: quarantine.find(conn, address))
    if as_json:
        print_json(None if found is None else _plain(found))
    elif found is None:
        out.print("nothing is known of it: it is mailed", highlight=False)
    else:
        _table([found])
    if found is None:
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
    file: Annotated[Path, typer.Argument(help="One address (or @domain) a line; - is stdin.", show_default=False)],
    status: Status = "quarantined",
    because: Reason = "imported",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Set many by hand. A line that is no address is an error, and nothing is changed by the file."""
    chosen = _status(status, _SETTABLE)

    async def work(conn: Conn) -> int:
        async with conn.transaction():
            return await quarantine.put(conn, _addresses(file), chosen, because, operator())

    _told(with_database(dsn, work), as_json)


@app.command()
def export(status: Annotated[str | None, typer.Option(help=", ".join(_STATUSES) + ".")] = None, dsn: Dsn = "") -> None:
    """All of them as NDJSON, one object a line."""
    chosen = None if status is None else _status(status, _STATUSES.keys() | set())

    async def work(conn: Conn) -> None:
        async for entry in quarantine.export(conn, chosen):
            print_json(_plain(entry))

    with_database(dsn, work)


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
    lifted = with_database(dsn, lambda conn: quarantine.outage(conn, operator(), begin, end, text=text, domain=domain))
    _told(lifted, as_json)


@app.command()
def release(dsn: Dsn = "", as_json: AsJson = False) -> None:
    """What time heals, now; `mta keep` does it by itself each hour."""
    now = datetime.datetime.now(datetime.UTC)
    _told(with_database(dsn, lambda conn: quarantine.release(conn, now, QuarantineRules())), as_json)


def _addresses(file: Path) -> Iterator[str]:
    try:
        with sys.stdin if str(file) == "-" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield quarantine.checked(line, f"{file}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(str(file), f"cannot be read: {error}") from None


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
