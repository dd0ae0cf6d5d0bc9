"""What a server writes when it cannot deliver on somebody's behalf, read as the product reads it.

Not collected by ``make test``: ``make interop-bounces`` runs it, in a network of its own (`tests.interop.__main__`).
Each server relays messages to a host that refuses their recipients: one is unknown, one has a full mailbox, one is
refused for now; and to a domain that is not there, and a host that is closed. Their return paths lead to the first
host, which keeps what comes back. A report is right when it is read as one about that recipient, with the status that
the host gave, and with the type and category that such a reply has in a session. What its words alone say, without
the part for programs, may be less, and never worse.

``MTA_INTEROP_REPORTS`` names a folder to keep the reports and the log in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from mta.bounces import Kind, read_letter
from mta.bounces.mime import opened
from mta.failure.qualify import Qualifier
from mta.model.failure import OUR_FAULT, Category, FailureType
from mta.settings.bounce_rules import load_bounce_rules
from mta.settings.config import load_settings
from mta.sink.nameserver import ThreadedNameserver
from tests.interop import result
from tests.interop.mail_sink import MailSink, far_network
from tests.interop.place import (
    CLOSED_ADDRESS,
    CLOSED_DOMAIN,
    FAR_ADDRESS,
    FAR_DOMAIN,
    HOST_ADDRESS,
    NO_DOMAIN,
    PORT,
    Place,
    dns_zones,
)
from tests.interop.remote import RemoteServer
from tests.interop.sending import DNS_PORT
from tests.interop.servers import SERVERS


class Case(NamedTuple):
    """A recipient's local part, what the next host says of it, and how a report of that is to be read."""

    name: str
    domain: str
    reply: str
    types: frozenset[FailureType]
    categories: frozenset[Category]
    status: str  # how it begins
    is_later: bool = False  # a report comes only of servers that warn, or give up

    @property
    def address(self) -> str:
        return f"{self.name}@{self.domain}"


# What a server says at last of a recipient that was refused for now is up to it.
_FOR_NOW: Final = frozenset({Category.SYSTEM_ERROR, Category.UNREACHABLE, Category.RATE_LIMITED})
_HARD: Final = frozenset({FailureType.HARD})
_SOFT: Final = frozenset({FailureType.SOFT})
# The last two are told in the server's own words, as no host said anything.
CASES: Final = (
    Case(
        "unknown", FAR_DOMAIN, "550 5.1.1 Nobody has that name here", _HARD, frozenset({Category.USER_UNKNOWN}), "5.1.1"
    ),
    Case("full", FAR_DOMAIN, "552 5.2.2 This mailbox is full", _SOFT, frozenset({Category.MAILBOX_FULL}), "5.2.2"),
    Case("later", FAR_DOMAIN, "451 4.3.0 The store is not here at the moment", _SOFT, _FOR_NOW, "4.", is_later=True),
    Case("nowhere", NO_DOMAIN, "", _HARD | _SOFT, frozenset({Category.INVALID_DOMAIN, Category.UNREACHABLE}), ""),
    Case("closed", CLOSED_DOMAIN, "", _SOFT, frozenset({Category.UNREACHABLE}), "", is_later=True),
)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_what_it_writes_is_read(server: RemoteServer, tmp_path: Path) -> None:
    if server.no_bounces:
        pytest.skip(f"{server.name}: {server.no_bounces}")
    if not server.is_installed:
        pytest.skip(f"{server.name} is not installed")
    place = Place.make(tmp_path, is_relay=True)
    cases = [case for case in CASES if _is_reported_soon(server, case)]
    replies = {case.name: case.reply for case in CASES if case.reply}
    with (
        ThreadedNameserver(dns_zones(), port=DNS_PORT),
        far_network([FAR_ADDRESS, CLOSED_ADDRESS], HOST_ADDRESS) as network,
        MailSink(network, FAR_ADDRESS, PORT, replies) as sink,
        server.running(place),
    ):
        for case in cases:
            server.submit(place, case.name, case.address)
        reports = _reports(server, place, sink, [case.name for case in cases])
        log = server.log(place)
    _keep(server.name, reports, log)
    found, faults = {}, []
    for case in cases:
        raw = reports.get(case.name)
        if raw:
            found[case.name] = _form(raw, case.address)
            faults += _faults_of_words(case, _words_alone(raw))
        faults += _faults(server, case, raw, is_delayed=case.is_later and server.warns)
    about = {"title": server.title, "version": server.version(), "bounces date": f"{datetime.now(UTC):%Y-%m-%d}"}
    result.record(server.name, "bounces", "reports", found, **about)
    result.record(server.name, "bounces", "faults", faults)
    assert not faults, (faults, reports, log[-3000:])


