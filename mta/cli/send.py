"""``mta send``: one test message, and the way that it went."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from mta.cli.daemon import Config, dsn_of, settings_of
from mta.cli.terminal import AsJson, Dsn, err, out, parse_duration, print_json, shown, with_database
from mta.services.send import Attempt, Sent, TestMessage, Way, send


def command(
    to: Annotated[list[str], typer.Option(help="A recipient; may be repeated.", show_default=False)],
    sender: Annotated[str, typer.Option("--from", help='"Shop" <news@example.com>', show_default=False)],
    subject: Annotated[str, typer.Option(help="Its subject.")] = "Test",
    text: Annotated[str, typer.Option(help="What it says.")] = "This is a test.",
    pool: Annotated[str, typer.Option(help="Egress pool.")] = "default",
    wait: Annotated[str, typer.Option(help="For the outcome: 30s, 5m.")] = "60s",
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Send one test message, wait for its outcome, and print the way it went; exit 1 when it was not delivered."""
    settings = settings_of(config)
    message = TestMessage(to=to, sender=sender, subject=subject, text=text, pool=pool)
    wait_s = parse_duration(wait, "--wait").total_seconds()
    sent = with_database(dsn_of(dsn, settings), lambda conn: send(conn, settings, message, wait_s=wait_s))
    if as_json:
        print_json(_as_json(sent))
    else:
        out.print(f"delivery {sent.delivery_id}", highlight=False)
        for way in sent.ways:
            _print_way(way)
        if not (sent.nodes_living or sent.is_delivered):
            err.print("no node lives: start one with systemctl start mta", highlight=False)
    if not sent.is_delivered:
        raise typer.Exit(1)


def _print_way(way: Way) -> None:
    out.print(shown(way.address), highlight=False)
    for attempt in way.attempts:
        line = attempt.line
        out.print(f"  {shown(line.at)} attempt {line.attempt}: {line.status.name.lower()}", highlight=False)
        for name, value in _of_attempt(attempt):
            out.print(f"    {name:<6} {shown(value)}", highlight=False)
    if way.waiting is not None:
        one = way.waiting
        node = f"is in memory of {one.node}" if one.node else f"waits until {shown(one.due_at)}"
        out.print(f"  no outcome yet: it {node}; mta explain {shown(way.address)} says why", highlight=False)


def _of_attempt(attempt: Attempt) -> list[tuple[str, str]]:
    line = attempt.line
    reply = " ".join(part for part in (str(line.code or ""), line.enhanced, line.reply) if part)
    host = f"{line.mx_host} [{line.peer}]" if line.mx_host else ""
    made_of_it = f"{line.type.name.lower()}, {line.reason.name.lower()}, {line.category.label}" if line.type else ""
    fields = [
        *(("site", line.site), ("host", host), ("egress", line.egress), ("rule", attempt.rule)),
        *(("TLS", f"{attempt.tls} by the rule" if attempt.tls else ""), ("reply", reply), ("is", made_of_it)),
    ]
    return [(name, value) for name, value in fields if value]


def _as_json(sent: Sent) -> dict[str, Any]:
    return {"is_delivered": sent.is_delivered, **msgspec.to_builtins(sent)}
