"""``mta traffic``: what is in force besides the rules, and an operator's word in it."""

from __future__ import annotations

import datetime
import difflib
import ipaddress
import re
from typing import Annotated, Any, Final

import msgspec
import typer

from mta.cli.host_facts import hosts
from mta.cli.rules_common import local_user, operator
from mta.cli.terminal import (
    AsJson,
    Dsn,
    err,
    out,
    parse_duration,
    parse_time,
    print_json,
    print_table,
    shown,
    with_database,
)
from mta.model.address import parse_domain
from mta.model.errors import BadInput
from mta.queue import events, monitor, rule_sets
from mta.queue.connection import Conn
from mta.queue.events import NewEvent, StoredEvent
from mta.settings.rules_file import parse_bundle
from mta.traffic.effects import EffectKind, Target
from mta.traffic.limits import LIMIT_KEYS, Limits

app = typer.Typer(
    help="Traffic events: what automations and operators have put into force besides the rules.", no_args_is_help=True
)

app.command("hosts")(hosts)

EVER: Final = "ever"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EGRESS_ID_MAX: Final = 2**31 - 1
NAMES_SHOWN: Final = 20

Egress = Annotated[str | None, typer.Option(help="All that leaves by this egress: its name.", show_default=False)]
Site = Annotated[str | None, typer.Option(help="All that goes to this site: its key.", show_default=False)]
RuleName = Annotated[str | None, typer.Option("--rule", help="What a rule counts together.", show_default=False)]
Provider = Annotated[str | None, typer.Option(help="What a provider counts together.", show_default=False)]
EgressId = Annotated[
    int | None,
    typer.Option(help="With --rule or --provider: only through this egress.", min=1, max=_EGRESS_ID_MAX),
]
Domain = Annotated[str | None, typer.Option(help="All recipients of this domain.", show_default=False)]
Tenant = Annotated[str | None, typer.Option(help="All deliveries of this sender domain.", show_default=False)]
Delivery = Annotated[int | None, typer.Option(help="A delivery: its number.", min=1, show_default=False)]
Path = Annotated[
    str | None, typer.Option(help="One egress (its id) and one address of a host: 3,192.0.2.7.", show_default=False)
]
For = Annotated[
    str | None, typer.Option("--for", help="90m, 3h, 2d; or ever: until it is cancelled.", show_default=False)
]
Until = Annotated[str | None, typer.Option(help="A time: 2026-12-01T08:00:00+01:00.", show_default=False)]
Why = Annotated[str, typer.Option(help="For those who read it later.", show_default=False)]
By = Annotated[str, typer.Option(help="Who says so; else your name on this machine.", show_default=False)]
EventId = Annotated[int, typer.Argument(help="The event's number.", min=1, show_default=False)]


