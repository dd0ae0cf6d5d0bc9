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
ends it, or the QUIT. No body goes behind a RSET that is not answered, so in front of BDAT it goes alone. RSETs with no
message between them are bounded: servers count them (Exim hangs up at the eleventh).

BDAT is not pipelined past a transaction: it would save no round trip over DATA with the next envelope behind the
dot, and a refused BDAT leaves the server's state open (RFC 3030 §2), so RSET must be able to go before the next MAIL.

**State table** (``awaiting`` × reply; 421 is the same everywhere, see ``_service_closing``):

=======  ==================  =======================================  ==================================
awaits   2yz                 3yz                                      4yz, 5yz
=======  ==================  =======================================  ==================================
RSET     MAIL                protocol error                           MAIL (its own reply tells); but
                                                                      QUIT where BDAT is to follow
MAIL     RCPT                protocol error                           all refused; swallow the group's rest
RCPT     accepted (probed)   protocol error                           refused; 452, 552 after one accepted,
                                                                      of code x.5.3 or none: not attempted,
                                                                      next transaction
DATA     protocol error      body due; none accepted: lone dot, but   accepted ones refused, RSET
                             none where MAIL was refused: closed
DOT      accepted            protocol error                           refused
QUIT     closed              closed                                   closed
none     protocol error: a reply that is not owed
=======  ==================  =======================================  ==================================

**Replies about the order of commands** (`mta.smtp.order`, 503 mostly) to MAIL, RCPT, DATA or BDAT speak of the session
and not of a recipient: servers lose or refuse what came with the end of a message, or keep a transaction that they
refused at the dot. The envelope is begun once more behind a RSET that is answered, without what may have confused
the server, and `observations` has what was seen. A second such reply gives it back and ends the session; in a session
where no transaction went well before, it is a refusal like any other, so nothing goes round for ever. RSET after
every refusal at the dot would spare the one 503, and cost all other servers a command that they count.

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
from mta.model.host import HostFact
from mta.model.reply import Reply
from mta.smtp.commands import local_refusal, rcpt_command
from mta.smtp.envelope import Envelope, Kind, Stage, Verdict
from mta.smtp.order import is_about_order
from mta.smtp.send_cursor import SendCursor
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
_ACCEPTED: Final = Kind.ACCEPTED
_REFUSED: Final = Kind.REFUSED
_NOT_ATTEMPTED: Final = Kind.NOT_ATTEMPTED

_TOO_MANY: Final = "too many recipients"
_BEFORE_CONTENT: Final = (_MAIL, _RCPT, _DATA)

# Behind a larger body a round trip saved counts for nothing, and a link that breaks in the middle of one is common:
# when the dot is the last thing written, octets that never left us prove that it did not either.
PIPELINED_BODY_BYTES_MAX: Final = 256 * 1024


