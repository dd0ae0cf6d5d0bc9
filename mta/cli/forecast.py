"""``mta forecast``: when a delivery will be done, what holds it up, what raising that would gain."""

from __future__ import annotations

import asyncio
import datetime
import random
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from mta.cli.daemon import Config, dsn_of, settings_of
from mta.cli.terminal import AsJson, Dsn, print_json, print_table, with_database
from mta.dns import Resolver
from mta.model.address import parse_mailbox
from mta.model.dns import DnsSettings
from mta.model.errors import BadInput
from mta.model.site import MxHost, Route, Site
from mta.queue import deliveries, events, history, rule_sets, updates
from mta.queue.connection import Conn
from mta.queue.deliveries import Delivery
from mta.queue.rule_sets import Applied, Bundle
from mta.settings import Settings, load_rules
from mta.settings.shipped import load_updated_rules, parse_updated_rules
from mta.simulation.forecast import (
    DEFAULT_MESSAGE_S,
    Bottleneck,
    DeliveryLoad,
    Forecast,
    Gain,
    Pace,
    SiteLoad,
    forecast,
    scenario_of,
)
from mta.simulation.picture import duration
from mta.simulation.scenario import NodeModel
from mta.simulation.standing import apart, standing
from mta.traffic.effects import EffectKind, Target
from mta.traffic.egress import EgressChooser
from mta.traffic.events import TrafficEvent
from mta.traffic.retry import parse_retry
from mta.traffic.rules import RuleSet

LOOKUPS_MAX: Final = 2_000  # domains, those with the most recipients first
LOOKUPS_AT_ONCE: Final = 200
LOOKUP_S: Final = 20.0  # all of them together
LOOKBACK: Final = datetime.timedelta(hours=6)  # of the log, for paces
BUSY_ATTEMPTS: Final = 200  # in ten seconds: from here on they tell the pace of a site
FAULTS_SHOWN: Final = 5
ASKED: Final = "asked"  # the delivery of a list of recipients


class Demand(msgspec.Struct, frozen=True):
    """Recipients of one delivery at one domain. ``is_apart``: an event holds the domain back."""

    delivery: str
    domain: str
    due_in_s: float
    recipients: int
    is_apart: bool = False


class Known(msgspec.Struct, frozen=True):
    """What the database has to say."""

    loads: list[DeliveryLoad]
    demands: list[Demand]
    paces: dict[str, history.SitePace]
    credits_used: list[tuple[str, int, int]]
    nodes: int
    at_unix_s: float  # when the backlog was as it says
    applied: tuple[Applied, Bundle] | None  # the rules in force
    update: dict[str, str]  # texts in the place of shipped files
    events: list[TrafficEvent]  # in force besides them