@app.command("events")
def events_(
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    since: Annotated[
        str | None, typer.Option(help="In force at some time since: 3h ago, or a time.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=100_000)] = 1_000,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """What is in force, the newest first: what, on whom, until when, and why."""
    bound = None if since is None else _since(since)
    if all_ or since is not None:
        found = with_database(dsn, lambda conn: events.history(conn, since=bound, limit=limit))
    else:
        found = with_database(dsn, lambda conn: events.in_force(conn, limit=limit))
    if as_json:
        print_json({"events": [_as_json(one) for one in found]})
        return
    print_table(
        "Traffic events",
        ("id", "event", "what", "on", "since", "until", "ended", "replies", "why"),
        [_row(one) for one in found],
    )


@app.command()
def suspend(
    egress: Egress = None,
    site: Site = None,
    rule: RuleName = None,
    provider: Provider = None,
    egress_id: EgressId = None,
    domain: Domain = None,
    tenant: Tenant = None,
    delivery: Delivery = None,
    path: Path = None,
    lasts: For = None,
    until: Until = None,
    why: Why = "",
    name: Annotated[str, typer.Option(help="What the event is called.")] = "suspended",
    by: By = "",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Begin nothing new there; what is under way is finished."""
    target, on = _target(egress, site, rule, provider, egress_id, domain, tenant, delivery, path)
    span, at = _end(lasts, until)
    new = NewEvent(
        name=name, kind=EffectKind.SUSPEND, target=target, on_what=on, lasts=span, until_at=at, detail=why.strip()
    )
    _say(with_database(dsn, lambda conn: _put_in_force(conn, new, _operator(by))), as_json)


@app.command()
def lower(
    limit: Annotated[list[str], typer.Option(help="As in a rule: connections_max=2. Several.", show_default=False)],
    rule: RuleName = None,
    provider: Provider = None,
    egress_id: EgressId = None,
    lasts: For = None,
    until: Until = None,
    why: Why = "",
    name: Annotated[str, typer.Option(help="What the event is called.")] = "lowered",
    by: By = "",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Let limits hold besides those of a rule or a provider: of each, the tighter."""
    target, on = _target(None, None, rule, provider, egress_id, None, None, None, None)
    span, at = _end(lasts, until)
    new = NewEvent(
        name=name,
        kind=EffectKind.LOWER,
        target=target,
        on_what=on,
        lasts=span,
        until_at=at,
        limits=_limits(limit),
        detail=why.strip(),
    )
    _say(with_database(dsn, lambda conn: _put_in_force(conn, new, _operator(by))), as_json)


@app.command()
def resume(
    egress: Egress = None,
    site: Site = None,
    rule: RuleName = None,
    provider: Provider = None,
    egress_id: EgressId = None,
    domain: Domain = None,
    tenant: Tenant = None,
    delivery: Delivery = None,
    path: Path = None,
    by: By = "",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """End every suspension there, whoever made it."""
    target, on = _target(egress, site, rule, provider, egress_id, domain, tenant, delivery, path)
    ended = with_database(dsn, lambda conn: events.resume(conn, target, on, _operator(by)))
    if not ended:
        raise BadInput(f"{target} {on}", "is not suspended; what is in force: mta traffic events")
    if as_json:
        print_json({"ended": [_as_json(one) for one in ended]})
        return
    for one in ended:
        out.print(f"event {one.id} is over: {shown(one.name)}, {shown(f'{one.target} {one.on_what}')}")


@app.command()
def cancel(event_id: EventId, by: By = "", dsn: Dsn = "", as_json: AsJson = False) -> None:
    """End an event, whatever it does."""
    ended = with_database(dsn, lambda conn: events.cancel(conn, event_id, _operator(by)))
    if as_json:
        print_json(_as_json(ended))
    else:
        out.print(f"event {ended.id} is over: {shown(ended.name)}, {shown(f'{ended.target} {ended.on_what}')}")


@app.command()
def change(
    event_id: EventId, lasts: For = None, until: Until = None, by: By = "", dsn: Dsn = "", as_json: AsJson = False
) -> None:
    """Give an event another end: so long from now, or a time."""
    span, at = _end(lasts, until)
    _say(
        with_database(dsn, lambda conn: events.change(conn, event_id, _operator(by), lasts=span, until_at=at)), as_json
    )


async def _put_in_force(conn: Conn, new: NewEvent, by: str) -> StoredEvent:
    """BadInput for a rule or a provider that the set in force does not have: the event would hold nothing back."""
    if new.target in (Target.RULE, Target.PROVIDER):
        await _check_name(conn, new)
    elif new.target is Target.EGRESS and not await monitor.has_sent(conn, new.on_what):
        err.print(f"nothing has left from an egress called {shown(new.on_what)} yet: is that its name?", style="yellow")
    return await events.put_in_force(conn, new, by)


async def _check_name(conn: Conn, new: NewEvent) -> None:
    found = await rule_sets.in_force(conn)
    if found is None:
        return
    try:
        rules = parse_bundle(found[1].root, found[1].texts)
    except BadInput:
        return  # applied by a newer program: no reason not to stop what must be stopped
    if new.target is Target.RULE:
        names = [rule.name for rule in (*rules.rules, rules.default)]
    else:
        names = list(dict.fromkeys(rule.provider.name for rule in rules.rules if rule.provider is not None))
    name = new.on_what.partition("|")[0].removeprefix("provider:")
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        known = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "") or "none"
        raise BadInput(
            f"--{new.target}", f"rule set {found[0].id}, in force, has none called {name!r}{hint} Known: {known}"
        )


# --- what is asked for ------------------------------------------------------------------------


def _target(
    egress: str | None,
    site: str | None,
    rule: str | None,
    provider: str | None,
    egress_id: int | None,
    domain: str | None,
    tenant: str | None,
    delivery: int | None,
    path: str | None,
) -> tuple[Target, str]:
    """The one target that is given, as effects write it."""
    given = {
        "--egress": (egress, Target.EGRESS),
        "--site": (site, Target.SITE),
        "--rule": (rule, Target.RULE),
        "--provider": (provider, Target.PROVIDER),
        "--domain": (domain, Target.DOMAIN),
        "--tenant": (tenant, Target.TENANT),
        "--delivery": (None if delivery is None else str(delivery), Target.DELIVERY),
        "--path": (path, Target.PATH),
    }
    found = [(option, text, target) for option, (text, target) in given.items() if text is not None]
    if len(found) != 1:
        raise BadInput("target", f"give one of {', '.join(given)}")
    option, text, target = found[0]
    if egress_id is not None and target not in (Target.RULE, Target.PROVIDER):
        raise BadInput("--egress-id", "goes with --rule or --provider")
    return target, _on(option, text, target, egress_id)


def _on(option: str, text: str, target: Target, egress_id: int | None) -> str:
    match target:
        case Target.DOMAIN | Target.TENANT:
            return parse_domain(text, option)
        case Target.PATH:
            return _path(text)
        case Target.RULE | Target.PROVIDER | Target.EGRESS:
            if not _NAME.fullmatch(text):
                raise BadInput(option, f"{text!a} is no name: 1 to 64 letters, digits, '.', '_' or '-'")
            named = f"provider:{text}" if target is Target.PROVIDER else text
            return named if egress_id is None else f"{named}|{egress_id}"
        case Target.SITE:
            if not re.fullmatch(r"[a-z0-9._+:\[\]-]{1,300}", text.lower()):
                raise BadInput(option, f"{text!a} is no site; they are listed by mta queue show")
            return text.lower()
    return text


def _path(text: str) -> str:
    egress_id, comma, peer = text.partition(",")
    try:
        address = ipaddress.ip_address(peer.strip())
    except ValueError as error:
        raise BadInput("--path", f"{text!a} is not an egress's id and an IP address, such as 3,192.0.2.7") from error
    if not comma or not egress_id.strip().isdecimal() or not 1 <= int(egress_id) <= _EGRESS_ID_MAX:
        raise BadInput("--path", f"{egress_id!a} is no id of an egress: a number from 1 on")
    return f"{int(egress_id)}|{address}"


def _end(lasts: str | None, until: str | None) -> tuple[datetime.timedelta | None, datetime.datetime | None]:
    if (lasts is None) is (until is None):
        raise BadInput("--for", f"or --until: give one of them; --for {EVER} is until it is cancelled")
    if until is not None:
        at = parse_time(until, "--until")
        if at <= datetime.datetime.now(datetime.UTC):
            raise BadInput("--until", f"{shown(at)} is not ahead")
        return None, at
    assert lasts is not None
    if lasts == EVER:
        return None, None
    span = _duration(lasts, "--for")
    if not span:
        raise BadInput("--for", "must be longer than nothing")
    return span, None


def _duration(text: str, where: str) -> datetime.timedelta:
    return parse_duration(text.replace(" ", ""), where)


def _since(text: str) -> datetime.datetime | datetime.timedelta:
    """A time, or so long ago by the database's clock."""
    if re.fullmatch(r"\d{4}-.*", text):
        return parse_time(text, "--since")
    return _duration(text.removesuffix("ago"), "--since")


def _limits(given: list[str]) -> Limits:
    values: dict[str, int] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key, value = key.strip(), value.strip().replace("_", "")
        if not equals or not value.isdecimal():
            raise BadInput("--limit", f"{text!a} is not KEY=NUMBER, such as connections_max=2")
        if key not in LIMIT_KEYS:
            raise BadInput("--limit", f"no limit is called {key!a}; there are {', '.join(LIMIT_KEYS)}")
        if key in values:
            raise BadInput("--limit", f"{key} is given twice")
        if not 1 <= int(value) <= 2**53:
            raise BadInput("--limit", f"{key} must be at least 1 (to stop altogether: mta traffic suspend)")
        values[key] = int(value)
    return Limits(**values)


def _operator(by: str) -> str:
    return operator(by) if by else local_user()


# --- what is shown ----------------------------------------------------------------------------


def _as_json(one: StoredEvent) -> dict[str, Any]:
    fields = {
        key: value
        for key, value in msgspec.to_builtins(one, enc_hook=str).items()
        if key not in ("began_in_s", "until_in_s", "on_what")
    }
    is_in_force = one.ended_at is None and one.until_in_s > 0
    return {
        **fields,
        "on": one.on_what,
        "limits": events.given_limits(one.limits),
        "base": events.given_limits(one.base),
        "in_force": is_in_force,
        "left_s": round(one.until_in_s, 1) if is_in_force and one.until_at is not None else None,
    }


def _row(one: StoredEvent) -> tuple[object, ...]:
    on = f"{one.target} {one.on_what}"
    return (str(one.id), one.name, _what(one), on, one.began_at, one.until_at, _ended(one), one.replies, _why(one))


def _what(one: StoredEvent) -> str:
    limits = ", ".join(f"{key} {value}" for key, value in events.given_limits(one.limits).items())
    step = f"step {one.step}" if one.step else ""
    return ": ".join(part for part in (one.kind.value, ", ".join(x for x in (limits, one.pool, step) if x)) if part)


def _ended(one: StoredEvent) -> str | None:
    if one.ended_at is None:
        return None if one.until_in_s > 0 else "over"
    return f"{one.ended_why} {shown(one.ended_at)}" + (f" by {one.touched_by}" if one.touched_by else "")


def _why(one: StoredEvent) -> str:
    by = one.by_whom or ", ".join(x for x in (one.automation, f"rule {one.rule}" if one.rule else "") if x)
    return ": ".join(part for part in (by, one.detail) if part)


def _say(one: StoredEvent, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(one))
        return
    until = "until it is cancelled" if one.until_at is None else f"until {shown(one.until_at)}"
    out.print(f"event {one.id}: {shown(_what(one))}, {shown(f'{one.target} {one.on_what}')}, {until}")


if __name__ == "__main__":
    app()
