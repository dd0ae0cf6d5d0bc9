"""``mta rules``: is a rules file right, and what holds for an address."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mta.cli import replay, rules_applied, rules_lint
from mta.cli.rules_common import BAD_INPUT_EXIT, DEFAULT_CONFIG, REFUSED_EXIT, print_findings, read_bundle
from mta.cli.terminal import AsJson, print_json, print_table
from mta.dns import Resolver
from mta.model.address import parse_mailbox
from mta.model.dns import DnsSettings
from mta.model.errors import BadInput
from mta.model.site import NoRoute, Route
from mta.settings import Settings, load_rules, load_settings
from mta.settings.rules_named import named_tables
from mta.traffic.explain import HostExplained, RuleExplained, SiteExplained, explain_limits, explain_site
from mta.traffic.findings import Severity
from mta.traffic.lint import lint_rules
from mta.traffic.rules import Rule, RuleSet, format_ranges

app = typer.Typer(help="MX rules: check, compare and apply them; which one holds for an address.", no_args_is_help=True)
for command in (rules_lint.lint, *rules_applied.COMMANDS, replay.replay):
    app.command()(command)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A rules file, such as config/mx-rules.toml.")],
    as_json: AsJson = False,
) -> None:
    """Say whether a rules file would be loaded; exit 1, with file, line and key, when it would not."""
    try:
        rules, bundle = read_bundle(file)
    except BadInput as error:
        if as_json:
            print_json({"ok": False, "where": error.where, "what": error.what})
        else:
            typer.echo(f"{error}", err=True)
        raise typer.Exit(REFUSED_EXIT) from error
    findings = [
        one for one in lint_rules(rules, named_tables(bundle.texts, file.parent)) if one.severity is not Severity.NOTE
    ]
    counts = _counts(rules, len(bundle.texts))
    if as_json:
        print_json({"ok": True, "rules": rules.rules, "counts": counts, "findings": findings})
        return
    print_table("", ("rule", "mx", "limits"), [(rule.name, rule.mx, _in_short(rule)) for rule in rules.rules])
    print_findings(findings)
    typer.echo(f"{file}: {', '.join(f'{number} {what}' for what, number in counts.items() if number)}")


def _counts(rules: RuleSet, files: int) -> dict[str, int]:
    return {
        "rules": len(rules),
        "providers": len({rule.provider.name for rule in rules.rules if rule.provider is not None}),
        "automations": len({one.name for rule in rules.rules for one in rule.automations}),
        "warm-ups": len(rules.warm_ups),
        "error blocks": len(rules.error_blocks),
        "files": files,
    }


@app.command()
def explain(
    address: Annotated[str, typer.Argument(help="A recipient's address.")],
    config: Annotated[
        Path | None, typer.Option(envvar="MTA_CONFIG", help=f"Settings; {DEFAULT_CONFIG} where that is there.")
    ] = None,
    rules: Annotated[Path | None, typer.Option(help="Rules; those the settings name when absent.")] = None,
    pool: Annotated[str, typer.Option(help="The egress pool a delivery would ask for.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Look up the MX hosts of an address and say for each which rule holds, why, with which limits and egresses."""
    try:
        mailbox = parse_mailbox(address, "address")
        settings = load_settings(config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None))
        rules_file = rules or settings.rules_file
        rule_set = RuleSet() if rules_file is None else load_rules(rules_file)
        explained = _explain(mailbox.domain, settings, rule_set, pool)
    except BadInput as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_INPUT_EXIT) from error
    shown_rules = "built in" if rules_file is None else str(rules_file)
    if isinstance(explained, NoRoute):
        _print_no_route(mailbox.text, explained, as_json)
        raise typer.Exit(REFUSED_EXIT)
    if as_json:
        print_json({"address": mailbox.text, "rules_file": shown_rules, **msgspec.to_builtins(explained)})
        return
    typer.echo(f"{mailbox.text}: site {explained.site}; rules: {shown_rules}")
    _print_egresses(explained)
    for host in explained.hosts:
        _print_host(host)


def _in_short(rule: Rule) -> str:
    limits = [f"{limit.limit.removesuffix('_max').replace('_', ' ')} {limit.value:,}" for limit in explain_limits(rule)]
    range_ = [f"egress {format_ranges(rule.egress_ids)}"] if rule.egress_ids else []
    return ", ".join([*range_, f"by {rule.scope}", *limits, f"TLS {rule.tls}"])


def _explain(domain: str, settings: Settings, rules: RuleSet, pool: str) -> SiteExplained | NoRoute:
    if pool not in settings.pools:
        raise BadInput("--pool", f"no pool is named {pool!r}; known: {', '.join(settings.pools)}")
    route = asyncio.run(_route(settings.dns, domain))
    if isinstance(route, NoRoute):
        return route
    return explain_site(domain, route, rules, settings.pools[pool])


async def _route(dns: DnsSettings, domain: str) -> Route:
    async with Resolver(dns, random=random.SystemRandom()) as resolver:
        return await resolver.route(domain)


def _print_no_route(address: str, route: NoRoute, as_json: bool) -> None:
    if as_json:
        print_json({"address": address, "no_route": route})
    else:
        outcome = "it fails" if route.is_final else "it is tried again later"
        typer.echo(f"{address}: no route, {outcome}: {route.enhanced} {route.text}")


def _print_egresses(explained: SiteExplained) -> None:
    print_table(
        f"Egresses of pool {explained.pool}",
        ("egress", "id", "HELO", "share", "why"),
        [
            (e.name, str(e.id), e.helo, f"{e.share_percent:g} %" if e.is_eligible else "not used", e.why)
            for e in explained.egresses
        ],
    )
    if not any(egress.is_eligible for egress in explained.egresses):
        typer.echo(f"No egress of pool {explained.pool} may carry {explained.domain}: its mail waits (no-egress).")


def _print_host(host: HostExplained) -> None:
    typer.echo(f"\n{host.preference:>5} {host.name}  {', '.join(host.addresses)}")
    for held in host.rules:
        _print_rule(held)


def _print_rule(held: RuleExplained) -> None:
    rule = held.rule
    typer.echo(f"      rule {rule.name} ({rule.origin}), for egress {', '.join(held.egresses)}")
    typer.echo(f"        {held.why}")
    # A mask that does not fit is no news; one that fits and still does not hold is what people look for.
    for passed in held.passed_over:
        if passed.fits_mask:
            typer.echo(f"        not rule {passed.rule}: {passed.why}")
    for limit in held.limits:
        note = f" ({limit.note})" if limit.note else ""
        typer.echo(f"        {limit.limit} {limit.value:,}, counted on {limit.counted_on}{note}")
    if not held.limits:
        typer.echo("        no limits")
    offers = ", ".join(
        f"{name} {'used where offered' if is_on else 'not used'}"
        for name, is_on in (("PIPELINING", rule.pipelining), ("CHUNKING", rule.chunking))
    )
    typer.echo(f"        TLS {rule.tls}; {offers}")
    if rule.recipients_per_transaction_max > 1:
        typer.echo(
            f"        simulated deliveries: up to {rule.recipients_per_transaction_max:,} recipients a transaction"
        )


if __name__ == "__main__":
    app()
