"""Mail transactions on a greeted session, as a machine without a socket (RFC 5321 §3.3, RFC 2920, RFC 3030).

The driver's duty: after every call take ``output`` (write it), ``verdicts`` and ``bodies_due`` by swapping in empty
lists; answer each of ``bodies_due`` by ``body()``; call ``timed_out()`` when the reply that ``awaiting`` names did not
come in time, ``connection_lost()`` when the link ended; close the transport once ``is_closed``.

**Two cursors.** ``_current`` is the transaction at the receive cursor: ``awaiting`` and its ``index`` say which reply
comes next. ``_ahead`` is the one at the send cursor, begun behind the final dot of ``_current``. There are never more
than these two, and only ``_current`` can have a body out, so at most one envelope of a session is ever in doubt.

=====================  =============================================  =====================================
server offers          one write holds                                then waits for
=====================  =============================================  =====================================
nothing                one command, or one body                       its reply
PIPELINING             MAIL, RCPT..., DATA                            354; the caller's ``body()``
                       body, dot, *next* MAIL, RCPT..., DATA          all their replies
PIPELINING, CHUNKING   (nothing; the body is due first)               the caller's ``body()``
                       MAIL, RCPT..., BDAT n LAST, body               all their replies
PIPELINING, a probe    MAIL, RCPT...                                  all their replies
=====================  =============================================  =====================================

A probe leaves its transaction open, as one whose recipients were all refused does: the RSET in front of the next MAIL
ends it, or the QUIT.

BDAT is not pipelined past a transaction: it would save no round trip over DATA with the next envelope behind the
dot, and a refused BDAT leaves the server's state open (RFC 3030 §2), so RSET must be able to go before the next MAIL.

**State table** (``awaiting`` × reply; 421 is the same everywhere, see ``_service_closing``):

=======  ==================  =======================================  ==================================
awaits   2yz                 3yz                                      4yz, 5yz
=======  ==================  =======================================  ==================================
RSET     MAIL                protocol error                           MAIL (its own reply tells)
MAIL     RCPT                protocol error                           all refused; swallow the group's rest
RCPT     accepted (probed)   protocol error                           refused; 452, 552 after one accepted,
                                                                      of code x.5.3 or none: not attempted,
                                                                      next transaction
DATA     protocol error      body due; none accepted: lone dot        accepted ones refused, RSET
DOT      accepted            protocol error                           refused
QUIT     closed              closed                                   closed
none     protocol error: a reply that is not owed
=======  ==================  =======================================  ==================================

**When the link ends**, by loss, time-out or protocol error, ``_end`` is the one place that decides; recipients
that were refused before keep their refusal.

==============================================  ====================================================
the envelope                                    its undecided recipients
==============================================  ====================================================
was offered only                                NOT_ATTEMPTED, stage IDLE
has commands out, or its body is due            NOT_ATTEMPTED, at the stage awaited
has its final dot (last BDAT octet) out         IN_DOUBT, stage DOT
the same, but the dot provably never left us    NOT_ATTEMPTED, stage BODY (``unsent_bytes``)
==============================================  ====================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Final

from mta.model.errors import LocalFault, RemoteProtocolError
from mta.model.reply import Reply
from mta.smtp.commands import group, local_refusal, mail_command, rcpt_command
from mta.smtp.envelope import Envelope, Kind, Stage, Verdict
from mta.smtp.extensions import Extensions
from mta.smtp.reply import ReplyParser
from mta.smtp.transaction import Transaction
from mta.smtp.transparency import normalise, stuff

__all__ = ("Dialogue", "Envelope", "Kind", "Stage", "Verdict")

# Local names: an enum member looked up on its class costs more than the comparison it is for.
_MAIL: Final = Stage.MAIL
_RCPT: Final = Stage.RCPT
_DATA: Final = Stage.DATA
_BODY: Final = Stage.BODY
_DOT: Final = Stage.DOT
_RSET: Final = Stage.RSET
_QUIT: Final = Stage.QUIT
_IDLE: Final = Stage.IDLE
_ACCEPTED: Final = Kind.ACCEPTED
_REFUSED: Final = Kind.REFUSED
_NOT_ATTEMPTED: Final = Kind.NOT_ATTEMPTED

_TOO_MANY: Final = "too many recipients"
_TOO_MANY_DOMAINS: Final = "too many domains"

# Behind a larger body a round trip saved counts for nothing, and a link that breaks in the middle of one is common:
# when the dot is the last thing written, octets that never left us prove that it did not either.
PIPELINED_BODY_BYTES_MAX: Final = 256 * 1024


class Dialogue:
    """One session's transactions, in the order in which they were offered."""

    __slots__ = (
        "_ahead",
        "_current",
        "_domains",
        "_domains_max",
        "_is_body_due",
        "_is_chunking",
        "_is_pipelining",
        "_is_quitting",
        "_mails_left",
        "_needs_reset",
        "_offered",
        "_owed",
        "_parser",
        "awaiting",
        "bodies_due",
        "closing_cause",
        "extensions",
        "is_closed",
        "output",
        "recipients_max",
        "replies_seen",
        "verdicts",
    )

    def __init__(self, extensions: Extensions, *, pipelining: bool = True, chunking: bool = True) -> None:
        self.extensions = extensions
        self.output: list[bytes] = []
        self.verdicts: list[Verdict] = []
        self.bodies_due: list[Envelope] = []
        self.awaiting: Stage | None = None
        self.replies_seen = 0
        self.is_closed = False  # nothing more may be written; set once, with closing_cause
        self.closing_cause = ""  # empty after a QUIT that was answered
        self.recipients_max = extensions.rcpt_max  # falls when the server says so to RCPT; worth remembering per host
        self._is_pipelining = pipelining and extensions.pipelining
        self._is_chunking = self._is_pipelining and chunking and extensions.chunking
        self._mails_left = extensions.mail_max
        self._domains_max = extensions.rcpt_domain_max
        self._domains: set[bytes] = set()  # that were named, where they are limited
        self._parser = ReplyParser()
        self._offered: deque[Envelope] = deque()
        self._current: Transaction | None = None
        self._ahead: Transaction | None = None
        self._owed = 0  # replies to what was output
        self._is_body_due = False  # of _current
        self._needs_reset = False  # the last transaction was left open
        self._is_quitting = False

    # -- caller -> dialogue ------------------------------------------------------------------------------------

    def offer(self, envelope: Envelope) -> None:
        """Queue an envelope; it is begun as soon as the protocol allows, possibly now."""
        if self._is_quitting or self.is_closed:
            self._not_begun(envelope, self.closing_cause or "the session is being closed")
            return
        refusal = local_refusal(envelope, self.extensions)
        if refusal is not None:
            cause = f"local: {refusal.text}"
            for index in range(len(envelope.recipients)):
                self.verdicts.append(Verdict(envelope.token, index, _REFUSED, _MAIL, refusal, cause))
            return
        self._offered.append(envelope)
        current = self._current
        if current is None or (self.awaiting is _DOT and self._may_follow(current)):
            self._begin_next()

    def body(self, token: int, segments: Sequence[bytes], *, is_transparent: bool = False) -> None:
        """Answer an entry of ``bodies_due``; from here on the envelope can be in doubt.

        ``is_transparent`` promises lines that end in CRLF, none that starts with a dot, and a CRLF at the end: the
        segments go out as they are. Nothing happens when the session has ended meanwhile: the verdict is given.
        """
        if self.is_closed:
            return
        current = self._current
        if current is None or not self._is_body_due or current.envelope.token != token:
            raise LocalFault(f"a body for envelope {token}, which is not due")
        if self._parser.is_mid_reply:
            self._end("protocol error: octets that are not owed")
            return
        self._is_body_due = False
        if self._is_chunking:
            self._send_bdat(current, segments if is_transparent else normalise(segments))
            return
        if not is_transparent:
            segments = stuff(segments)
        self.output.extend(segments)
        current.is_body_out = True
        current.is_large = sum(map(len, segments)) > PIPELINED_BODY_BYTES_MAX
        self._send_dot(current)

    def receive(self, data: bytes) -> None:
        """Take octets of the server; never raises for anything that they say."""
        if self.is_closed:
            return
        try:
            replies = self._parser.feed(data)
        except RemoteProtocolError as fault:
            self._end(f"protocol error: {fault}")
            return
        owed = self._owed
        count = len(replies)
        self.replies_seen += count
        # Answers to commands that these very replies let us send cannot be among them (threats C5).
        surplus = replies[owed:] if count > owed else None
        if surplus:
            del replies[owed:]
        self._owed -= len(replies)
        on_reply = _ON_REPLY
        for reply in replies:
            if reply.code == 421:
                self._service_closing(reply)
            else:
                on_reply[self.awaiting](self, reply)  # type: ignore[index]  # owed: awaiting is a stage
            if self.is_closed:
                return
        if surplus:
            self._unowed(surplus[0])
        elif self._parser.fault is not None:
            self._end(f"protocol error: {self._parser.fault}")
        elif self._parser.is_mid_reply and count == owed and self._owed:
            self._end("protocol error: octets ahead of the command they would answer")

    def recall(self, tokens: Container[int] | None = None) -> None:
        """Take back what is not begun on the wire: all of it, or those with these tokens."""
        kept: deque[Envelope] = deque()
        for envelope in self._offered:
            if tokens is None or envelope.token in tokens:
                self._not_begun(envelope, "recalled")
            else:
                kept.append(envelope)
        self._offered = kept

    def quit(self) -> None:
        """End the session after what is under way; offered envelopes come back. May be called again."""
        self._quit("the session is being closed")

    def _quit(self, cause: str) -> None:
        if self.is_closed or self._is_quitting:
            return
        self._is_quitting = True
        self._give_back(cause)
        if self._current is None:
            self._send_quit()

    def timed_out(self, unsent_bytes: int = 0) -> None:
        """The reply that ``awaiting`` names did not come in time. ``unsent_bytes`` as for ``connection_lost``."""
        stage = self.awaiting
        name = stage.name if stage is not None else "the caller"
        self._end(f"timed out while waiting for {name}", unsent_bytes)

    def connection_lost(self, cause: str, unsent_bytes: int = 0) -> None:
        """The link is gone; at least the last ``unsent_bytes`` octets of our output never left us (0: not known)."""
        self._end(cause, unsent_bytes)

    @property
    def is_idle(self) -> bool:
        """Open, and nothing offered or under way."""
        return self._current is None and not self._offered and not self.is_closed and not self._is_quitting

    @property
    def is_quitting(self) -> bool:
        """Begins nothing any more."""
        return self._is_quitting or self.is_closed

    @property
    def load(self) -> int:
        """Envelopes offered or under way."""
        return len(self._offered) + (self._current is not None) + (self._ahead is not None)

    # -- the send cursor ---------------------------------------------------------------------------------------

    def _begin_next(self) -> None:
        """Begin the next envelope; it becomes ``_current``, or ``_ahead`` behind a body."""
        if self._parser.is_mid_reply and not self._owed:
            self._end("protocol error: octets that are not owed")
            return
        if self._mails_left is not None:
            if self._mails_left == 0:
                self._quit("MAILMAX transactions were sent")
                return
            self._mails_left -= 1
        envelope = self._offered.popleft()
        count = len(envelope.recipients)
        if count > 1 or self._domains_max is not None:
            count = self._count_allowed(envelope)
            if count == 0:
                self._offered.appendleft(envelope)
                self._quit("RCPTDOMAINMAX domains were named")
                return
        if self._is_chunking and not envelope.is_probe:
            self._current = Transaction(envelope, count, 0)
            self._is_body_due = True
            self.bodies_due.append(envelope)
        elif self._is_pipelining:
            self._send_group(envelope, count)
        else:
            self._current = Transaction(envelope, count, 0)
            if self._needs_reset:
                self._send(b"RSET\r\n", _RSET)
            else:
                self._send(mail_command(envelope, self.extensions), _MAIL)

    def _count_allowed(self, envelope: Envelope) -> int:
        """How many recipients, the first ones, its transaction may have; the others get their verdict.

        0: the session may name no domain of it (and nobody has a verdict yet).
        """
        count = len(envelope.recipients)
        cause = _TOO_MANY
        if self.recipients_max is not None:
            count = min(count, self.recipients_max)
        if self._domains_max is not None:
            named = self._name_domains(envelope.recipients[:count])
            if named < count:
                count, cause = named, _TOO_MANY_DOMAINS
        if count:
            for index in range(count, len(envelope.recipients)):
                self.verdicts.append(Verdict(envelope.token, index, _NOT_ATTEMPTED, _RCPT, None, cause))
        return count

    def _name_domains(self, recipients: Sequence[bytes]) -> int:
        """How many of them, the first ones, name no domain too many for the session (RFC 9422 §4.3)."""
        assert self._domains_max is not None
        for index, recipient in enumerate(recipients):
            domain = recipient[recipient.rfind(b"@") + 1 :].lower()
            if domain not in self._domains:
                if len(self._domains) == self._domains_max:
                    return index
                self._domains.add(domain)
        return len(recipients)

    def _group(self, envelope: Envelope, count: int) -> bytes:
        octets = group(envelope, self.extensions, count)
        return b"RSET\r\n" + octets if self._needs_reset else octets

    def _send_group(self, envelope: Envelope, count: int) -> None:
        octets = self._group(envelope, count)
        if envelope.is_probe:
            self._owed += count + 1
        else:
            octets += b"DATA\r\n"
            self._owed += count + 2
        transaction = Transaction(envelope, count, len(octets))
        self.output.append(octets)
        if self._current is None:
            self._current = transaction
            self._expect_mail()
        else:
            self._ahead = transaction  # no RSET: it stands behind a dot, which ends a transaction

    def _expect_mail(self) -> None:
        if self._needs_reset:
            self._needs_reset = False
            self._owed += 1
            self.awaiting = _RSET
        else:
            self.awaiting = _MAIL

    def _send_bdat(self, current: Transaction, segments: Sequence[bytes]) -> None:
        octets = self._group(current.envelope, current.count)
        self.output.append(octets + b"BDAT %d LAST\r\n" % sum(map(len, segments)))
        self.output.extend(segments)
        current.is_body_out = True
        self._owed += current.count + 2
        self._expect_mail()

    def _may_follow(self, current: Transaction) -> bool:
        """Another envelope's commands may stand behind the final dot of ``current``."""
        return self._is_pipelining and not self._is_chunking and self._ahead is None and not current.is_large

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
        elif self.awaiting is None:
            self._send(b"QUIT\r\n", _QUIT)

    # -- the receive cursor: one method a stage, called for anything but 421 -----------------------------------

    def _on_rset(self, reply: Reply) -> None:
        if 300 <= reply.code < 400:
            self._unexpected(reply)
            return
        self._needs_reset = False
        self.awaiting = _MAIL
        if not self._is_pipelining and self._current is not None:
            self._send(mail_command(self._current.envelope, self.extensions), _MAIL)

    def _on_mail(self, reply: Reply) -> None:
        current = self._current
        assert current is not None
        code = reply.code
        if code < 300:
            self.awaiting = _RCPT
            if not self._is_pipelining:
                self._send(rcpt_command(current.envelope.recipients[0]), _RCPT)
        elif code < 400:
            self._unexpected(reply)
        else:
            self._refuse(current, _MAIL, reply)
            current.is_refused = True
            self.awaiting = _RCPT
            if not self._is_pipelining:
                self._finish_transaction()

    def _on_rcpt(self, reply: Reply) -> None:
        current = self._current
        assert current is not None
        code = reply.code
        index = current.index
        current.index = index + 1
        if code < 300:
            if current.envelope.is_probe:
                if not current.is_refused:
                    current.probed_count += 1
                    self.verdicts.append(Verdict(current.envelope.token, index, Kind.PROBED, _RCPT, reply, ""))
            elif not current.is_refused:
                current.accepted.append(index)
        elif code < 400:
            current.index = index
            self._unexpected(reply)
            return
        elif not current.is_refused:
            self._refused_recipient(current, index, reply)
        if current.index == current.count:
            self._after_rcpt(current)
        elif not self._is_pipelining:
            self._send(rcpt_command(current.envelope.recipients[index + 1]), _RCPT)

    def _refused_recipient(self, current: Transaction, index: int, reply: Reply) -> None:
        token = current.envelope.token
        # RFC 5321 §4.5.3.1.10. Another enhanced code speaks of the recipient itself, as 4.2.2 of a full mailbox.
        is_of_count = not reply.enhanced or reply.enhanced.endswith(".5.3")
        taken = len(current.accepted) + current.probed_count
        if reply.code in (452, 552) and taken and is_of_count:
            if self.recipients_max is None or taken < self.recipients_max:
                self.recipients_max = taken
            self.verdicts.append(Verdict(token, index, _NOT_ATTEMPTED, _RCPT, reply, _TOO_MANY))
        else:
            self.verdicts.append(Verdict(token, index, _REFUSED, _RCPT, reply, ""))

    def _after_rcpt(self, current: Transaction) -> None:
        if current.envelope.is_probe:
            self._needs_reset = not current.is_refused
            self._finish_transaction()
        elif self._is_chunking:
            self.awaiting = _DOT
        elif self._is_pipelining:
            self.awaiting = _DATA
        elif current.accepted:
            self._send(b"DATA\r\n", _DATA)
        else:
            self._needs_reset = True
            self._finish_transaction()

    def _on_data(self, reply: Reply) -> None:
        current = self._current
        assert current is not None
        code = reply.code
        if 300 <= code < 400:
            if current.accepted:
                self.awaiting = None
                self._is_body_due = True
                self.bodies_due.append(current.envelope)
            else:
                # RFC 2920 §3.1: nobody is there to get it; a lone dot ends the empty message, its reply means nothing.
                self._send_dot(current)
        elif code < 300:
            self._unexpected(reply)
        else:
            self._refuse(current, _DATA, reply)
            self._needs_reset = not current.is_refused
            self._finish_transaction()

    def _on_dot(self, reply: Reply) -> None:
        current = self._current
        assert current is not None
        code = reply.code
        accepted = current.accepted
        if code < 300:
            token = current.envelope.token
            verdicts = self.verdicts
            for index in accepted:
                verdicts.append(Verdict(token, index, _ACCEPTED, _DOT, reply, ""))
        elif code < 400:
            self._unexpected(reply)
            return
        else:
            self._refuse(current, _DOT, reply)
            self._needs_reset = self._is_chunking  # RFC 3030 §2: a failed BDAT leaves the transaction open
        self._finish_transaction()

    def _nothing_awaited(self, reply: Reply) -> None:
        raise LocalFault("a reply is owed, and no stage awaits it")

    def _on_quit(self, reply: Reply) -> None:
        self.is_closed = True
        self.awaiting = None

    def _finish_transaction(self) -> None:
        """The receive cursor leaves ``_current``."""
        ahead = self._ahead
        if ahead is not None:
            self._current, self._ahead = ahead, None
            self.awaiting = _MAIL
            return
        self._current = None
        self.awaiting = None
        if self._offered:
            self._begin_next()
        elif self._is_quitting:
            self._send_quit()

    # -- refusals and ends -------------------------------------------------------------------------------------

    def _refuse(self, transaction: Transaction, stage: Stage, reply: Reply) -> None:
        token = transaction.envelope.token
        for index in transaction.undecided():
            self.verdicts.append(Verdict(token, index, _REFUSED, stage, reply, ""))
        transaction.accepted = []
        transaction.index = transaction.count if stage is not _MAIL else transaction.index

    def _unexpected(self, reply: Reply) -> None:
        name = self.awaiting.name if self.awaiting is not None else "nothing"
        self._end(f"protocol error: {reply.code} in reply to {name}")

    def _unowed(self, reply: Reply) -> None:
        if reply.code == 421:  # RFC 5321 §3.8: allowed at any time, for instance when we were idle for too long
            self._end(f"the server closed the session: {reply}", reply=reply)
        else:
            self._end(f"protocol error: a reply that is not owed: {str(reply)[:200]}")

    def _service_closing(self, reply: Reply) -> None:
        """421 in reply to a command: it decides that command's envelope, and no other can have been taken."""
        stage = self.awaiting
        current = self._current
        if current is not None and stage is _RSET:
            current.is_body_out = False  # BDAT stood behind a command that was not carried out
        elif current is not None and stage is not None:
            self._refuse(current, stage, reply)
            self._current = None
        self._end(f"the server closed the session: {reply}", reply=reply)

    def _give_back(self, cause: str, reply: Reply | None = None) -> None:
        while self._offered:
            self._not_begun(self._offered.popleft(), cause, reply)

    def _not_begun(self, envelope: Envelope, cause: str, reply: Reply | None = None) -> None:
        for index in range(len(envelope.recipients)):
            self.verdicts.append(Verdict(envelope.token, index, _NOT_ATTEMPTED, _IDLE, reply, cause))

    def _end(self, cause: str, unsent_bytes: int = 0, reply: Reply | None = None) -> None:
        """The link ended or must end: the table in this module's head, and nothing else, decides what is open."""
        if self.is_closed:
            return
        stage = self.awaiting if self.awaiting is not None else _BODY
        unsent_bytes += sum(map(len, self.output))  # what the caller never took
        for transaction in (self._current, self._ahead):
            if transaction is None:
                continue
            kind = _NOT_ATTEMPTED
            if transaction.is_body_out:
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


# By the stage awaited. A list, because an enum member is quick as an index and slow as a key.
_ON_REPLY: Final[list[Callable[[Dialogue, Reply], None]]] = [Dialogue._nothing_awaited] * len(Stage)
_ON_REPLY[_RSET] = Dialogue._on_rset
_ON_REPLY[_MAIL] = Dialogue._on_mail
_ON_REPLY[_RCPT] = Dialogue._on_rcpt
_ON_REPLY[_DATA] = Dialogue._on_data
_ON_REPLY[_DOT] = Dialogue._on_dot
_ON_REPLY[_QUIT] = Dialogue._on_quit