def command(
    delivery_id: Annotated[
        int | None, typer.Argument(help="The delivery's number.", min=1, show_default=False, metavar="[DELIVERY]")
    ] = None,
    recipients: Annotated[
        Path | None,
        typer.Option(help="Before sending: a file of addresses, one a line.", exists=True, dir_okay=False),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="Rules; those in force when absent, else those that the settings name.")
    ] = None,
    pool: Annotated[str, typer.Option(help="The egress pool, with --recipients.")] = "default",
    message_s: Annotated[
        float | None,
        typer.Option(help="Seconds a message takes on a connection, where nothing was measured.", min=0.001),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what was forecast before, and what happened.")
    ] = False,
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Say when each site, and the whole delivery, will be done, and which limits are the bottlenecks."""
    settings = settings_of(config)
    dsn = dsn_of(dsn, settings)
    if compare:
        _show_kept(dsn, delivery_id, as_json)
        return
    if (delivery_id is None) is (recipients is None):
        raise BadInput("forecast", "give a delivery's number, or --recipients FILE before sending, one of them")
    if pool not in settings.pools:
        raise BadInput("--pool", f"no pool is named {pool!r}; known: {', '.join(settings.pools)}")
    given = None if rules is None else load_rules(rules)
    asked = [] if recipients is None else _read_recipients(recipients)
    known = with_database(dsn, lambda conn: _known(conn, delivery_id, asked, pool, settings))
    rule_set, named = (given, str(rules)) if given is not None else _rules_in_force(known, settings)
    told = _forecast(known, settings, rule_set, named, message_s)
    kept = None
    if delivery_id is not None:
        kept = with_database(dsn, lambda conn: _keep(conn, delivery_id, told, named))
    if as_json:
        print_json({"delivery": delivery_id, "forecast": kept, **msgspec.to_builtins(told)})
    else:
        _show(told)


def _rules_in_force(known: Known, settings: Settings) -> tuple[RuleSet, str]:
    """What the nodes obey, and what it is called; where nothing was applied yet, what they would begin with."""
    if known.applied is not None:
        applied, bundle = known.applied
        return parse_updated_rules(bundle.root, bundle.texts, known.update), f"rule set {applied.id}"
    if settings.rules_file is None:
        return RuleSet(), "the built-in rule"
    return load_updated_rules(settings.rules_file, known.update), str(settings.rules_file)


def _read_recipients(path: Path) -> list[Demand]:
    """By domain. BadInput at the first bad line."""
    counts: Counter[str] = Counter()
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                counts[parse_mailbox(line.strip(), f"{path}:{number}").domain] += 1
    if not counts:
        raise BadInput(str(path), "holds no address")
    return [Demand(ASKED, domain, 0.0, count) for domain, count in counts.items()]


async def _known(conn: Conn, delivery_id: int | None, asked: Sequence[Demand], pool: str, settings: Settings) -> Known:
    await history.compare_forecasts(conn)
    wanted = None if delivery_id is None else await deliveries.show(conn, delivery_id)
    if wanted is not None and wanted.ended_at is not None:
        raise BadInput(f"delivery {wanted.id}", f"has ended; its forecasts: mta forecast {wanted.id} --compare")
    ids = set(await history.running_deliveries(conn))
    if wanted is not None:
        ids.add(wanted.id)
    at_unix_s = time.time()
    in_force = await _events(conn)
    waiting = await history.backlog(conn, ids)
    shown = {one: await deliveries.show(conn, one) for one in ids}
    retries = await history.retries(conn, ids)
    demands = [*asked, *(Demand(str(w.delivery_id), w.domain, w.due_in_s, w.recipients) for w in waiting)]
    held = apart(_by_domain(demands), in_force)
    demands = [msgspec.structs.replace(one, is_apart=one.domain in held) for one in demands]
    is_tenant = any(event.target is Target.TENANT for event in in_force)
    tenants = await history.sender_domains(conn, ids) if is_tenant else {}
    loads = _loads(demands, shown, retries, tenants, delivery_id, pool)
    if not any(load.is_wanted for load in loads):
        raise BadInput(f"delivery {delivery_id}", "has no recipients that wait")
    unknown = sorted({load.pool for load in loads} - settings.pools.keys())
    loads = [load for load in loads if load.pool in settings.pools]
    if not any(load.is_wanted for load in loads):
        raise BadInput(f"delivery {delivery_id}", f"its egress pool {unknown[0]!r} is not in the settings")
    names = {load.name for load in loads}
    return Known(
        loads,
        [demand for demand in _named(demands) if demand.delivery in names],
        await history.paces(conn, LOOKBACK),
        await history.credits_used(conn),
        max(1, await history.living_nodes(conn)),
        at_unix_s,
        await rule_sets.in_force(conn),
        await updates.texts_in_force(conn),
        in_force,
    )


async def _events(conn: Conn) -> list[TrafficEvent]:
    """All that are in force, on this machine's clock. Those that are over count as over, whoever has said so."""
    found = await events.look(conn, None)
    now_unix_s = time.time()
    return [one.traffic_event(now_unix_s) for one in found.events if one.until_in_s > 0]


