"""``mta traffic hosts``: what was learnt of MX hosts, and an operator's word to forget it."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Final

import typer

from mta.cli.rules_common import local_user, operator
from mta.cli.terminal import AsJson, Dsn, out, print_json, print_table, shown, with_database
from mta.model.errors import BadInput
from mta.model.host import HostFact
from mta.queue import host_facts
from mta.queue.host_facts import StoredFact

_HOST: Final = re.compile(r"[a-z0-9_.:\[\]-]{1,300}")


def hosts(
    host: Annotated[
        str | None, typer.Argument(help="Of this host only: an address, or an MX host's name.", show_default=False)
    ] = None,
    forget: Annotated[
        str | None, typer.Option(help="Forget what is known of this host: its address or name.", show_default=False)
    ] = None,
    fact: Annotated[HostFact | None, typer.Option(help="With --forget: this fact only.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="So many at most.", min=1, max=100_000)] = 1_000,
    by: Annotated[str, typer.Option(help="Who says so; else your name on this machine.", show_default=False)] = "",
    dsn: Dsn = "",
    as_json: AsJson = False,
) -> None:
    """What MX hosts were seen to do, and is obeyed: since when, until when, and why."""
    if forget is not None:
        if host is not None:
            raise BadInput("HOST", "is not given beside --forget")
        _forget(_host_of(forget, "--forget"), fact, operator(by) if by else local_user(), dsn, as_json)
        return
    if fact is not None:
        raise BadInput("--fact", "goes with --forget")
    wanted = None if host is None else [_host_of(host, "HOST")]
    found = with_database(dsn, lambda conn: host_facts.known(conn, wanted, limit=limit))
    if as_json:
        print_json({"hosts": [fact_as_json(one) for one in found]})
        return
    print_table(
        "Learnt of hosts",
        ("host", "MX host", "fact", "what holds", "since", "until", "cause"),
        [
            (one.host, one.mx_host, one.fact.value, one.fact.said(one.value), one.learnt_at, one.until_at, one.cause)
            for one in found
        ],
    )


def _host_of(text: str, where: str) -> str:
    name = text.strip().lower().rstrip(".")
    if not _HOST.fullmatch(name):
        raise BadInput(where, f"{text!a} is neither an address nor a host name")
    return name


def _forget(host: str, fact: HostFact | None, by: str, dsn: str, as_json: bool) -> None:
    gone = with_database(dsn, lambda conn: host_facts.forget(conn, host, fact, by))
    if not gone:
        what = "" if fact is None else f"{fact.value} of "
        raise BadInput("--forget", f"{what}{host}: nothing is known; what is: mta traffic hosts")
    if as_json:
        print_json({"forgotten": [fact_as_json(one) for one in gone]})
        return
    for one in gone:
        what = f"{one.fact.value}, {one.fact.said(one.value)}"
        out.print(f"forgotten of {shown(one.host)} ({shown(one.mx_host)}): {what}")


def fact_as_json(one: StoredFact) -> dict[str, Any]:
    """A fact as commands print it."""
    return {
        "host": one.host,
        "mx_host": one.mx_host,
        "fact": one.fact.value,
        "value": one.value,
        "said": one.fact.said(one.value),
        "cause": one.cause,
        "node": one.node,
        "times": one.times,
        "learnt_at": str(one.learnt_at),
        "until_at": str(one.until_at),
        "learnt_unix_s": one.learnt_at.timestamp(),
        "until_unix_s": one.until_at.timestamp(),
    }


def fact_words(one: dict[str, Any], until: str) -> str:
    """One sentence on a fact, as a command's JSON or the daemon tells of it. ``until`` is in words."""
    since = datetime.datetime.fromtimestamp(one["learnt_unix_s"]).astimezone()
    is_obeyed = one.get("is_obeyed", True)
    not_obeyed = "" if is_obeyed else f"; rule {one['rule']} says otherwise, and holds"
    over = f"until {until}" if until != "now" else "to be tried without now"
    return (
        f"Learnt of {one['mx_host']} [{one['host']}]: {one['said']}, since {since:%Y-%m-%d %H:%M:%S}, {over}: "
        f"{one['cause']}{not_obeyed} (mta traffic hosts --forget {one['host']})"
    )


def host_names(name: str, here: dict[str, Any] | None) -> list[str]:
    """Names and addresses under which something may be known of a site, an MX host, an address or a domain.

    ``here``: what the daemon says of it; None where there is none.
    """
    names = [name, name.partition("+")[0]]
    if here is not None:
        names += here.get("hosts", [])
        names += [host for lane in here["lanes"] for host in lane["hosts"]]
    return list(dict.fromkeys(names))
