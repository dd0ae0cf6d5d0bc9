"""``mta bounce unqualified``, ``qualify``, ``requalify``: texts of failures, and what an operator makes of them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from mta.cli.rules_common import operator
from mta.cli.service import Config
from mta.cli.terminal import AsJson, Dsn, out, parse_time, print_json, print_table, with_database
from mta.failure.codes import OUR_FAULT_TYPE, REASONS, TYPES
from mta.failure.judge import amended
from mta.failure.qualify import Qualifier
from mta.model.errors import BadInput
from mta.model.failure import Category, FailureType, Verdict
from mta.model.outcome import Reason
from mta.queue import failure_texts, updates
from mta.queue import requalify as past
from mta.queue.connection import Conn
from mta.queue.qualified import qualified_texts
from mta.queue.requalify import Requalified
from mta.settings.bounce_rules import load_bounce_rules, rule_files
from mta.settings.config import load_settings
from mta.settings.shipped import load_updated_bounce_rules

_CATEGORIES: Final = {category.label: category for category in Category if category is not Category.NONE}
_TYPES: Final = {"hard": FailureType.HARD, "soft": FailureType.SOFT, "ignored": FailureType.IGNORED}


def register(app: typer.Typer) -> None:
    """Adds the commands to those of ``mta bounce``."""
    for command in (unqualified, qualify, requalify):
        app.command()(command)


def unqualified(
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    every: Annotated[bool, typer.Option("--all", help="Also those that rules or operators have qualified.")] = False,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Texts that no rule knows, the most frequent first."""
    found = with_database(dsn, lambda conn: failure_texts.texts(conn, None if every else "to-qualify", limit))
    if as_json:
        names = [{"type": one.type.name.lower(), "category": one.category.label} for one in found]
        plain = [{**msgspec.structs.asdict(one), **name} for one, name in zip(found, names, strict=True)]
        print_json(plain)
        return
    print_table(
        "Texts of failures",
        ("key", "times", "type", "category", "by", "provider", "text"),
        [
            (
                *(one.key[:8], one.occurrences, one.type.name.lower(), one.category.label),
                *(one.qualified_by or one.rule or "nobody", one.provider, one.text),
            )
            for one in found
        ],
    )


def qualify(
    key: Annotated[str, typer.Argument(help="As `mta bounce unqualified` shows it; its beginning will do.")],
    category: Annotated[str, typer.Option(help=f"{', '.join(_CATEGORIES)}.")],
    kind: Annotated[str | None, typer.Option("--type", help="hard, soft or ignored; that of the category.")] = None,
    ignore: Annotated[bool, typer.Option("--ignore", help="It never counts against an address.")] = False,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Say what a text means: it holds before all rules, on all nodes, at once. Old lines: `mta bounce requalify`."""
    if category not in _CATEGORIES:
        raise BadInput("--category", f"{category!a} is not allowed; expected one of {', '.join(_CATEGORIES)}")
    if kind is not None and kind not in _TYPES:
        raise BadInput("--type", f"{kind!a} is not allowed; expected one of {', '.join(_TYPES)}")
    chosen = _CATEGORIES[category]
    of_kind = FailureType.IGNORED if ignore else TYPES.get(chosen, OUR_FAULT_TYPE) if kind is None else _TYPES[kind]
    verdict = Verdict(of_kind, REASONS.get(chosen, Reason.UNREACHABLE), chosen)
    with_database(dsn, lambda conn: failure_texts.qualify(conn, key, verdict, operator(), is_ignored=ignore))
    if as_json:
        print_json({"key": key, "type": of_kind.name.lower(), "category": chosen.label})
    else:
        out.print(f"{key}: {of_kind.name.lower()}, {chosen.label}", highlight=False)


def requalify(
    since: Annotated[str, typer.Option(help="Failures since then (ISO 8601 with zone).")],
    until: Annotated[str | None, typer.Option(help="Before then; without it until now.")] = None,
    rules: Annotated[
        Path | None, typer.Option(help="The rules to go by; without it the shipped ones and yours.")
    ] = None,
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Look at past failures again, by today's rules and words: their lines say so then, and addresses are corrected."""
    begin = parse_time(since, "--since")
    end = datetime.datetime.now(datetime.UTC) if until is None else parse_time(until, "--until")
    settings = load_settings(config)
    files = settings.failures.rules_files if rules is None else rule_files(rules)
    load_bounce_rules(files)  # what is wrong with them is said before anything is asked

    async def work(conn: Conn) -> Requalified:
        texts = await updates.texts_in_force(conn) if rules is None else {}
        judge = amended(Qualifier(load_updated_bounce_rules(files, texts)), await qualified_texts(conn))
        return await past.requalify(conn, begin, end, judge.qualify, settings.quarantine)

    changed = with_database(dsn, work)
    if as_json:
        print_json({"changed": changed.lines, "addresses": changed.addresses})
    else:
        text = f"{changed.lines:,} lines mean something else now, {changed.addresses:,} addresses stand otherwise"
        out.print(text, highlight=False)
