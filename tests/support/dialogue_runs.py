"""The ways to run a script: into a Dialogue (whole, octet by octet), over a socket, and through aiosmtplib."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiosmtplib

from mta.model.timeouts import SessionTimeouts
from mta.session.link import Link
from mta.session.open import SessionFailed, SessionTarget, open_session
from mta.smtp.dialogue import Dialogue, Envelope, Kind, Verdict
from mta.smtp.envelope import Observation
from mta.smtp.extensions import parse_ehlo
from tests.support.dialogue_script import Script, ScriptedSession, ScriptEnvelope

BRIEF = SessionTimeouts(greeting_s=0.2, command_s=0.2, data_s=0.2, block_s=0.2, dot_s=0.2, quit_s=0.2, idle_s=60)


def outcome(verdict: Verdict) -> str:
    if verdict.kind is Kind.REFUSED:
        assert verdict.reply is not None
        return f"refused {verdict.reply.code} {verdict.stage.name}"
    return verdict.kind.name.lower().replace("_", "-")


def outcomes(script: Script, verdicts: Iterable[Verdict]) -> dict[int, list[str]]:
    """By envelope (from 1) and recipient; fails unless each recipient has exactly one verdict."""
    found: dict[int, list[str]] = {n: ["none"] * len(e.recipients) for n, e in enumerate(script.envelopes, 1)}
    for verdict in verdicts:
        row = found[verdict.token]
        assert row[verdict.recipient] == "none", f"a second verdict: {verdict}"
        row[verdict.recipient] = outcome(verdict)
    return found


def envelopes(script: Script) -> list[Envelope]:
    return [
        Envelope(
            n,
            each.sender.encode(),
            tuple(recipient.encode() for recipient in each.recipients),
            each.size_bytes,
            each.needs_8bit,
        )
        for n, each in enumerate(script.envelopes, 1)
    ]


def run_pure(script: Script, *, bytewise: bool, pipelining: bool) -> tuple[list[Verdict], ScriptedSession]:
    """Server and dialogue face to face, no socket, no time."""
    server = ScriptedSession(script)
    assert not server.greet()[0].then, "a script that ends at the greeting has no dialogue"
    ehlo = server.receive(b"EHLO client.example.com\r\n")[0].octets.decode()
    lines = [line[4:] for line in ehlo.splitlines()] if ehlo.startswith("250") else ["helo only"]
    dialogue = Dialogue(parse_ehlo(lines), pipelining=pipelining)
    for envelope in envelopes(script):
        dialogue.offer(envelope)
    verdicts: list[Verdict] = []
    while not dialogue.is_closed:
        output, dialogue.output = b"".join(dialogue.output), []
        answers = server.receive(output) if output else []
        octets = b"".join(answer.octets for answer in answers)
        step = 1 if bytewise else max(1, len(octets))
        for at in range(0, len(octets), step):
            dialogue.receive(octets[at : at + step])
        then = answers[-1].then if answers else ""
        if then in ("close", "reset"):
            dialogue.connection_lost(then)
        elif not dialogue.output and not dialogue.bodies_due and dialogue.awaiting is not None:
            dialogue.timed_out()  # nobody has anything to say
        due, dialogue.bodies_due = dialogue.bodies_due, []
        for envelope in due:
            dialogue.body(envelope.token, _cut(script.envelopes[envelope.token - 1].body))
        verdicts += dialogue.verdicts
        dialogue.verdicts = []
        if dialogue.is_idle:
            dialogue.quit()
    return verdicts + dialogue.verdicts, server


def _cut(body: bytes) -> list[bytes]:
    return [body[:7], body[7:8], body[8:]]


class _Listener:
    def __init__(self, script: Script) -> None:
        self._script = script
        self.all: list[Verdict] = []
        self.observations: list[Observation] = []
        self.cause: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def verdicts(self, link: Link, verdicts: list[Verdict]) -> None:
        self.all += verdicts

    def bodies_due(self, link: Link, envelopes: list[Envelope]) -> None:
        for envelope in envelopes:
            link.body(envelope.token, _cut(self._script.envelopes[envelope.token - 1].body))

    def observed(self, link: Link, observations: list[Observation]) -> None:
        self.observations += observations

    def closed(self, link: Link, cause: str) -> None:
        self.cause.set_result(cause)

    def faulted(self, link: Link, fault: Exception) -> None:
        self.cause.set_exception(fault)


async def run_socket(script: Script, port: int, *, pipelining: bool) -> list[Verdict] | SessionFailed:
    loop = asyncio.get_running_loop()
    target = SessionTarget("mx.example.test", "127.0.0.1", "client.example.com", port, tls="disabled", timeouts=BRIEF)
    try:
        session = await open_session(target)
    except SessionFailed as failure:
        return failure
    listener = _Listener(script)
    link = Link(session, Dialogue(session.extensions, pipelining=pipelining), listener, BRIEF, loop.time())
    link.offer(envelopes(script))
    while not listener.cause.done():
        if link.is_idle:
            link.close()
        await asyncio.wait([listener.cause], timeout=0.005)
        link.check_deadline(loop.time())
    return listener.all


async def run_oracle(script: Script, port: int) -> dict[int, list[str]] | int:
    """aiosmtplib, one command at a time. Returns outcomes, or the code with which no session came about."""
    found = {n: ["not-attempted"] * len(e.recipients) for n, e in enumerate(script.envelopes, 1)}
    smtp = aiosmtplib.SMTP(
        hostname="127.0.0.1", port=port, local_hostname="client.example.com", timeout=0.2, start_tls=False
    )
    try:
        await smtp.connect()
    except aiosmtplib.SMTPConnectResponseError as error:
        return error.code
    except (aiosmtplib.SMTPConnectError, aiosmtplib.SMTPResponseException):
        return 0
    try:
        try:
            await smtp.ehlo()
        except aiosmtplib.SMTPHeloError as error:
            if error.code < 500:
                return error.code
            await smtp.helo()
        for n, envelope in enumerate(script.envelopes, 1):
            await _oracle_transaction(smtp, envelope, found[n])
        await smtp.quit()
    except (aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPTimeoutError, aiosmtplib.SMTPResponseException):
        pass  # what it means for each recipient is in `found` already
    finally:
        smtp.close()
    return found


async def _oracle_transaction(smtp: aiosmtplib.SMTP, envelope: ScriptEnvelope, row: list[str]) -> None:
    options = ["BODY=8BITMIME"] if envelope.needs_8bit else []
    if envelope.size_bytes and smtp.supports_extension("size"):
        options.append(f"SIZE={envelope.size_bytes}")
    try:
        await smtp.mail(envelope.sender, options=options)
    except aiosmtplib.SMTPSenderRefused as error:
        row[:] = [_refused(error.code, "MAIL")] * len(row)
        return
    accepted = await _oracle_recipients(smtp, envelope, row)
    if not accepted:
        if smtp.is_connected:
            await smtp.rset()
        return
    for index in accepted:
        row[index] = "lost in data"
    try:
        await smtp.data(envelope.body)
        verdict = "accepted"
    except aiosmtplib.SMTPDataError as error:
        verdict = f"refused {error.code}"
    except aiosmtplib.SMTPResponseException as error:
        verdict = f"malformed in data {error.code}"
    for index in accepted:
        row[index] = verdict
    if verdict.startswith("refused") and verdict != "refused 421":
        await smtp.rset()


async def _oracle_recipients(smtp: aiosmtplib.SMTP, envelope: ScriptEnvelope, row: list[str]) -> list[int]:
    """The indices of those accepted; after 421 it closes, and the reply is that of all undecided ones."""
    accepted: list[int] = []
    for index, recipient in enumerate(envelope.recipients):
        try:
            await smtp.rcpt(recipient)
            accepted.append(index)
        except aiosmtplib.SMTPRecipientRefused as error:
            row[index] = _refused(error.code, "RCPT")
            if error.code == 421:
                for other in (*accepted, *range(index, len(row))):
                    row[other] = _refused(421, "RCPT")
                return []
    return accepted


def _refused(code: int, stage: str) -> str:
    return f"refused {code} {stage}" if code > 0 else "not-attempted"
