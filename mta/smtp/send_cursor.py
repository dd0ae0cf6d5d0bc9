"""What goes out on a session: envelopes that are offered, begun, given back; the end of it all.

`mta.smtp.dialogue.Dialogue` is the other half, with the tables for both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from mta.model.host import HostFact
from mta.model.reply import Reply
from mta.smtp.commands import group, mail_command
from mta.smtp.envelope import Envelope, Kind, Observation, Stage, Verdict
from mta.smtp.extensions import Extensions
from mta.smtp.reply import ReplyParser
from mta.smtp.session_limits import SessionLimits
from mta.smtp.transaction import Transaction

# Local names: an enum member looked up on its class costs more than the comparison it is for.
_MAIL: Final = Stage.MAIL
_RCPT: Final = Stage.RCPT
_BODY: Final = Stage.BODY
_DOT: Final = Stage.DOT
_RSET: Final = Stage.RSET
_QUIT: Final = Stage.QUIT
_IDLE: Final = Stage.IDLE
_NOT_ATTEMPTED: Final = Kind.NOT_ATTEMPTED
RESETS_MAX: Final = 8  # in a row


class SendCursor:
    """The half of a `Dialogue` that puts commands and bodies out, and that decides what the end of a session means."""

    __slots__ = (
        "_ahead",
        "_current",
        "_follows_refusal",
        "_has_finished",
        "_is_body_due",
        "_is_chunking",
        "_is_leaving",
        "_is_pipelining",
        "_is_pipelining_behind_end",
        "_is_quitting",
        "_limits",
        "_needs_reset",
        "_offered",
        "_owed",
        "_parser",
        "_repeated",
        "awaiting",
        "bodies_due",
        "closing_cause",
        "extensions",
        "is_closed",
        "messages_accepted",
        "observations",
        "output",
        "replies_seen",
        "verdicts",
    )

    def __init__(
        self,
        extensions: Extensions,
        *,
        pipelining: bool = True,
        chunking: bool = True,
        pipelines_behind_end: bool = True,
        resets_max: int = RESETS_MAX,
    ) -> None:
        """The switches are for what a server offers and cannot do."""
        self.extensions = extensions
        self.output: list[bytes] = []
        self.verdicts: list[Verdict] = []
        self.bodies_due: list[Envelope] = []
        self.observations: list[Observation] = []  # of the host, worth remembering
        self.messages_accepted = 0
        self.awaiting: Stage | None = None
        self.replies_seen = 0
        self.is_closed = False  # nothing more may be written; set once, with closing_cause
        self.closing_cause = ""  # empty after a QUIT that was answered
        self._limits = SessionLimits(extensions, resets_max)
        self._is_pipelining = pipelining and extensions.pipelining
        self._is_pipelining_behind_end = pipelines_behind_end
        self._is_chunking = self._is_pipelining and chunking and extensions.chunking
        self._parser = ReplyParser()
        self._offered: deque[Envelope] = deque()
        self._current: Transaction | None = None
        self._ahead: Transaction | None = None
        self._owed = 0  # replies to what was output
        self._is_body_due = False  # of _current
        self._needs_reset = False  # the last transaction was left open
        self._is_quitting = False
        self._is_leaving = False  # no further body goes out
        self._has_finished = False  # a transaction came to an end that was no refusal for its order
        self._follows_refusal = False  # the last transaction was refused at its dot
        self._repeated = -1  # token of the envelope that was begun once more

    @property
    def recipients_max(self) -> int | None:
        """Of a transaction; falls when the server says so to RCPT, and is worth remembering per host."""
        return self._limits.recipients_max

    # -- the send cursor ---------------------------------------------------------------------------------------

    def _begin_next(self) -> None:
        """Begin the next envelope; it becomes ``_current``, or ``_ahead`` behind a body."""
        if self._parser.is_mid_reply and not self._owed:
            self._end("protocol error: octets that are not owed")
            return
        limits = self._limits
        if (limits.is_bounded or self._needs_reset) and (cause := limits.forbids(needs_reset=self._needs_reset)):
            self._quit(cause)
            return
        envelope = self._offered[0]
        count = len(envelope.recipients)
        if count > 1 or limits.is_bounded:
            count, cause = limits.allowed(envelope)
            if count == 0:
                self._quit("RCPTDOMAINMAX domains were named")
                return
            limits.count_mail()
            for index in range(count, len(envelope.recipients)):
                self.verdicts.append(Verdict(envelope.token, index, _NOT_ATTEMPTED, _RCPT, None, cause))
        self._offered.popleft()
        transaction = Transaction(envelope, count)
        if self._current is not None:
            transaction.is_behind_end = True
            self._ahead = transaction  # no RSET: it stands behind a dot, which ends a transaction
            self._send_group(transaction)
            return
        self._current = transaction
        if self._needs_reset and not self._may_follow_reset(envelope):
            limits.resets += 1
            self._send(b"RSET\r\n", _RSET)
        else:
            self._begin(transaction)

    def _may_follow_reset(self, envelope: Envelope) -> bool:
        """The envelope's commands may go out in one write with the RSET: no body is among them."""
        return self._is_pipelining and (envelope.is_probe or not self._is_chunking) and envelope.token != self._repeated

    def _begin(self, current: Transaction) -> None:
        if self._is_chunking and not current.envelope.is_probe:
            current.is_chunked = True
            self.awaiting = None
            self._is_body_due = True
            self.bodies_due.append(current.envelope)
        elif self._is_pipelining:
            self._send_group(current)
            self._expect_mail()
        else:
            self._send(mail_command(current.envelope, self.extensions), _MAIL)

    def _send_group(self, transaction: Transaction) -> None:
        envelope = transaction.envelope
        count = transaction.count
        octets = group(envelope, self.extensions, count)
        if self._needs_reset:
            octets = b"RSET\r\n" + octets
        if envelope.is_probe:
            self._owed += count + 1
        else:
            octets += b"DATA\r\n"
            self._owed += count + 2
        transaction.group_bytes = len(octets)
        self.output.append(octets)

    def _expect_mail(self) -> None:
        if self._needs_reset:
            self._needs_reset = False
            self._limits.resets += 1
            self._owed += 1
            self.awaiting = _RSET
        else:
            self.awaiting = _MAIL

    def _send_bdat(self, current: Transaction, segments: Sequence[bytes]) -> None:
        octets = group(current.envelope, self.extensions, current.count)
        current.group_bytes = len(octets)
        self.output.append(octets + b"BDAT %d LAST\r\n" % sum(map(len, segments)))
        self.output.extend(segments)
        current.is_body_out = True
        self._owed += current.count + 2
        self.awaiting = _MAIL

    def _may_follow(self, current: Transaction) -> bool:
        """Another envelope's commands may stand behind the final dot of ``current``."""
        return (
            self._is_pipelining
            and self._is_pipelining_behind_end
            and not self._is_chunking
            and self._ahead is None
            and not current.is_large
        )

    def _send_dot(self, current: Transaction) -> None:
        """End the body; when pipelining, the next envelope's commands go into the same write."""
        self.output.append(b".\r\n")
        self._owed += 1
        self.awaiting = _DOT
        if self._offered and self._may_follow(current):
            self._begin_next()

    def _send(self, command: bytes, stage: Stage) -> None:
        self.output.append(command)
        self._owed += 1
        self.awaiting = stage

    def _send_quit(self) -> None:
        if self._parser.is_mid_reply and not self._owed:
            self._end("protocol error: octets that are not owed")
        elif self.awaiting is None and not self.is_closed:
            self._send(b"QUIT\r\n", _QUIT)

    def _quit(self, cause: str) -> None:
        if self.is_closed or self._is_quitting:
            return
        self._is_quitting = True
        self._give_back(cause)
        if self._current is None:
            self._send_quit()

    # -- what is given back, and the end ----------------------------------------------------------------------

    def _observe(self, fact: HostFact, value: int, cause: str) -> None:
        self.observations.append(Observation(fact, value, cause))

    def _observe_resets(self, cause: str) -> None:
        """RSET was not taken; a first one that is not says nothing of their number."""
        taken = self._limits.resets - 1
        if taken > 0:
            self._observe(HostFact.RESETS, taken, f"{cause}, after {taken} with no message between")

    def _give_back(self, cause: str, reply: Reply | None = None) -> None:
        while self._offered:
            self._not_begun(self._offered.popleft(), cause, reply)

    def _not_begun(self, envelope: Envelope, cause: str, reply: Reply | None = None) -> None:
        for index in range(len(envelope.recipients)):
            self.verdicts.append(Verdict(envelope.token, index, _NOT_ATTEMPTED, _IDLE, reply, cause))

    def _give_up(self, current: Transaction, cause: str, reply: Reply | None = None) -> None:
        """The current transaction, of which nothing is on the wire, comes back, and the session ends."""
        for index in current.undecided():
            self.verdicts.append(Verdict(current.envelope.token, index, _NOT_ATTEMPTED, _IDLE, reply, cause))
        self._current = None
        self.awaiting = None
        self._quit(cause)
        self._send_quit()  # where it was quitting already

    def _end(self, cause: str, unsent_bytes: int = 0, reply: Reply | None = None) -> None:
        """The link ended or must end: the table of `mta.smtp.dialogue`, and nothing else, decides what is open."""
        if self.is_closed:
            return
        if self.awaiting is _RSET:
            self._observe_resets(f"the session ended at RSET ({cause})")
        stage = self.awaiting if self.awaiting is not None else _BODY
        unsent_bytes += sum(map(len, self.output))  # what the caller never took
        for transaction in (self._current, self._ahead):
            if transaction is None:
                continue
            kind = _NOT_ATTEMPTED
            if transaction.is_body_out and transaction.disorder is None:
                behind_dot_bytes = self._ahead.group_bytes if self._ahead is not None else 0
                is_dot_unsent = unsent_bytes > behind_dot_bytes
                kind, stage = (_NOT_ATTEMPTED, _BODY) if is_dot_unsent else (Kind.IN_DOUBT, _DOT)
            elif transaction is self._ahead:
                stage = _MAIL
            token = transaction.envelope.token
            for index in transaction.undecided():
                self.verdicts.append(Verdict(token, index, kind, stage, reply, cause))
        self._current = self._ahead = None
        self._give_back(cause, reply)
        # What was not taken yet must not go out any more.
        self.output.clear()
        self.bodies_due.clear()
        self._is_body_due = False
        self.awaiting = None
        self.is_closed = True
        self.closing_cause = cause
