"""``mta explain``: where it is, what holds it, and when it goes."""

from __future__ import annotations

import datetime
import re
import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from mta.cli.daemon import Config, dsn_of, settings_of
from mta.cli.host_facts import fact_as_json, fact_words, host_names
from mta.cli.terminal import AsJson, Dsn, err, out, print_json, print_table, shown, with_database
from mta.master.control import NoDaemon, ask
from mta.model.address import domain_of
from mta.model.errors import BadInput
from mta.queue import deliveries, events, host_facts, locate, overview
from mta.queue.connection import Conn
from mta.queue.events import StoredEvent
from mta.queue.host_facts import StoredFact
from mta.queue.locate import Queued
from mta.queue.overview import LogLine, Waiting
from mta.traffic.effects import EffectKind, Target

_MESSAGE: Final = re.compile(r"(\d+):(.+)")
LINES_SHOWN: Final = 5
SITES_SHOWN: Final = 10
RECIPIENTS_ASKED: Final = 20  # of the daemon, one by one


class Recipient(msgspec.Struct, frozen=True):
    """One that waits: what the queue says, and what the daemon here does where it has it (else None).

    ``held_by``: suspensions of its domain or its delivery that are in force.
    """

    queued: Queued
    here: dict[str, Any] | None
    held_by: list[StoredEvent]


class Daemon:
    """The daemon of this machine, or the sentence that says that there is none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.missing = ""
        self.run: int | None = None
        self.status = self.ask("status")
        if self.status is not None:
            self.run = self.status["run"]

    def ask(self, word: str, **more: object) -> Any:
        """The answer; None when nobody is there."""
        if self.missing:
            return None
        try:
            return ask(self._directory, word, **more)
        except (NoDaemon, BadInput) as error:
            self.missing = str(error)
            return None


def command(
    what: Annotated[
        str, typer.Argument(help="An address; DELIVERY:NUMBER or DELIVERY:REFERENCE; a site or MX host; a delivery.")
    ],
    config: Config = None,
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """Say where something is, which rule and which limit of it holds it, on which egress, and when it goes next."""
    settings = settings_of(config)
    daemon = Daemon(settings.journal_dir)
    dsn = dsn_of(dsn, settings)
    message = _MESSAGE.fullmatch(what)
    if "@" in what and message is None:
        told = _recipients(what, daemon, dsn)
    elif message is not None:
        told = _recipients(message[2], daemon, dsn, delivery_id=int(message[1]))
        told["what"] = what
    elif what.isdecimal():
        told = _delivery(int(what), daemon, dsn)
    else:
        told = _site(what, daemon, dsn)
    told["no_daemon"] = daemon.missing
    if as_json:
        print_json(told)
        return
    if daemon.missing:
        err.print(f"{daemon.missing}: told from the database alone", markup=False, highlight=False, soft_wrap=True)
    elif daemon.status["hold"]:
        _say(f"This node begins nothing: {daemon.status['hold']} (mta monitor slow says more).")
    _PRINTERS[told["kind"]](told)


# --- what is known -------------------------------------------------------------------------------


def _recipients(wanted: str, daemon: Daemon, dsn: str, delivery_id: int | None = None) -> dict[str, Any]:
    async def find(conn: Conn) -> tuple[list[Queued], list[LogLine]]:
        if delivery_id is None:
            lines = await overview.find_in_log(conn, wanted, limit=100)
            return await locate.by_address(conn, wanted), lines
        if "@" in wanted:
            queued = await locate.by_address(conn, wanted, delivery_id)
            found = await overview.find_in_log(conn, wanted, limit=100)
            return queued, [line for line in found if line.delivery_id == delivery_id]
        if wanted.isdecimal():
            queued = await locate.by_number(conn, delivery_id, int(wanted))
            lines = await locate.lines_of_number(conn, delivery_id, int(wanted))
            if queued or lines:
                return queued, lines
        queued = await locate.by_reference(conn, delivery_id, wanted)
        return queued, await locate.lines_of_reference(conn, delivery_id, wanted)

    async def work(conn: Conn) -> tuple[list[Queued], list[LogLine], list[StoredEvent], list[StoredFact]]:
        queued, lines = await find(conn)
        hosts = [name for line in lines[:LINES_SHOWN] for name in (line.mx_host, line.peer) if name]
        for domain in dict.fromkeys([domain_of(one.address) for one in queued[:RECIPIENTS_ASKED]] or [domain_asked]):
            hosts += host_names(domain, daemon.ask("explain", site=domain) if domain else None)
        return queued, lines, await events.in_force(conn), await host_facts.known(conn, hosts)

    domain_asked = domain_of(wanted) if "@" in wanted else ""
    queued, lines, in_force, facts = with_database(dsn, work)
    told = []
    for number, one in enumerate(queued):
        here = None
        if one.owner is not None and one.owner == daemon.run and number < RECIPIENTS_ASKED:
            domain = domain_of(one.address)
            here = daemon.ask("explain", part=one.part_id, position=one.position, domain=domain)
        elif one.owner is None and number < RECIPIENTS_ASKED:
            here = daemon.ask("explain", site=one.site or domain_of(one.address))
        whom = {(Target.DOMAIN, domain_of(one.address)), (Target.DELIVERY, str(one.delivery_id))}
        told.append(Recipient(one, here, _holding(in_force, whom)))
    waits = {one["delivery"]: one for one in daemon.status["deliveries"]} if daemon.status else {}
    numbers = _numbers(in_force)
    return {
        **{"kind": "recipient", "what": wanted, "recipients": told, "log": lines, "waits": waits, "run": daemon.run},
        "events": numbers,
        "facts": [fact_as_json(one) for one in facts],
    }


def _holding(in_force: list[StoredEvent], whom: set[tuple[Target, str]]) -> list[StoredEvent]:
    """Of the events in force, the suspensions of any of these."""
    return [one for one in in_force if one.kind is EffectKind.SUSPEND and (one.target, one.on_what) in whom]


def _numbers(in_force: list[StoredEvent]) -> dict[str, int]:
    """By an event's key, as the daemon knows it, its number, as commands ask for it."""
    return {one.key: one.id for one in in_force}