def _by_domain(demands: Iterable[Demand]) -> Counter[str]:
    domains: Counter[str] = Counter()
    for demand in demands:
        domains[demand.domain] += demand.recipients
    return domains


def _named(demands: Iterable[Demand]) -> list[Demand]:
    """What of a delivery is due at one time, or held back with its domain, goes by a name of its own."""
    return [msgspec.structs.replace(one, delivery=_name(one)) for one in demands]


def _name(demand: Demand) -> str:
    name = f"{demand.delivery} at {demand.domain}" if demand.is_apart else demand.delivery
    return name if demand.due_in_s <= 0 else f"{name} in {demand.due_in_s:g} s"


def _loads(
    demands: Sequence[Demand],
    shown: dict[int, Delivery],
    retries: dict[int, str | None],
    tenants: dict[int, str],
    wanted: int | None,
    pool: str,
) -> list[DeliveryLoad]:
    loads: dict[str, DeliveryLoad] = {}
    now = datetime.datetime.now(datetime.UTC)
    for demand in demands:
        name = _name(demand)
        if name in loads:
            continue
        domain = demand.domain if demand.is_apart else ""
        if demand.delivery == ASKED:
            validity_s = deliveries.DEFAULT_VALIDITY.total_seconds()
            retry = parse_retry(None, "retry")
            loads[name] = DeliveryLoad(
                name=name, is_wanted=True, pool=pool, retry=retry, validity_s=validity_s, domain=domain
            )
            continue
        found = shown[int(demand.delivery)]
        until = found.valid_until or now + found.validity
        begins_in_s = (found.starts_at - now).total_seconds() if found.starts_at is not None else 0.0
        loads[name] = DeliveryLoad(
            name=name,
            is_wanted=found.id == wanted,
            pool=found.egress_pool,
            weight=found.weight,
            priority=found.priority,
            start_s=max(0.0, demand.due_in_s, begins_in_s),
            retry=parse_retry(retries[found.id], f"delivery {found.id}: retry"),
            validity_s=max(1.0, (until - now).total_seconds()),
            delivery_id=found.id,
            tenant=tenants.get(found.id, ""),
            domain=domain,
        )
    return list(loads.values())


def _forecast(known: Known, settings: Settings, rules: RuleSet, rules_name: str, message_s: float | None) -> Forecast:
    assumptions: list[str] = []
    domains = _by_domain(known.demands)
    routes = asyncio.run(_routes(settings.dns, [domain for domain, _ in domains.most_common(LOOKUPS_MAX)]))
    sites = _sites(known, domains, routes, assumptions)
    loads = _with_paces(sites, known, settings, rules, message_s, assumptions)
    children = settings.children
    others = len({load.name.partition(" ")[0] for load in known.loads if not load.is_wanted})
    assumptions.append(
        f"{known.nodes} node(s), {children.effective_count} children each as on this machine; "
        f"{others} other deliveries share the limits; no path fails; {rules_name} holds"
    )
    pools = list(settings.pools.values())
    found = standing(known.events, known.loads, loads, domains, rules=rules, pools=pools)
    assumptions += found.said
    scenario = scenario_of(
        known.loads,
        loads,
        rules=rules,
        pools=pools,
        node=NodeModel(
            children=children.effective_count * known.nodes,
            batch_recipients=children.batch_recipients,
            sessions_max=children.sessions_max,
            ready_recipients_max=settings.master.ready_recipients_max,
            ready_per_site_max=settings.master.ready_per_site_max,
            claim_parts_max=settings.master.claim_parts_max,
        ),
        # Nodes share each limit, so together they are as one with the memory and the sessions of all.
        nodes=1,
        starts_unix_s=known.at_unix_s,
        credits_used=known.credits_used,
        in_force=found.in_force,
    )
    return forecast(scenario, assumptions)


