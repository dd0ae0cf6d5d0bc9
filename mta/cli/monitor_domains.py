"""``mta monitor domains``: hard, soft and complaint rates by recipient domain, site or provider."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

from mta.cli.daemon import Config, dsn_of, settings_of
from mta.cli.terminal import AsJson, Dsn, out, parse_duration, print_json, print_table, with_database
from mta.queue import indicators as queries
from mta.queue.connection import Conn
from mta.queue.indicators import Indicators, Mark
from mta.services.rules import rules_in_force
from mta.traffic.rules import RuleSet

_MARKED = {
    Mark.HARD: f"hard > {queries.HARD_PERCENT:g} %",
    Mark.SOFT: f"soft > {queries.SOFT_PERCENT:g} %",
    Mark.COMPLAINTS: f"complaints > {queries.COMPLAINT_PERCENT:g} %",
    Mark.COMPLAINTS_BAD: f"complaints > {queries.COMPLAINT_PERCENT_BAD:g} %",
}


class By(enum.StrEnum):
    """What figures are added up by."""

    DOMAIN = "domain"
    SITE = "site"
    PROVIDER = "provider"


def domains(
    since: Annotated[
        str | None, typer.Option(help="Look back so far: 90m, 24h, 7d. Of a delivery: all, without it.")
    ] = None,
    delivery: Annotated[int | None, typer.Option(help="Of this delivery only.", min=1, show_default=False)] = None,
    by: Annotated[By, typer.Option(help="Recipient domain, its MX site, or the provider that the rules know.")] = (
        By.DOMAIN
    ),
    sent_min: Annotated[int, typer.Option("--min", help="List those with so many sent or more.", min=0)] = (
        queries.SENT_MIN
    ),
    limit: Annotated[int, typer.Option(help="So many at most; the rest is summed up.", min=1, max=100_000)] = 200,
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Hard, soft and complaint rates, marked where they are out of bounds; of 24 hours, or of a delivery."""
    settings = settings_of(config)
    window = since or ("24h" if delivery is None else None)
    span = None if window is None else parse_duration(window, "--since")

    async def work(conn: Conn) -> queries.Table:
        rules = await rules_in_force(conn, settings) if by is By.PROVIDER else RuleSet()
        egress_id = settings.egresses[0].id

        def provider_of(site: str) -> str:
            provider = rules.match(site.partition("+")[0], egress_id).provider if site else None
            return "" if provider is None else provider.name

        return await queries.indicators(
            conn,
            since=span,
            delivery_id=delivery,
            by=by.value,
            provider_of=provider_of,
            sent_min=sent_min,
            limit=limit,
        )

    table = with_database(dsn_of(dsn, settings), work)
    if as_json:
        others = None if table.others is None else _plain(table.others)
        print_json(
            {
                **{"since_s": None if span is None else int(span.total_seconds()), "delivery": delivery},
                **{"by": by.value, "rows": [_plain(one) for one in table.listed], "others": others},
                **{"total": _plain(table.total), "is_cut": table.is_cut},
            }
        )
        return
    rows = [_row(one, one.name or "not known") for one in table.listed]
    rows += [] if table.others is None else [_row(table.others, "others", marked=False)]
    rows.append(_row(table.total, "total"))
    of = "" if delivery is None else f" of delivery {delivery}"
    print_table(
        f"What came of what was sent{of}{'' if window is None else f', last {window}'}",
        (
            *(by.value, "sent", "delivered", "hard", "hard %", "soft", "soft %", "bounced later", "complaints"),
            *("complaint %", "deferrals", "marked"),
        ),
        rows,
    )
    if table.is_cut:
        out.print(f"only the {queries.GROUPS_MAX:,} with the most sent were looked at")


def _row(one: Indicators, name: str, *, marked: bool = True) -> tuple[object, ...]:
    marks = ", ".join(_MARKED[mark] for mark in one.marks) if marked else ""
    return (
        *(name, one.sent, one.delivered, one.hard, f"{one.hard_percent:.2f}", one.soft, f"{one.soft_percent:.2f}"),
        *(one.bounced, one.complaints, f"{one.complaint_percent:.3f}", one.deferrals, marks or None),
    )


def _plain(one: Indicators) -> dict[str, Any]:
    return {
        **{field: getattr(one, field) for field in one.__struct_fields__},
        "hard_percent": round(one.hard_percent, 4),
        "soft_percent": round(one.soft_percent, 4),
        "complaint_percent": round(one.complaint_percent, 4),
        "marks": [mark.value for mark in one.marks],
    }
