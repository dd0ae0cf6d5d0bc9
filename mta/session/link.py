"""A live transport under a dialogue: octets in, octets out, limits kept, one listener told."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Sequence
from typing import Final, Protocol

from mta.model.timeouts import SessionTimeouts
from mta.session.open import OpenSession
from mta.smtp.dialogue import Dialogue, Envelope, Stage, Verdict
from mta.smtp.envelope import Observation

# One body and one group of commands is the most that a dialogue puts out before it needs an answer, so these marks
# bound no memory: they tell us whether the far end takes what we write. With a low mark of zero "still paused" proves
# that the last octet has not left us, which tells a message broken off from one in doubt.
WRITE_BUFFER_HIGH_BYTES: Final = 64 * 1024
WRITE_BUFFER_LOW_BYTES: Final = 0

# Commands that a host loses are noticed by its silence: after so long, and so many times the longest that it took for
# anything else. What is sent again for it was not begun, so a host that was only slow loses nothing but our haste.
LOST_AFTER_S: Final = 3.0
LOST_AFTER_TIMES: Final = 10


class LinkListener(Protocol):
    """Who is told. Each call may call the link back; what that brings comes in a later call, never inside this one."""

    def verdicts(self, link: Link, verdicts: list[Verdict]) -> None: ...

    def bodies_due(self, link: Link, envelopes: list[Envelope]) -> None:
        """Answer each by ``link.body``, now or later; nothing of it is on the wire yet."""

    def observed(self, link: Link, observations: list[Observation]) -> None:
        """The host was seen to do what later sessions with it should know."""

    def closed(self, link: Link, cause: str) -> None:
        """The last call, exactly once. ``cause`` is empty after an orderly QUIT."""

    def faulted(self, link: Link, fault: Exception) -> None:
        """Instead of ``closed``: our own code failed in this session. The connection is gone, and so are verdicts."""


class Link(asyncio.Protocol):
    """Drives one Dialogue on one transport. All calls from the loop's thread.

    Time is handed in: the owner calls ``check_deadline`` about once a second for all its links, and there is no timer.
    A limit can so be overrun by the owner's period, never undercut.
    """

    def __init__(
        self, session: OpenSession, dialogue: Dialogue, listener: LinkListener, timeouts: SessionTimeouts, now_s: float
    ) -> None:
        """Take over ``session``; raises SessionFailed if the server spoke or left since it was opened."""
        self.dialogue = dialogue
        self._listener = listener
        self._timeouts = timeouts
        self._limits_s = {
            Stage.MAIL: timeouts.command_s,
            Stage.RCPT: timeouts.command_s,
            Stage.RSET: timeouts.command_s,
            Stage.DATA: timeouts.data_s,
            Stage.DOT: timeouts.dot_s,
            Stage.QUIT: timeouts.quit_s,
        }
        self._is_collecting = False
        self._is_paused = False
        self._is_closed = False
        self._opened_s = now_s
        self._waiting_mark: tuple[int, Stage | None, int] = (0, None, 0)  # replies, stage, load
        self._waiting_since_s = now_s
        self._waited_s = 0.0  # for the reply that is awaited, when it was last looked at
        self._slowest_s = 0.0  # of the replies so far, as far as the owner's period shows it
        self._blocked_bytes = 0
        self._blocked_since_s = now_s
        self._closing_since_s: float | None = None
        self._is_tls = session.is_tls
        self._transport = session.hand_over(self)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_HIGH_BYTES, WRITE_BUFFER_LOW_BYTES)

    # -- the owner's calls -------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """May be offered envelopes."""
        return not self._is_closed and not self.dialogue.is_quitting

    @property
    def is_idle(self) -> bool:
        return self.dialogue.is_idle

    @property
    def load(self) -> int:
        """Envelopes offered or under way."""
        return self.dialogue.load

    def offer(self, envelopes: Iterable[Envelope]) -> None:
        """Queue envelopes; on a link that is closing they come back at once as not attempted."""
        dialogue = self.dialogue
        for envelope in envelopes:
            dialogue.offer(envelope)
        self._collect()

    def body(self, token: int, segments: Sequence[bytes], *, is_transparent: bool = False) -> None:
        """Answer an entry of ``bodies_due``; without effect if the link ended meanwhile."""
        self.dialogue.body(token, segments, is_transparent=is_transparent)
        self._collect()

    def recall(self, tokens: Container[int] | None = None) -> None:
        """Take back envelopes that are not begun."""
        self.dialogue.recall(tokens)
        self._collect()

    def close(self) -> None:
        """QUIT after what is under way; ``closed`` follows at the latest ``quit_s`` after the QUIT."""
        self.dialogue.quit()
        self._collect()

    def leave(self, cause: str) -> None:
        """QUIT when the replies that are owed are here: no further body goes out, what was not sent comes back."""
        self.dialogue.leave(cause)
        self._collect()

    def abort(self, cause: str) -> None:
        """Drop the connection now; what is open gets its verdicts as for a lost link."""
        self._lost(cause)

    def drop(self) -> None:
        """Drop the connection, and call the listener never again."""
        self._is_closed = True
        self._transport.abort()

    def check_deadline(self, now_s: float) -> None:
        """Compare with the limits; to be called about once a second with the loop's monotonic time."""
        if self._is_closed:
            return
        dialogue = self.dialogue
        if dialogue.is_closed:
            if self._closing_since_s is None:
                self._closing_since_s = now_s
            elif now_s - self._closing_since_s >= self._timeouts.quit_s:
                self._transport.abort()
            return
        age_s = now_s - self._opened_s
        if age_s >= self._timeouts.session_s:
            self.close()
            # A far end that makes each limit by a second must not hold us for ever (threats C8).
            if age_s >= self._timeouts.session_s + self._timeouts.dot_s:
                self._timed_out()
                return
        mark = (dialogue.replies_seen, dialogue.awaiting, dialogue.load if dialogue.awaiting is None else 0)
        if mark != self._waiting_mark:
            self._waiting_mark = mark
            self._waiting_since_s = now_s
            self._slowest_s = max(self._slowest_s, self._waited_s)
            self._waited_s = 0.0
        if self._is_paused:
            self._waiting_since_s = now_s  # while we write, only the limit for writing runs
            self._check_blocked(now_s)
        else:
            self._check_waiting(now_s - self._waiting_since_s)

    # -- asyncio.Protocol --------------------------------------------------------------------------------------

    # An exception here is the listener's, since the loop could do nothing with it; what the owner calls raises to it.

    def data_received(self, data: bytes) -> None:
        if self._is_closed:
            return
        try:
            self.dialogue.receive(data)
            self._collect()
        except Exception as fault:
            self._faulted(fault)

    def eof_received(self) -> bool:
        return False  # closes the transport; connection_lost settles the rest

    def pause_writing(self) -> None:
        self._is_paused = True
        self._blocked_bytes = 0

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._is_closed:
            return
        try:
            self._collect()
        except Exception as fault:
            self._faulted(fault)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        cause = "closed by the server" if exc is None else f"{type(exc).__name__}: {exc}"
        try:
            self.dialogue.connection_lost(cause, int(self._is_paused))
            self._collect()
            self._listener.closed(self, self.dialogue.closing_cause)
        except Exception as fault:
            self._faulted(fault)

    # -- inside ------------------------------------------------------------------------------------------------

    def _check_waiting(self, waited_s: float) -> None:
        dialogue = self.dialogue
        if dialogue.awaiting is not None:
            self._waited_s = waited_s
            if waited_s >= self._limits_s[dialogue.awaiting]:
                self._timed_out()
            elif dialogue.is_behind_end and waited_s >= max(LOST_AFTER_S, LOST_AFTER_TIMES * self._slowest_s):
                dialogue.silent_behind_end()
                self._collect()
        elif dialogue.is_idle and waited_s >= self._timeouts.idle_s:
            self.close()

    def _check_blocked(self, now_s: float) -> None:
        """The limit runs from the last octet that the far end took."""
        size_bytes = self._transport.get_write_buffer_size()
        if size_bytes != self._blocked_bytes:
            self._blocked_bytes = size_bytes
            self._blocked_since_s = now_s
        elif now_s - self._blocked_since_s >= self._timeouts.block_s:
            self._timed_out()

    def _faulted(self, fault: Exception) -> None:
        self.drop()
        self._listener.faulted(self, fault)

    def _timed_out(self) -> None:
        self.dialogue.timed_out(int(self._is_paused))
        self._collect()

    def _lost(self, cause: str) -> None:
        if self._is_closed:
            return
        self.dialogue.connection_lost(cause, int(self._is_paused))
        self._collect()

    def _collect(self) -> None:
        """Pass on what the dialogue has, until it has nothing: listeners may call back, the outermost call goes on."""
        if self._is_collecting:
            return
        self._is_collecting = True
        try:
            self._report()
        finally:
            self._is_collecting = False
        dialogue = self.dialogue
        if dialogue.is_closed and not self._is_closed:
            if self._transport.get_write_buffer_size():
                self._transport.abort()  # a close would wait for octets that mean nothing any more
            else:
                self._transport.close()

    def _report(self) -> None:
        dialogue = self.dialogue
        while True:
            if dialogue.output and not self._is_paused and not self._is_closed:
                output, dialogue.output = dialogue.output, []
                if self._is_tls and len(output) > 1:
                    self._transport.write(b"".join(output))  # each piece would be a record with a tag of its own
                else:
                    self._transport.writelines(output)
            elif dialogue.verdicts:
                verdicts, dialogue.verdicts = dialogue.verdicts, []
                self._listener.verdicts(self, verdicts)
            elif dialogue.bodies_due:
                bodies_due, dialogue.bodies_due = dialogue.bodies_due, []
                self._listener.bodies_due(self, bodies_due)
            elif dialogue.observations:
                observations, dialogue.observations = dialogue.observations, []
                self._listener.observed(self, observations)
            else:
                return