def _delivery(delivery_id: int, daemon: Daemon, dsn: str) -> dict[str, Any]:
    async def work(conn: Conn) -> tuple[Any, list[Waiting], list[StoredEvent]]:
        found = await overview.waiting(conn, limit=100_000)
        own = [one for one in found if one.delivery_id == delivery_id]
        return await deliveries.show(conn, delivery_id), own, await events.in_force(conn)

    delivery, queue, in_force = with_database(dsn, work)
    return {
        **{"kind": "delivery", "what": str(delivery_id), "delivery": delivery, "queue": queue},
        "here": daemon.ask("explain", delivery=delivery_id),
        "held_by": _holding(in_force, {(Target.DELIVERY, str(delivery_id))}),
        "events": _numbers(in_force),
    }


def _site(wanted: str, daemon: Daemon, dsn: str) -> dict[str, Any]:
    name = wanted.lower().rstrip(".")

    here = daemon.ask("explain", site=name)

    async def work(conn: Conn) -> tuple[list[Waiting], list[StoredEvent], list[StoredFact]]:
        found = await overview.waiting(conn, limit=100_000)
        queue = [one for one in found if one.site in (name, f"@{name}")]
        return queue, await events.in_force(conn), await host_facts.known(conn, host_names(name, here))

    queue, in_force, facts = with_database(dsn, work)
    return {
        **{"kind": "site", "what": wanted, "queue": queue},
        "here": here,
        "facts": [fact_as_json(one) for one in facts],
        "held_by": _holding(in_force, {(Target.DOMAIN, name), (Target.SITE, name)}),
        "events": _numbers(in_force),
    }


# --- in words ------------------------------------------------------------------------------------


def _say(sentence: str, indent: int = 0) -> None:
    out.print(f"{' ' * indent}{shown(sentence)}", highlight=False, soft_wrap=True)


def when(unix_s: float | None, event: str = "", *, now_s: float | None = None) -> str:
    """``14:03:20 (in 42 s)`` by the local clock; what ends the wait where no time is known."""
    if unix_s is None:
        return event or "not known"
    left_s = unix_s - (time.time() if now_s is None else now_s)
    if left_s <= 0:
        return "now"
    local = datetime.datetime.fromtimestamp(unix_s).astimezone()
    day = f"{local:%Y-%m-%d} " if left_s > 43_200 else ""
    return f"{day}{local:%H:%M:%S} (in {_length(left_s)})"


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 7_200:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3_600:.1f} h"


def _print_recipients(told: dict[str, Any]) -> None:
    recipients, lines = told["recipients"], told["log"]
    if not recipients and not lines:
        _say(f"{told['what']} waits nowhere, and the log has nothing of it.")
    for one in recipients:
        queued = one.queued
        _say(
            f"{queued.address} in delivery {queued.delivery_id} ({queued.name}), message "
            f"{queued.delivery_id}:{queued.number}, attempts so far: {queued.attempts}"
        )
        _print_held_by(one.held_by, 2)
        _print_recipient(one, told)
    lanes = [lane for one in recipients if one.here is not None for lane in one.here.get("lanes", ())]
    _print_facts(_facts_unsaid(told, lanes))
    if lines:
        if not recipients:
            _say(f"{told['what']} waits nowhere: what became of it stands in the log.")
        _print_lines(lines[:LINES_SHOWN], len(lines))


