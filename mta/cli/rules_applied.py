"""``mta rules apply|history|show|rollback|diff``: which rules are in force, since when, by whom, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from mta.cli.rules_common import (
    By,
    ConfigFile,
    File,
    Note,
    chosen_file,
    operator,
    print_findings,
    read_bundle,
    settings_of,
)
from mta.cli.terminal import AsJson, Dsn, out, print_json, print_table, shown, with_database
from mta.model.errors import BadInput
from mta.queue import rule_sets, updates
from mta.queue.connection import Conn
from mta.queue.rule_sets import Applied, Bundle, How
from mta.queue.updates import Update
from mta.settings.rules_file import parse_bundle
from mta.settings.rules_named import named_tables
from mta.settings.shipped import PROVIDERS, is_updated, parse_updated_rules
from mta.traffic.findings import Severity
from mta.traffic.lint import lint_rules
from mta.traffic.rules import RuleSet
from mta.traffic.rules_diff import Change, ChangeKind, diff_rules

SetId = Annotated[int | None, typer.Argument(help="Its number in the history.", min=1, show_default=False)]
_NOTHING: Final = "no rules were applied yet; nodes without a rules file use the built-in one"


def apply(
    file: File = None,
    note: Note = "",
    by: By = "",
    config: ConfigFile = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Put a rules file into force on all nodes, at once and as a whole; a bad file changes nothing."""
    path = chosen_file(file, config)
    rules, bundle = read_bundle(path)
    findings = [
        one for one in lint_rules(rules, named_tables(bundle.texts, path.parent)) if one.severity is not Severity.NOTE
    ]
    who = operator(by)

    async def work(conn: Conn) -> tuple[Applied, bool, list[Change]]:
        texts = await updates.texts_in_force(conn)
        parse_updated_rules(bundle.root, bundle.texts, texts)  # as the nodes will; raises for what they could not use
        before = await rule_sets.in_force(conn)
        applied, is_new = await rule_sets.apply(conn, bundle, How.APPLY, applied_by=who, note=note)
        return applied, is_new, _changes(before, rules)

    applied, is_new, changes = with_database(_dsn(dsn, config), work)
    if as_json:
        print_json(
            {"rule_set": applied, "is_new": is_new, "rules": len(rules), "changes": changes, "findings": findings}
        )
        return
    print_findings(findings)
    _say(applied, is_new, changes)


