"""``mta rules lint``: what is wrong with rules that could be loaded all the same."""

from __future__ import annotations

import collections
import datetime
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mta.cli.rules_common import (
    DEFAULT_CONFIG,
    REFUSED_EXIT,
    ConfigFile,
    File,
    chosen_file,
    count,
    print_findings,
    read_bundle,
    settings_of,
)
from mta.cli.terminal import AsJson, Dsn, out, parse_duration, parse_time, print_json, print_table, shown, with_database
from mta.model.errors import BadInput
from mta.queue.replies import Recorded, recorded_refusals
from mta.settings import Settings
from mta.settings.addresses import address_fault
from mta.settings.rules_named import named_tables
from mta.traffic.findings import Check, Finding, Severity
from mta.traffic.lint import in_order, lint_addresses, lint_place, lint_rules
from mta.traffic.lint_replies import Coverage, Reply, cover, parse_reply
from mta.traffic.rules import RuleSet

CORPUS_BYTES_MAX: Final = 64 << 20
LOG_LINES_MAX: Final = 200_000

Corpus = Annotated[
    Path | None,
    typer.Option(help="Replies to try, one a line; of a table with tabs its column 'reply'.", show_default=False),
]


def lint(
    file: File = None,
    corpus: Corpus = None,
    log: Annotated[bool, typer.Option("--log", help="Try the replies of the recorded log.")] = False,
    since: Annotated[str, typer.Option(help="With --log: so long ago (12h, 7d), or a time.")] = "7d",
    config: ConfigFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Resolve every rule and try every pattern; exit 1 when something does not do what is written."""
    settings = settings_of(config)
    path = chosen_file(file, config)
    try:
        rules, bundle = read_bundle(path)
    except BadInput as error:
        _end([Finding(Check.REFUSED, Severity.ERROR, error.where, "file", error.what)], None, path, strict, as_json)
        return
    findings = lint_rules(rules, named_tables(bundle.texts, path.parent))
    if settings is not None:
        findings += lint_settings(rules, settings, str(config or DEFAULT_CONFIG))
    replies: list[Reply] = []
    if corpus is not None:
        replies += read_corpus(corpus)
    if log:
        replies += _of_log(rules, settings, dsn, since)
    coverage = None
    if corpus is not None or log:
        coverage, more = cover(rules, _merged(replies))
        findings += more
    _end(in_order(findings), coverage, path, strict, as_json)


def lint_settings(rules: RuleSet, settings: Settings, where: str) -> list[Finding]:
    """What the rules and the settings of a node, in file ``where``, have to do with one another and this machine."""
    found = lint_place(rules, settings.egresses, settings.pools)
    return found + lint_addresses(settings.egresses, where, address_fault)


def read_corpus(path: Path) -> list[Reply]:
    """One reply a line; of a table with tabs and a heading, its column ``reply``. Empty lines are left out."""
    try:
        if path.stat().st_size > CORPUS_BYTES_MAX:
            raise BadInput(str(path), f"is larger than {CORPUS_BYTES_MAX:,} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(str(path), f"is not UTF-8: byte {error.start}") from None
    heading = lines[0].split("\t") if lines else []
    column = heading.index("reply") if "reply" in heading else 0
    if "reply" in heading:
        lines = lines[1:]
    cells = (line.split("\t") for line in lines if line.strip())
    return [parse_reply(row[column]) for row in cells if len(row) > column]


def _of_log(rules: RuleSet, settings: Settings | None, dsn: str, since: str) -> Iterable[Reply]:
    at = _since(since)
    recorded = with_database(
        dsn or (settings.database.dsn if settings else ""), lambda conn: recorded_refusals(conn, at, LOG_LINES_MAX)
    )
    ids = {} if settings is None else {egress.name: egress.id for egress in settings.egresses}
    may_hold = _holders(rules, ids)
    return [Reply(one.code, one.enhanced, one.reply, one.count, may_hold(one)) for one in recorded]


def _holders(rules: RuleSet, ids: dict[str, int]) -> Callable[[Recorded], tuple[str, ...]]:
    """Which rules a recorded reply may concern: the one that holds, or all that may where its egress is unknown."""

    def holders(one: Recorded) -> tuple[str, ...]:
        domain_class = rules.domain_class(one.domain)
        if one.egress in ids:
            return (rules.match(one.mx_host, ids[one.egress], one.site, domain_class).name,)
        names = []
        for rule in rules.fitting(one.mx_host, one.site, domain_class):
            names.append(rule.name)
            if not rule.egress_ids:
                break
        return tuple(names)

    return holders


def _since(text: str) -> datetime.datetime:
    if re.match(r"\d{4}-", text):
        return parse_time(text, "--since")
    return datetime.datetime.now(datetime.UTC) - parse_duration(text, "--since")


def _merged(replies: Iterable[Reply]) -> list[Reply]:
    """Equal ones once, with their counts together."""
    counts: collections.Counter[tuple[Any, ...]] = collections.Counter()
    for one in replies:
        counts[one.code, one.enhanced, one.text, one.rules] += one.count
    return [Reply(code, enhanced, text, times, rules) for (code, enhanced, text, rules), times in counts.items()]


def _end(findings: list[Finding], coverage: Coverage | None, path: Path, strict: bool, as_json: bool) -> None:
    errors, warnings = count(findings, Severity.ERROR), count(findings, Severity.WARNING)
    is_well = not errors and not (strict and warnings)
    if as_json:
        counts = {"errors": errors, "warnings": warnings, "notes": count(findings, Severity.NOTE)}
        print_json({"ok": is_well, "file": str(path), "findings": findings, **counts, "corpus": coverage})
    else:
        print_findings(findings, out)
        if coverage is not None:
            _print_coverage(coverage)
        said = ", ".join(f"{number} {name}" for number, name in ((errors, "errors"), (warnings, "warnings")))
        typer.echo(f"{path}: {said}, {count(findings, Severity.NOTE)} notes")
    if not is_well:
        raise typer.Exit(REFUSED_EXIT)


def _print_coverage(coverage: Coverage) -> None:
    if coverage.unmatched:
        print_table(
            f"{coverage.replies - coverage.matched:,} of {coverage.replies:,} match no automation; most are like",
            ("replies", "like"),
            [(one.count, one.like) for one in coverage.unmatched],
        )
    else:
        typer.echo(f"{shown(coverage.replies)} replies, each of them matches an automation")