async def _routes(dns: DnsSettings, domains: Sequence[str]) -> dict[str, Route]:
    """Of those that answer in time."""
    found: dict[str, Route] = {}
    waiting = iter(domains)

    async def look_up(resolver: Resolver) -> None:
        for domain in waiting:
            found[domain] = await resolver.route(domain)

    async with Resolver(dns, random=random.SystemRandom()) as resolver:
        tasks = [asyncio.create_task(look_up(resolver)) for _ in range(min(LOOKUPS_AT_ONCE, len(domains)))]
        _, late = await asyncio.wait(tasks, timeout=LOOKUP_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


def _sites(
    known: Known, domains: Counter[str], routes: dict[str, Route], assumptions: list[str]
) -> dict[str, SiteLoad]:
    """What waits for each site. A domain whose route is not known counts as a site of its own."""
    sites: dict[str, SiteLoad] = {}
    unknown: Counter[str] = Counter()
    unroutable = 0
    apart_ = {demand.domain for demand in known.demands if demand.is_apart}
    for demand in known.demands:
        route = routes.get(demand.domain)
        if route is not None and not isinstance(route, Site):
            unroutable += demand.recipients
            continue
        if route is None:
            unknown[demand.domain] += demand.recipients
            route = _made_up(demand.domain, len(unknown))
        load = sites.setdefault(route.key, SiteLoad(route, demand.domain, {}))
        if load.domain in apart_ and not demand.is_apart:
            # One that is held back does not speak for the others.
            load = sites[route.key] = msgspec.structs.replace(load, domain=demand.domain)
        load.counts[demand.delivery] = load.counts.get(demand.delivery, 0) + demand.recipients
    if unknown:
        assumptions.append(
            f"{len(unknown):,} of {len(domains):,} domains with {sum(unknown.values()):,} recipients were not looked "
            "up, or not in time: each counts as a site of its own"
        )
    if unroutable:
        assumptions.append(f"{unroutable:,} recipients at domains without a route are left out")
    if not sites:
        raise BadInput("forecast", "none of the domains has a route")
    return sites


def _made_up(domain: str, number: int) -> Site:
    host = f"mx.{domain}"
    # Of 198.18.0.0/15, which is set apart for tests of this kind: nothing is sent there.
    return Site(host, (MxHost(host, 10, (f"198.19.{number // 256 % 256}.{number % 256}",)),))


def _with_paces(
    sites: dict[str, SiteLoad],
    known: Known,
    settings: Settings,
    rules: RuleSet,
    message_s: float | None,
    assumptions: list[str],
) -> list[SiteLoad]:
    egresses = {egress.id for pool in settings.pools.values() for egress in EgressChooser(pool).pool.egresses}
    assumed_s = message_s or DEFAULT_MESSAGE_S
    before_unix_s = known.at_unix_s - LOOKBACK.total_seconds()
    lowered = {
        event.on.partition("|")[0]
        for event in known.events
        if event.kind in (EffectKind.LOWER, EffectKind.BACKOFF) and event.began_unix_s <= before_unix_s
    }
    loads, measured, odds = [], 0, 0
    for key in sorted(sites):
        load = sites[key]
        pace = _pace_of(known.paces.get(key), load.site, min(egresses), rules, lowered, assumed_s)
        measured += pace.is_measured
        odds += pace.deferred_percent > 0 or pace.failed_percent > 0
        loads.append(msgspec.structs.replace(load, pace=pace))
    if measured:
        assumptions.append(f"the pace of {measured:,} sites is that of their busiest ten seconds in the last 6 hours")
    if measured < len(loads):
        assumptions.append(
            f"{len(loads) - measured:,} sites were not busy lately: a message takes {assumed_s:g} s on a connection"
        )
    if odds:
        assumptions.append(f"at {odds:,} sites as many fail and are deferred as in the last 6 hours")
    return loads


def _pace_of(
    told: history.SitePace | None,
    site: Site,
    egress_id: int,
    rules: RuleSet,
    lowered: Collection[str],
    assumed_s: float,
) -> Pace:
    """``lowered``: rules and providers of which an event has lowered limits for as long as was looked at."""
    if told is None or not told.attempts:
        return Pace(message_s=assumed_s)
    failed, deferred = 100.0 * told.failed / told.attempts, 100.0 * told.deferred / told.attempts
    rule = rules.match(site.hosts[0].name, egress_id, site.key)
    connections = rule.connections_max or rule.connections_per_path_max
    provider = "" if rule.provider is None else f"provider:{rule.provider.name}"
    # Where the rule or an event holds back messages, the log tells of that and not of the site.
    is_held = bool(rule.message_ceilings()) or rule.name in lowered or provider in lowered
    if told.busiest < BUSY_ATTEMPTS or connections is None or is_held:
        return Pace(message_s=assumed_s, failed_percent=failed, deferred_percent=deferred)
    message_s = max(0.001, 10.0 * connections * max(1, told.egresses) / told.busiest)
    return Pace(message_s=message_s, failed_percent=failed, deferred_percent=deferred, is_measured=True)


# --- what was forecast ----------------------------------------------------------------------------


async def _keep(conn: Conn, delivery_id: int, told: Forecast, rules: str) -> int:
    detail = msgspec.json.encode(told)
    return await history.keep_forecast(conn, delivery_id, told.made_at, rules, told.recipients, told.finish_at, detail)


def _show_kept(dsn: str, delivery_id: int | None, as_json: bool) -> None:
    async def work(conn: Conn) -> tuple[Sequence[history.KeptForecast], tuple[int, float | None]]:
        await history.compare_forecasts(conn)
        return await history.kept_forecasts(conn, delivery_id), await history.accuracy(conn)

    kept, (compared, error_percent) = with_database(dsn, work)
    if as_json:
        print_json({"forecasts": kept, "compared": compared, "mean_error_percent": error_percent})
        return
    print_table(
        "Forecasts",
        ("id", "delivery", "made", "recipients", "forecast", "happened", "error %"),
        [
            (one.id, one.delivery_id, one.made_at, one.recipients, one.finish_at, one.ended_at, one.error_percent)
            for one in kept
        ],
    )
    if error_percent is not None:
        typer.echo(f"{compared} forecasts compared with what happened: off by {error_percent:.1f} % in the mean")


def _show(told: Forecast) -> None:
    print_table(
        "Sites, the last first",
        ("site", "recipients", "done", "in", "held up by", "where"),
        [
            (
                site.site,
                site.recipients,
                site.finish_at,
                duration(site.seconds),
                _limit(site.bottleneck),
                site.bottleneck.origin or None,
            )
            for site in told.sites[:30]
        ],
    )
    if told.sites_count > 30:
        typer.echo(f"... and {told.sites_count - 30:,} more sites")
    for gain in told.bottlenecks:
        following = gain.next_bottleneck
        after = "" if following is None else f"; then {_limit(following)}"
        change = "without the event it would gain" if gain.event else "twice as much would gain"
        typer.echo(
            f"bottleneck {_limit(gain)} {gain.origin}: {len(gain.sites):,} sites; "
            f"{change} {duration(gain.gain_s)}{after}"
        )
    for assumption in told.assumptions:
        typer.echo(f"assumed: {assumption}")
    end = f"{told.waiting:,} recipients will not be done in time" if told.waiting else "done"
    typer.echo(
        f"{told.recipients:,} recipients: {end} at {told.finish_at:%Y-%m-%d %H:%M:%S}Z, in {duration(told.seconds)}"
    )


def _limit(held: Bottleneck | Gain) -> str:
    of = f"{held.rule}: " if held.rule else ""
    by = f" by the event {held.event}" if held.event else ""
    return f"{of}{held.limit}{f' {held.value:,}' if held.value else ''}{by}"