def _print_recipient(one: Recipient, told: dict[str, Any]) -> None:
    queued, here = one.queued, one.here
    if queued.owner is None:
        _say(f"In the queue: {_why_queued(queued, told)}", 2)
        if here is not None and here["lanes"]:
            _say("What holds its site on this node now:", 2)
            _print_lanes(here["lanes"], told["events"], 2)
        return
    if queued.owner != told["run"] or here is None:
        lives = "" if queued.node_lives else ", which does not live: it is taken over when its lease is over"
        _say(f"In the memory of node {queued.node} (run {queued.owner}){lives}.", 2)
        return
    if here["where"] == "out":
        session = here["session"] or {}
        _say(
            f"Out in a session: {session.get('mx_host', here['site'])} [{session.get('peer', '')}] from egress "
            f"{session.get('egress', '')}, rule {session.get('rule', '')}; {session.get('in_flight', 0)} under way "
            f"there, {session.get('message_s', 0):.2f} s a message.",
            2,
        )
    elif here["where"] == "dns":
        _say(f"In memory: waits for the route of {here['domain']} (dns), goes on when the resolver answers.", 2)
    elif here["where"] == "ready":
        _say("In memory, ready:", 2)
        _print_lanes(here["lanes"], told["events"], 2)
    else:
        _say("Settled a moment ago: look again.", 2)


def _why_queued(queued: Queued, told: dict[str, Any]) -> str:
    if queued.held:
        return f"held in doubt, waits for an operator: mta delivery in-doubt {queued.delivery_id}"
    if queued.state != "running":
        return f"its delivery is {queued.state}"
    wait = told["waits"].get(queued.delivery_id)
    if wait is not None and wait["reason"]:
        return f"{wait['reason']}: {wait['detail']}; goes on {when(wait['until_unix_s'], wait['event'])}"
    due = when(queued.due_at.timestamp())
    if queued.is_unchecked:
        return f"not looked at for duplicates yet; then due {due}"
    if queued.due_in_s <= 0:
        return "due now, and not claimed yet: no node has room for it, or none lives (mta queue show)"
    if queued.site and queued.site.startswith("@"):
        return f"put off, its domain {queued.site[1:]} is held back (mta traffic events); due {due}"
    if queued.attempts:
        return f"deferred after {queued.attempts} attempts, due {due}"
    return f"due {due}" + (f", given back by a node: site {queued.site} takes no more now" if queued.site else "")


def _print_lines(lines: list[LogLine], count: int) -> None:
    print_table(
        f"In the log: the last {len(lines)} of {count} attempts" if count > len(lines) else "In the log",
        ("at", "delivery", "attempt", "outcome", "egress", "MX host", "reply"),
        [
            (
                *(line.at, str(line.delivery_id), line.attempt, line.status.name.lower(), line.egress or None),
                line.mx_host or None,
                " ".join(part for part in (str(line.code or ""), line.enhanced, line.reply) if part),
            )
            for line in lines
        ],
    )


def _print_held_by(held_by: list[StoredEvent], indent: int = 0) -> None:
    for one in held_by:
        who = f" by {one.by_whom}" if one.by_whom else f" by the automation {one.automation}" if one.automation else ""
        until = "until it is cancelled" if one.until_at is None else f"until {when(one.until_at.timestamp())}"
        why = f": {one.detail}" if one.detail else ""
        _say(
            f"Event {one.id} suspends {one.target} {one.on_what}{who}, {until}{why} (mta traffic cancel {one.id})",
            indent,
        )


def _print_facts(facts: list[dict[str, Any]], indent: int = 0) -> None:
    for one in facts:
        _say(fact_words(one, when(one["until_unix_s"])), indent)