def rollback(
    set_id: SetId = None,
    note: Note = "",
    by: By = "",
    config: ConfigFile = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Put an earlier set back into force; without a number, the one before the one in force."""
    who = operator(by)

    async def work(conn: Conn) -> tuple[Applied, bool, list[Change]]:
        before = await rule_sets.in_force(conn)
        if before is None:
            raise BadInput("rules", _NOTHING)
        chosen, bundle = await (rule_sets.before(conn, before[0].id) if set_id is None else rule_sets.get(conn, set_id))
        rules = parse_bundle(bundle.root, bundle.texts)
        parse_updated_rules(bundle.root, bundle.texts, await updates.texts_in_force(conn))
        applied, is_new = await rule_sets.apply(
            conn, bundle, How.ROLLBACK, applied_by=who, note=note, restores=chosen.restores or chosen.id
        )
        return applied, is_new, _changes(before, rules)

    applied, is_new, changes = with_database(_dsn(dsn, config), work)
    if as_json:
        print_json({"rule_set": applied, "is_new": is_new, "changes": changes})
        return
    _say(applied, is_new, changes)


def history(
    limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=100_000)] = 100,
    config: ConfigFile = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """The sets that were applied, the newest first; that one is in force."""
    found = with_database(_dsn(dsn, config), lambda conn: rule_sets.history(conn, limit))
    if as_json:
        print_json({"rule_sets": [{**_plain(one), "in_force": not place} for place, one in enumerate(found)]})
        return
    print_table(
        "Applied rule sets",
        ("id", "applied", "how", "by", "file", "digest", "note"),
        [(str(one.id), one.applied_at, _how(one), one.who, one.root, one.digest[:12], one.note) for one in found],
    )
    out.print(f"in force: rule set {found[0].id}" if found else _NOTHING)


def show(set_id: SetId = None, config: ConfigFile = None, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """The texts of a set, as they were applied; without a number, of the one in force."""

    async def work(conn: Conn) -> tuple[Applied, Bundle, Update | None]:
        found = await rule_sets.in_force(conn) if set_id is None else await rule_sets.get(conn, set_id)
        if found is None:
            raise BadInput("rules", _NOTHING)
        return *found, await updates.in_force(conn)

    applied, bundle, update = with_database(_dsn(dsn, config), work)
    version = update.version if update is not None and is_updated(bundle.texts, update.texts) else None
    if as_json:
        print_json({**_plain(applied), "texts": bundle.texts, "updated_by": version})
        return
    typer.echo(f"# rule set {applied.id}, {shown(applied.applied_at)}, {_how(applied)} by {applied.who}")
    for name in [bundle.root, *sorted(bundle.texts.keys() - {bundle.root})]:
        typer.echo(f"# file {name}")
        if version is not None and name == PROVIDERS:
            typer.echo(f"# (nodes read that of deliverability update {version} instead)")
        typer.echo(bundle.texts[name], nl=not bundle.texts[name].endswith("\n"))


def diff(
    old: Annotated[str | None, typer.Argument(help="A rules file, or the number of an applied set.")] = None,
    new: Annotated[str | None, typer.Argument(help="The same; that of the settings when absent.")] = None,
    applied: Annotated[bool, typer.Option("--applied", help="Compare with the set in force.")] = False,
    config: ConfigFile = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """What changes in effect between two sets of rules, value by value, each with its file and line."""
    if applied and new is not None:
        raise BadInput("--applied", "stands for OLD, so give NEW only")
    if not applied and (old is None or new is None):
        raise BadInput("OLD NEW", "are both needed; with --applied, NEW only")
    before = _in_force(_dsn(dsn, config)) if applied else _named(str(old), dsn, config)
    wanted = old if applied else new
    after = read_bundle(chosen_file(None, config))[0] if wanted is None else _named(wanted, dsn, config)
    changes = diff_rules(before, after)
    if as_json:
        print_json({"changes": changes})
        return
    _print_changes(changes)


COMMANDS: Final = (apply, rollback, history, show, diff)

# --- what is meant ----------------------------------------------------------------------------


def _dsn(dsn: str, config: Path | None) -> str:
    if dsn:
        return dsn
    settings = settings_of(config)
    return "" if settings is None else settings.database.dsn


def _named(text: str, dsn: str, config: Path | None) -> RuleSet:
    """A file, or else the number of an applied set."""
    if text.isdecimal() and not Path(text).exists():
        _, bundle = with_database(_dsn(dsn, config), lambda conn: rule_sets.get(conn, int(text)))
        return _parsed(bundle, f"rule set {text}")
    return read_bundle(Path(text))[0]


def _in_force(dsn: str) -> RuleSet:
    found = with_database(dsn, rule_sets.in_force)
    return RuleSet() if found is None else _parsed(found[1], f"rule set {found[0].id}")


def _parsed(bundle: Bundle, name: str) -> RuleSet:
    try:
        return parse_bundle(bundle.root, bundle.texts)
    except BadInput as error:
        raise BadInput(name, f"cannot be read by this program: {error}") from error


def _changes(before: tuple[Applied, Bundle] | None, rules: RuleSet) -> list[Change]:
    """None are told when this program cannot read what was in force."""
    if before is None:
        return diff_rules(RuleSet(), rules)
    try:
        return diff_rules(_parsed(before[1], ""), rules)
    except BadInput:
        return []


# --- what is shown ----------------------------------------------------------------------------


def _plain(applied: Applied) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(applied)
    return plain


def _how(one: Applied) -> str:
    return f"{one.how.value} of {one.restores}" if one.restores else one.how.value


def _say(applied: Applied, is_new: bool, changes: list[Change]) -> None:
    if not is_new:
        out.print(f"rule set {applied.id} is in force already, since {shown(applied.applied_at)}; nothing is changed")
        return
    _print_changes(changes)
    out.print(f"rule set {applied.id} is in force on all nodes")


def _print_changes(changes: list[Change]) -> None:
    for one in changes:
        out.print(shown(_line(one)), soft_wrap=True, highlight=False)
    out.print(f"{len(changes)} changes" if changes else "nothing changes")


def _line(one: Change) -> str:
    places = " -> ".join(place for place in (one.old_where, one.new_where) if place)
    if one.kind is ChangeKind.CHANGED:
        return f"{one.subject}: {one.key}: {_value(one.old)} -> {_value(one.new)} ({places})"
    if one.kind is ChangeKind.MOVED:
        return f"{one.subject}: moved: {one.old} -> {one.new} ({places})"
    value = one.new if one.new is not None else one.old
    return f"{one.subject}: {one.kind.value}{f': {value}' if value is not None else ''} ({places})"


def _value(value: object) -> str:
    if value is None or value in ("", [], {}):
        return "none"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