def _is_reported_soon(server: RemoteServer, case: Case) -> bool:
    """A server that neither warns nor gives up in the time of a run has nothing to say of what it tries again."""
    is_later = case.is_later or (case.name == "nowhere" and server.waits_for_domains)
    return not is_later or server.warns or server.gives_up


def _reports(server: RemoteServer, place: Place, sink: MailSink, names: Sequence[str]) -> dict[str, bytes]:
    """The first report for each, when there is one for all or the server's time for it is over."""
    end = time.monotonic() + server.reports_s
    while True:
        found: dict[str, bytes] = {}
        for name in names:
            came = server.came_back(place, sink, name)
            if came:
                found[name] = came[0]
        if len(found) == len(names) or time.monotonic() > end:
            return found
        time.sleep(0.5)


def _keep(server: str, reports: Mapping[str, bytes], log: str) -> None:
    """For somebody who wants to look: they are the servers' own words, and go nowhere else."""
    if folder := os.environ.get("MTA_INTEROP_REPORTS"):
        for name, raw in reports.items():
            Path(folder, f"{server}-{name}.eml").write_bytes(raw)
        Path(folder, f"{server}.log").write_text(log)


def _faults(server: RemoteServer, case: Case, raw: bytes | None, *, is_delayed: bool) -> list[str]:
    """What is not as it should be, a sentence each."""
    if raw is None:
        return [f"{case.name}: no report came"]
    letter = read_letter(raw)
    if letter.kind is not Kind.BOUNCE or len(letter.recipients) != 1:
        return [f"{case.name}: read as {letter.kind} of {[one.address for one in letter.recipients]}"]
    [recipient] = letter.recipients
    evidence = recipient.evidence
    verdict = _qualifier().qualify(evidence)
    told = []
    if recipient.address.lower() != case.address:
        told.append(f"the recipient is {recipient.address!r}")
    if verdict.type not in case.types or verdict.category not in case.categories:
        told.append(f"it is {verdict.type.name}, {verdict.category.label} by {verdict.rule!r}")
    if not (server.loses_status or evidence.enhanced.startswith(case.status)):
        told.append(f"its status is {evidence.enhanced!r}")
    if recipient.is_delayed != is_delayed:
        told.append("a warning" if recipient.is_delayed else "no warning")
    return [f"{case.name}: {one}; {evidence}" for one in told]


def _words_alone(raw: bytes) -> bytes:
    """The report as it would be of a program that knows no RFC 3464: words, and what is returned."""
    mail = message_from_bytes(raw)
    parts = [part for part in mail.get_payload() if isinstance(part, Message)]
    mail.set_payload([part for part in parts if not part.get_content_type().endswith("delivery-status")])
    mail.replace_header("Content-Type", f'multipart/mixed; boundary="{mail.get_boundary()}"')
    return mail.as_bytes()


def _faults_of_words(case: Case, raw: bytes) -> list[str]:
    """Words may say too little. They never give up an address that nobody gave up, or blame us."""
    told = []
    for one in read_letter(raw).recipients:
        verdict = _qualifier().qualify(one.evidence)
        is_harder = verdict.type is FailureType.HARD and FailureType.HARD not in case.types
        if is_harder or verdict.category in OUR_FAULT - case.categories:
            told.append(f"{case.name}: its words alone are {verdict}; {one.evidence}")
    return told


def _qualifier() -> Qualifier:
    return Qualifier(load_bounce_rules(load_settings(None).failures.rules_files))


def _form(raw: bytes, address: str) -> dict[str, object]:
    """How a report is made, without its words: its parts, fields that stand in it, and what they say in codes."""
    mail = message_from_bytes(raw)
    fields: dict[str, str] = {}
    for block in opened(raw).status:
        fields |= block
    recipient = _qualified(raw)
    return {
        "form": mail.get_content_type()
        + "".join(f"; {part.get_content_type()}" for part in mail.get_payload() if isinstance(part, Message)),
        "fields": sorted(fields),
        "action": fields.get("action", ""),
        "status": fields.get("status", "").split(" ")[0],
        "final": "as sent"
        if address in fields.get("final-recipient", "").lower()
        else fields.get("final-recipient", ""),
        "read": recipient,
    }


def _qualified(raw: bytes) -> str:
    """How the product reads it."""
    letter = read_letter(raw)
    said = []
    for one in letter.recipients:
        verdict = _qualifier().qualify(one.evidence)
        delayed = "delayed, " if one.is_delayed else ""
        said.append(
            f"{delayed}{verdict.type.name.lower()}, {verdict.category.label}, {one.evidence.enhanced or 'no status'}"
        )
    return f"{letter.kind}: {'; '.join(said)}"
