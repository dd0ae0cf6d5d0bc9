"""Refusals in the midst of a session that are about the session: their recipients go back, and the number is learnt.

A server that takes ten messages a session may answer each further MAIL by 4yz or 5yz, and leave the connection open.
None of these recipients was attempted: the session ends, they go back uncharged, and a new session carries them on.
When a session that was opened afterwards delivers to the same host, that proves that it was a number, and the master is
told. Until then nothing is learnt.

A recipient goes back so at most twice, unless the session has reached the number that was proved: then it was the
number again, which strikes whoever stands there (with `learn_hosts = false`, session after session). A session whose
first message is refused has a refusal like any other. But where one says that there are too many connections, that
session ends, and the path rests as after a failure to connect.
"""

from __future__ import annotations

from typing import Final, TypeVar

from mta.failure.session_words import may_end_session, session_limit
from mta.model.host import HostFact
from mta.model.reply import Reply
from mta.smtp.envelope import Stage

# Of the same delivery, thus with the same sender, delivered in a session before a refusal without words counts as being
# about the session.
ACCEPTED_MIN: Final = 2
RETURNS_MAX: Final = 2  # of one recipient
SUSPICIONS_MAX: Final = 1_000
RETURNED_MAX: Final = 20_000
Host = tuple[str, int]  # address and port
KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class SessionCounts:
    """What a session has done so far."""

    __slots__ = ("accepted", "accepted_alike", "decided", "delivery_id", "host", "leaving", "opened_s", "session")

    def __init__(self, session: int, host: Host, opened_s: float) -> None:
        self.session = session
        self.host = host
        self.opened_s = opened_s
        self.accepted = 0  # messages delivered
        self.delivery_id = 0  # of the last of them
        self.accepted_alike = 0  # of that delivery, with none of another since
        self.decided = 0  # messages, whatever became of them
        self.leaving = ""  # why it ends; empty: it goes on


class _Suspicion:
    __slots__ = ("at_s", "cause", "messages")

    def __init__(self, messages: int, cause: str, at_s: float) -> None:
        self.messages = messages
        self.cause = cause
        self.at_s = at_s


def _keep(kept: dict[KeyT, ValueT], key: KeyT, value: ValueT, most: int) -> None:
    """Beyond ``most`` the oldest goes."""
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def _may_be_about_session(session: SessionCounts, stage: Stage, reply: Reply, recipient: tuple[int, int]) -> bool:
    """Without words: others with the same sender were taken in it before."""
    is_alike = session.delivery_id == recipient[0] and session.accepted_alike >= ACCEPTED_MIN
    return is_alike and may_end_session(stage, reply)


class SessionWatch:
    """Of one child. ``observed`` holds what is to be told: session, fact, value, cause."""

    def __init__(self) -> None:
        self.suspicions: dict[Host, _Suspicion] = {}
        self._proved: dict[Host, int] = {}  # messages a session, whether or not the master obeys it
        self._returned: dict[tuple[int, int], int] = {}  # (delivery, number) -> how often it went back
        self.observed: list[tuple[int, HostFact, int, str]] = []

    def accepted(self, session: SessionCounts, delivery_id: int) -> None:
        """A session has delivered a message."""
        session.accepted += 1
        if session.delivery_id != delivery_id:
            session.delivery_id, session.accepted_alike = delivery_id, 0
        session.accepted_alike += 1
        if not self.suspicions:
            return
        suspicion = self.suspicions.get(session.host)
        if suspicion is not None and session.opened_s > suspicion.at_s:
            del self.suspicions[session.host]
            self.observed.append((session.session, HostFact.MESSAGES_PER_SESSION, suspicion.messages, suspicion.cause))
            _keep(self._proved, session.host, suspicion.messages, SUSPICIONS_MAX)

    def is_about_session(
        self, session: SessionCounts, stage: Stage, reply: Reply, recipient: tuple[int, int], now_s: float
    ) -> bool:
        """True when a refusal is about the session: its recipient goes back, and the session is to end.

        ``recipient``: delivery and number.
        """
        fact = session_limit(stage, reply, session.accepted)
        if fact is HostFact.CONNECTIONS:
            if not session.leaving:
                self.observed.append((session.session, fact, 0, str(reply)))
                session.leaving = f"the host takes no more connections: {reply}"
            return True
        if not session.accepted:
            suspicion = self.suspicions.get(session.host)
            if suspicion is not None and stage is Stage.MAIL and session.opened_s > suspicion.at_s:
                del self.suspicions[session.host]  # it refuses new sessions too
            return False
        if fact is None and not _may_be_about_session(session, stage, reply, recipient):
            return False
        if session.decided != self._proved.get(session.host) and not self._may_return(recipient):
            return False
        if not session.leaving:
            session.leaving = f"refused after {session.decided} messages: {reply}"
            self._suspect(session, str(reply), now_s)
        return True

    def _may_return(self, recipient: tuple[int, int]) -> bool:
        returns = self._returned.get(recipient, 0)
        if returns >= RETURNS_MAX:
            return False
        _keep(self._returned, recipient, returns + 1, RETURNED_MAX)
        return True

    def _suspect(self, session: SessionCounts, said: str, now_s: float) -> None:
        before = self.suspicions.get(session.host)
        if before is not None and before.messages <= session.decided:
            return
        cause = f"after {session.decided} messages in a session it said: {said}"
        _keep(self.suspicions, session.host, _Suspicion(session.decided, cause, now_s), SUSPICIONS_MAX)
