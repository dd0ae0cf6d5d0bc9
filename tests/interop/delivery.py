"""One delivery to a real server: good, unknown and refused recipients, in one session and in many, plain and by TLS.

Not collected by ``make test``: ``make interop`` runs it, in a network of its own (`tests.interop.__main__`).
"""

from __future__ import annotations

import asyncio
import datetime
import re
import time
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from mta.model.outcome import Reason, Status
from tests.interop import result
from tests.interop.place import DOMAIN, REFUSED, UNKNOWN, USERS, Place
from tests.interop.remote import RemoteServer, StoredMessage
from tests.interop.sending import RemoteWorld, Sent, recipients
from tests.interop.servers import SERVERS
from tests.support.keys import ed25519_signer, is_verified, records, rsa_signer
from tests.support.letters import date_of
from tests.support.postgres import Database

MANY = 8
RECEIVED = re.compile(rb"^Received:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*", re.MULTILINE)
TRACE_HEADERS = re.compile(rb"(?:[A-Za-z][A-Za-z0-9-]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)*")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("connections", [1, MANY], ids=["one session", "many sessions"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
async def test_each_recipient_has_the_outcome_that_the_server_gave_it(
    server: RemoteServer, tls: bool, connections: int, tmp_path: Path, database: Database
) -> None:
    if not server.is_installed:
        pytest.skip(f"{server.name} is not installed")
    place = await asyncio.to_thread(Place.make, tmp_path)
    rule = ("opportunistic" if server.tls_fails else "verified") if tls else "disabled"
    async with RemoteWorld(tmp_path, database, connections=connections, tls_rule=rule, place=place) as world:
        starting = server.running(place)
        await asyncio.to_thread(starting.__enter__)
        try:
            node = world.sender()
            await node.start()
            began = time.monotonic()
            sent = await world.send()
            lines = await world.outcomes(sent, server.outcomes_s)
            took_s = time.monotonic() - began
            is_complete = len({line["address"] for line in lines}) == len(recipients())
            await (node.stop() if is_complete else node.kill())  # a drain would wait for what the server owes
            stored = await mailboxes(server, place, lines)
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)
        found = {
            **about_outcomes(lines),
            **about_messages(server, sent, stored),
            "seconds": round(took_s, 1),
        }
        found["faults"] = faults(lines, stored, found, signed="" if server.rewrites else "DKIM verified")
        encrypted = len(stored) if rule == "verified" else 0
        if found["received by TLS"] != encrypted:
            found["faults"].append(f"received by TLS: {found['received by TLS']} of {len(stored)}, not {encrypted}")
        name = f"{'TLS' if tls else 'plain'}, {'one session' if connections == 1 else f'{connections} sessions'}"
        result.record(
            server.name,
            "runs",
            name,
            found,
            title=server.title,
            version=server.version(),
            how=server.how,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
        assert not found["faults"], "\n".join(found["faults"]) + f"\nits log: {server.log(place)[-3000:]}"


async def mailboxes(server: RemoteServer, place: Place, lines: list[asyncpg.Record]) -> list[StoredMessage]:
    """What is stored, when all that was accepted is there or some seconds are over: servers queue."""
    accepted = sum(line["status"] == Status.DELIVERED for line in lines)
    end = time.monotonic() + 20
    while True:
        stored = await asyncio.to_thread(lambda: list(server.stored(place)))
        if len(stored) >= accepted or time.monotonic() > end:
            return stored
        await asyncio.sleep(0.3)


def about_outcomes(lines: list[asyncpg.Record]) -> dict[str, object]:
    """Counts by our own log, and the words of the server."""
    by_name = {line["address"].partition("@")[0]: line for line in lines}
    unknown = [by_name[name] for name in UNKNOWN if name in by_name]
    refused = by_name.get(REFUSED)
    return {
        "statuses": dict(Counter(Status(line["status"]).name.lower() for line in lines)),
        "delivered": sum(line["status"] == Status.DELIVERED for line in lines),
        "unknown": sum(is_unknown(line) for line in unknown),
        "unknown says": sorted({said(line) for line in unknown})[:2],
        "refused": Status(refused["status"]).name.lower() if refused else "",
        "refused says": said(refused) if refused else "",
        "in doubt": sum(line["status"] == Status.IN_DOUBT for line in lines),
    }


def is_unknown(line: asyncpg.Record) -> bool:
    return bool(line["status"] == Status.FAILED and line["reason"] == Reason.USER_UNKNOWN)


def said(line: asyncpg.Record) -> str:
    """A reply without what differs from one recipient to the next."""
    text = f"{line['code']} {line['enhanced']} {line['reply']}"
    return re.sub(r"\bnobody\d+\b", "nobody", " ".join(text.split()))[:200]


def about_messages(server: RemoteServer, sent: Sent, stored: list[StoredMessage]) -> dict[str, object]:
    """How many are there, how many octet for octet and with sound signatures, and what was prepended."""
    keys = records(rsa_signer(), ed25519_signer())
    headers: set[str] = set()
    differences: list[str] = []
    same = verified = encrypted = 0
    for user, octets in stored:
        ours = sent.message(user, date_of(octets))
        original = server.original(octets)
        trace = original.removesuffix(ours)
        if original.endswith(ours) and TRACE_HEADERS.fullmatch(trace):
            same += 1
            headers |= {name.decode() for name in re.findall(rb"^([A-Za-z][\w-]*):", trace, re.MULTILINE)}
        else:
            differences.append(f"{user}: {first_difference(ours, original)}")
        verified += is_verified(octets, keys, 0) and is_verified(octets, keys, 1)
        encrypted += any(re.search(rb"TLS|ESMTPS|esmtps", line) for line in RECEIVED.findall(octets)[:2])
    return {
        "stored": len(stored),
        "same octets": same,
        "DKIM verified": verified,
        "received by TLS": encrypted,
        "prepended": sorted(headers),
        "differences": differences[:3],
    }


def first_difference(ours: bytes, theirs: bytes) -> str:
    """The first line of ours that is not in theirs, and what stands where it would be."""
    begin = theirs.find(ours[:20])
    mine = ours.split(b"\r\n")
    its = theirs[max(begin, 0) :].split(b"\r\n")
    for at, (one, other) in enumerate(zip(mine, its, strict=False)):
        if one != other:
            return f"line {at + 1}: {one!r} became {other!r}"
    return f"{len(mine)} lines became {len(its)}; it begins {theirs[:80]!r}"


def faults(
    lines: list[asyncpg.Record], stored: list[StoredMessage], found: dict[str, object], signed: str
) -> list[str]:
    """What is not as it should be, a sentence each; whatever the server did differently, none of it excuses these."""
    told = []
    attempts = Counter(line["address"].partition("@")[0] for line in lines)
    expected = {*USERS, *UNKNOWN, REFUSED}
    if silent := expected - attempts.keys():
        told.append(f"{len(silent)} of {len(expected)} recipients have no outcome")
    if repeated := [name for name, count in attempts.items() if count > 1]:
        told.append(f"{len(repeated)} recipients have more than one line in the log, such as {sorted(repeated)[:3]}")
    for line in lines:
        name = line["address"].partition("@")[0]
        if name in USERS and line["status"] != Status.DELIVERED:
            told.append(f"{name} exists and is {Status(line['status']).name}: {said(line)}")
        if name in UNKNOWN and not is_unknown(line):
            told.append(
                f"{name} is unknown and is {Status(line['status']).name}, {Reason(line['reason']).name}: {said(line)}"
            )
        if name == REFUSED and not (line["status"] in (Status.FAILED, Status.DEFERRED) and line["code"] >= 400):
            told.append(f"{name} was refused at the dot and is {Status(line['status']).name}: {said(line)}")
    copies = Counter(message.user for message in stored)
    delivered = {line["address"].removesuffix(f"@{DOMAIN}") for line in lines if line["status"] == Status.DELIVERED}
    if lost := delivered - copies.keys():
        told.append(f"{len(lost)} are recorded as delivered and not in their mailboxes, such as {sorted(lost)[:3]}")
    if invented := copies.keys() - delivered:
        told.append(f"{len(invented)} are in mailboxes and not recorded as delivered: {sorted(invented)[:3]}")
    if twice := [name for name, count in copies.items() if count > 1]:
        told.append(f"{len(twice)} are in mailboxes more than once: {sorted(twice)[:3]}")
    short = [what for what in ("same octets", signed) if what and found[what] != len(stored)]
    return told + [f"{what}: {found[what]} of {len(stored)}; {found['differences']}" for what in short]