class Dialogue(SendCursor):
    """One session's transactions, in the order in which they were offered: the caller's calls, the receive cursor."""

    __slots__ = ()

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
        if not self.takes_body:
            self._end("protocol error: octets that are not owed")
            return
        self._is_body_due = False
        if current.is_chunked:
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

    def leave(self, cause: str) -> None:
        """End the session, whatever it was given: no further body goes out, only replies that are owed are waited for.

        What was not sent comes back as not attempted.
        """
        self._is_leaving = True
        self._quit(cause)
        current = self._current
        if current is None or not self._is_body_due:
            return
        if not current.is_chunked:
            self._end(cause)  # after 354 there is no other way
            return
        self._is_body_due = False
        self.bodies_due.clear()
        self._give_up(current, cause)

    def timed_out(self, unsent_bytes: int = 0) -> None:
        """The reply that ``awaiting`` names did not come in time. ``unsent_bytes`` as for ``connection_lost``."""
        stage = self.awaiting
        name = stage.name if stage is not None else "the caller"
        self._end(f"timed out while waiting for {name}", unsent_bytes)

    def connection_lost(self, cause: str, unsent_bytes: int = 0) -> None:
        """The link is gone; at least the last ``unsent_bytes`` octets of our output never left us (0: not known)."""
        self._end(cause, unsent_bytes)

    def silent_behind_end(self) -> None:
        """The reply did not come for which ``is_behind_end`` waits: the server has lost the commands."""
        cause = "commands that came with the end of a message were not answered"
        self._observe(HostFact.NO_PIPELINING_BEHIND_END, 0, cause)
        self._end(cause)

    @property
    def takes_body(self) -> bool:
        """A body that is due goes out when it is given; else the session is over, or ends by it."""
        return not (self.is_closed or self._parser.is_mid_reply)

    @property
    def is_behind_end(self) -> bool:
        """Waits for the reply to a command that went out with the end of a message; that one is answered."""
        current = self._current
        return current is not None and current.is_behind_end and self.awaiting in _BEFORE_CONTENT

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

    # -- the receive cursor: one method a stage, called for anything but 421 -----------------------------------

    def _on_rset(self, reply: Reply) -> None:
        current = self._current
        assert current is not None
        if 300 <= reply.code < 400:
            self._unexpected(reply)
            return
        is_refused = reply.code >= 400
        if is_refused:
            self._observe_resets(f"RSET was answered by {reply}")
        self._needs_reset = False
        if current.group_bytes:
            self.awaiting = _MAIL  # its commands are on the wire
        elif self._is_leaving:
            self._give_up(current, "the session is being closed")
        elif is_refused and (self._is_chunking or current.envelope.token == self._repeated):
            # The transaction of before may be open still: a body must not go into it.
            self._give_up(current, f"RSET was refused: {reply}", reply)
        else:
            self._begin(current)

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
            self._refuse_all(current, _MAIL, reply)
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
            if self._is_of_session(current, reply):
                current.index = index  # undecided, as are all behind it
                self._refuse_all(current, _RCPT, reply)
                current.index = index + 1
                if not self._is_pipelining:
                    self._finish_transaction()
                    return
            else:
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
            limits = self._limits
            if limits.recipients_max is None or taken < limits.recipients_max:
                limits.recipients_max = taken
            self.verdicts.append(Verdict(token, index, _NOT_ATTEMPTED, _RCPT, reply, _TOO_MANY))
        else:
            self.verdicts.append(Verdict(token, index, _REFUSED, _RCPT, reply, ""))

    def _after_rcpt(self, current: Transaction) -> None:
        if current.envelope.is_probe:
            self._needs_reset = not current.is_refused
            self._finish_transaction()
        elif current.is_chunked:
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
                if self._is_leaving:
                    self._end("the session is being closed")
            elif current.is_refused:
                # This 354 is for a transaction that is not ours: a dot would send its recipients an empty message.
                self._end(f"protocol error: {reply.code} to DATA of a transaction that was refused")
            else:
                # RFC 2920 §3.1: nobody is there to get it; a lone dot ends the empty message, its reply means nothing.
                self._send_dot(current)
        elif code < 300:
            self._unexpected(reply)
        else:
            self._needs_reset = not current.is_refused
            if current.accepted:
                self._refuse_all(current, _DATA, reply)
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
            if accepted:
                self.messages_accepted += 1
                self._limits.resets = 0
            self._follows_refusal = False
            for index in current.pending:  # it refused a command, and took what came behind it: by whose leave?
                verdicts.append(Verdict(token, index, Kind.IN_DOUBT, _DOT, None, "taken out of order"))
            current.pending = ()
        elif code < 400:
            self._unexpected(reply)
            return
        else:
            self._needs_reset = current.is_chunked  # RFC 3030 §2: a failed BDAT leaves the transaction open
            if accepted:
                self._refuse_all(current, _DOT, reply)
                self._follows_refusal = True
        self._finish_transaction()

    def _nothing_awaited(self, reply: Reply) -> None:
        raise LocalFault("a reply is owed, and no stage awaits it")

    def _on_quit(self, reply: Reply) -> None:
        self.is_closed = True
        self.awaiting = None

    def _finish_transaction(self) -> None:
        """The receive cursor leaves ``_current``."""
        ended = self._current
        if ended is not None and ended.disorder is not None:
            self._begin_again(ended, ended.disorder)
        elif ended is not None and not ended.is_unproven:
            self._has_finished = True
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

    # -- replies about the order of commands -------------------------------------------------------------------

    def _is_of_session(self, current: Transaction, reply: Reply) -> bool:
        """The reply is about the order of commands, and our ways or what came before may be the cause.

        In lock-step, in a session that never worked, there is nothing to blame: it is a refusal.
        """
        return (self._has_finished or current.group_bytes > 0) and is_about_order(reply)

    def _begin_again(self, ended: Transaction, reply: Reply) -> None:
        """A transaction that met the session's disorder: once more behind a RSET, or back to the caller."""
        self._learn_order(ended, reply)
        self._needs_reset = True
        envelope = ended.envelope
        token = envelope.token
        pending, ended.pending = ended.pending, ()
        may_repeat = token != self._repeated and not ended.is_body_out and not self._is_quitting
        if may_repeat and len(pending) == len(envelope.recipients):
            self._repeated = token
            self._offered.appendleft(envelope)
            return
        for index in pending:
            self.verdicts.append(Verdict(token, index, _NOT_ATTEMPTED, ended.disorder_stage, reply, ""))
        if token == self._repeated:
            self._is_quitting = True
            self._give_back(f"the server is out of order: {reply}", reply)

    def _learn_order(self, ended: Transaction, reply: Reply) -> None:
        """What of our ways the server does not bear is left for the rest of the session, and told."""
        said = f"{reply} in reply to {ended.disorder_stage.name}"
        if ended.is_chunked and ended.disorder_stage is _DOT:
            self._is_chunking = False
            self._observe(HostFact.NO_CHUNKING, 0, said)
        elif self._follows_refusal:
            self._follows_refusal = False  # it kept the transaction that it had refused: RSET is all it takes
        elif ended.is_behind_end:
            self._is_pipelining_behind_end = False
            self._observe(HostFact.NO_PIPELINING_BEHIND_END, 0, f"{said}, which came with the end of a message")
        elif ended.group_bytes:
            self._is_pipelining = self._is_chunking = False
            self._observe(HostFact.NO_PIPELINING, 0, f"{said}, which came with other commands")

    # -- refusals and ends -------------------------------------------------------------------------------------

    def _refuse_all(self, current: Transaction, stage: Stage, reply: Reply) -> None:
        """The reply decides all that is undecided; what else the group's replies say does not count."""
        undecided = tuple(current.undecided())
        if (stage is not _DOT or current.is_chunked) and self._is_of_session(current, reply):
            current.disorder = reply
            current.disorder_stage = stage
            current.pending = undecided
        else:
            current.is_unproven = not self._has_finished and is_about_order(reply)
            token = current.envelope.token
            for index in undecided:
                self.verdicts.append(Verdict(token, index, _REFUSED, stage, reply, ""))
        current.accepted = []
        current.is_refused = True

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
        if current is not None and current.disorder is None and stage is not None and stage is not _RSET:
            self._refuse_all(current, stage, reply)
            self._current = None
        self._end(f"the server closed the session: {reply}", reply=reply)


# By the stage awaited. A list, because an enum member is quick as an index and slow as a key.
_ON_REPLY: Final[list[Callable[[Dialogue, Reply], None]]] = [Dialogue._nothing_awaited] * len(Stage)
_ON_REPLY[_RSET] = Dialogue._on_rset
_ON_REPLY[_MAIL] = Dialogue._on_mail
_ON_REPLY[_RCPT] = Dialogue._on_rcpt
_ON_REPLY[_DATA] = Dialogue._on_data
_ON_REPLY[_DOT] = Dialogue._on_dot
_ON_REPLY[_QUIT] = Dialogue._on_quit