def _facts_unsaid(told: dict[str, Any], lanes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """But for those that stand with a lane."""
    said = {(fact["host"], fact["fact"]) for lane in lanes for fact in lane["facts"]}
    return [one for one in told["facts"] if (one["host"], one["fact"]) not in said]


def _print_effects(effects: list[dict[str, Any]], numbers: dict[str, int], indent: int) -> None:
    for one in effects:
        number = numbers.get(one["key"])
        event = "An event" if number is None else f"Event {number}"
        limits = ", ".join(f"{key} {value:,}" for key, value in one["limits"].items())
        what = " ".join(part for part in (one["kind"], limits or one["pool"]) if part)
        until = when(one["until_unix_s"], "it is cancelled")
        why = f": {one['detail']}" if one["detail"] else ""
        _say(f"{event} ({one['name']}) on {one['target']} {one['on']}: {what}, until {until}{why}", indent)


def _print_lanes(lanes: list[dict[str, Any]], numbers: dict[str, int], indent: int = 0) -> None:
    for lane in lanes:
        pace = f", {lane['rate_per_s']:.1f} a second lately" if lane["rate_per_s"] else ""
        _say(f"Site {lane['site']}, pool {lane['pool']}: {lane['waiting']:,} recipients in memory{pace}", indent)
        if lane["state"] == "goes":
            _say("It goes: its turn comes in a moment.", indent + 2)
        elif lane["state"] == "waits":
            until = when(lane["until_unix_s"], lane["event"])
            _say(f"It waits ({lane['reason']}): {lane['detail']}; goes on {until}.", indent + 2)
        for egress in lane["egresses"]:
            if egress["reason"]:
                _say(_blocked(egress), indent + 2)
            else:
                _say(f"Egress {egress['egress']}: {egress['sessions']} sessions, nothing holds it.", indent + 2)
        _print_effects(lane["effects"], numbers, indent + 2)
        _print_facts(lane["facts"], indent + 2)
        if lane["limits"]:
            _print_limits(lane["limits"])


def _blocked(egress: dict[str, Any]) -> str:
    to = f" to {egress['mx_host']} [{egress['peer']}]" if egress["mx_host"] else ""
    rule = f", rule {egress['rule']} ({egress['origin'] or 'built in'})" if egress["rule"] else ""
    until = when(egress["until_unix_s"], egress["event"])
    return f"Egress {egress['egress']}{to}: {egress['reason']}{rule}: {egress['detail']}; goes on {until}."


_SPANS: Final = {0: "at a time", 1: "in 1 s", 60: "in 1 min", 300: "in 5 min", 3_600: "in 1 h", 86_400: "in 1 day"}


def _print_limits(limits: list[dict[str, Any]]) -> None:
    print_table(
        "",
        ("limit", "of", "used", "in flight", "most", "share", "counted on", "from"),
        [
            (
                f"{one['what']} {_SPANS.get(one['span_s'], '')}",
                *(one["title"], one["used"], one["in_flight"], one["most"]),
                one["share"] if one["share"] < one["most"] else None,
                *(one["counted_on"], _where(one)),
            )
            for one in limits
        ],
    )


def _where(limit: dict[str, Any]) -> str | None:
    """Where the figure stands, or what has put another in its place."""
    if not limit["because"]:
        return limit["origin"] or None
    given = "no limit" if limit["given"] is None else f"{limit['given']:,}"
    return f"{limit['because']}; {given} in {limit['origin'] or 'the built-in rule'}"


def _print_site(told: dict[str, Any]) -> None:
    here = told["here"]
    _print_held_by(told["held_by"])
    queued = sum(one.recipients - one.leased for one in told["queue"])
    if queued:
        next_s = min((one.next_due_in_s for one in told["queue"] if one.next_due_in_s is not None), default=None)
        due = "" if next_s is None else f", the next due {when(time.time() + next_s)}"
        _say(f"In the queue for {told['what']}: {queued:,} recipients{due}")
    _print_facts(_facts_unsaid(told, [] if here is None else here["lanes"]))
    if here is None:
        return
    if here["asked"]:
        _say(f"{here['asked']:,} recipients wait for the route of {told['what']} (dns).")
    if not here["lanes"]:
        _say(f"Nothing in this node's memory is for {told['what']} (a site's key, MX host or domain).")
    _print_lanes(here["lanes"], told["events"])


def _print_delivery(told: dict[str, Any]) -> None:
    delivery, here = told["delivery"], told["here"]
    _say(
        f"Delivery {delivery.id} ({delivery.name}) is {delivery.state}: {delivery.delivered:,} delivered, "
        f"{delivery.failed:,} failed, {delivery.deferrals:,} deferrals"
    )
    if told["queue"]:
        print_table(
            "In the queue (recipients, by site)",
            ("site", "all", "due", "leased", "held", "next due"),
            [
                (
                    *(one.site, one.recipients, one.due, one.leased, one.held),
                    None if one.next_due_in_s is None else when(time.time() + one.next_due_in_s),
                )
                for one in told["queue"][:SITES_SHOWN]
            ],
        )
    _print_held_by(told["held_by"])
    if here is None:
        return
    if here["reason"]:
        _say(f"It waits ({here['reason']}): {here['detail']}; goes on {when(here['until_unix_s'], here['event'])}.")
    if here["asked"]:
        _say(f"{here['asked']:,} wait for the routes of their domains (dns).")
    rows = [
        ("ready" if one["reason"] == "goes" else one["reason"], one["site"], one["recipients"])
        for one in here["waiting"][:SITES_SHOWN]
    ]
    rows += [("out in sessions", one["site"], one["recipients"]) for one in here["out"][:SITES_SHOWN]]
    if rows:
        print_table("In this node's memory, what holds most first", ("waits for", "site", "recipients"), rows)
    held = [lane for lane in here["lanes"] if lane["state"] == "waits" and lane["reason"] != "window"]
    _print_lanes(held[:3], told["events"])


_PRINTERS: Final = {"recipient": _print_recipients, "delivery": _print_delivery, "site": _print_site}
