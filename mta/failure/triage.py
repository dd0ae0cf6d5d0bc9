"""From a verdict of the dialogue to an outcome, by code alone (RFC 5321 §4.2.1: the first digit decides).

=============  =========================================  ===========  ====================================
verdict        what happened                              outcome      the session
=============  =========================================  ===========  ====================================
accepted       2yz to the end of the content              delivered    goes on
refused, 4yz   MAIL, RCPT, DATA or end of content         deferred     goes on
refused, 5yz   the same                                   failed       goes on
refused, 421   to the end of the content                  deferred     is closed by the server
refused, 421   to MAIL, RCPT or DATA                      none         is closed by the server
in doubt       content sent, no reply came                in doubt     is gone; no other host is tried
not attempted  link lost while content was being sent     deferred     is gone
not attempted  link lost before, recalled, never begun    none         its recipient is handed out again
probed         2yz to RCPT of a simulated delivery        simulated    goes on
=============  =========================================  ===========  ====================================

So says the code alone. What a refusal means for the address, and with it whether one with 5yz is tried again, is
qualified after that (`mta.failure.judge.Judge`).

"None" is no attempt: a 421 or a lost link before the content speaks of the session (threats C10), and the backoff of
its path keeps the next try in bounds. Once content was sent it counts, else a message that breaks every
connection would go round for ever.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mta.failure.scope import Rest, Scope
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.smtp.dialogue import Kind, Stage

NOT_JUDGED: Final = "0\t0"  # of what is no failure


class Decision(NamedTuple):
    """``status`` None: not attempted, hand it out again. ``reply`` is what the log shows.

    ``judged``: type and category of a failure, as two columns of the log (`mta.failure.judge`). ``scope``: what it is
    about; where that is the path, ``rest`` says when the path is left alone, and ``is_last_word`` that ``status`` is
    the recipient's when no other path is left.
    """

    status: Status | None
    reason: Reason
    reply: Reply
    judged: str = NOT_JUDGED
    is_greylisted: bool = False  # the reply says so of itself
    is_put_off: bool = False  # a 4yz about the recipient: the host may be greylisting, whatever it says
    is_excused: bool = False  # a limit of the host explains it: no error of the recipient's domain
    scope: Scope = Scope.RECIPIENT
    rest: Rest = Rest.NEVER
    is_last_word: bool = False


_ENHANCED_REASONS: Final = {
    "1.1": Reason.USER_UNKNOWN,
    "1.2": Reason.INVALID_DOMAIN,
    "1.3": Reason.USER_UNKNOWN,
    "1.6": Reason.USER_UNKNOWN,
    "1.10": Reason.INVALID_DOMAIN,
    "2.1": Reason.ACCOUNT_DISABLED,
    "2.2": Reason.MAILBOX_FULL,
}
_ACCEPTED: Final = Kind.ACCEPTED
_DELIVERED: Final = Status.DELIVERED
_NOT_DEFINED: Final = Reason.NOT_DEFINED
_BEFORE_CONTENT: Final = frozenset({Stage.RSET, Stage.MAIL, Stage.RCPT, Stage.DATA})
_CONTENT: Final = frozenset({Stage.BODY, Stage.DOT})
SERVICE_CLOSING: Final = 421  # RFC 5321 §3.8
RETURNED: Final = Decision(None, Reason.NOT_DEFINED, Reply(0))  # no attempt was made


def triage(kind: Kind, stage: Stage, reply: Reply | None, cause: str) -> Decision:
    """What a verdict means for its recipient. ``cause`` is the dialogue's word where no reply decided."""
    if kind is _ACCEPTED:  # nearly all of them: before the members that a match would look up
        assert reply is not None
        return Decision(_DELIVERED, _NOT_DEFINED, reply)
    match kind:
        case Kind.REFUSED:
            assert reply is not None
            if reply.code == SERVICE_CLOSING and stage in _BEFORE_CONTENT:
                return RETURNED
            return Decision(Status.FAILED if reply.is_permanent else Status.DEFERRED, reason_of(reply), reply)
        case Kind.IN_DOUBT:
            return Decision(Status.IN_DOUBT, Reason.UNREACHABLE, Reply(0, f"in doubt: {cause}"))
        case Kind.NOT_ATTEMPTED:
            if stage in _CONTENT and reply is None:
                # 4.4.2: bad connection (RFC 3463 §3.5).
                return Decision(Status.DEFERRED, Reason.UNREACHABLE, Reply(0, f"{stage.name}: {cause}", "4.4.2"))
            return RETURNED
        case Kind.PROBED:
            assert reply is not None
            return Decision(Status.SIMULATED, Reason.NOT_DEFINED, reply)


def reason_of(reply: Reply) -> Reason:
    """The numbered reason that the codes alone can tell."""
    if reply.code == SERVICE_CLOSING:
        return Reason.NOT_CONNECTED
    if reply.enhanced:
        subject = reply.enhanced.partition(".")[2]
        if subject in _ENHANCED_REASONS:
            return _ENHANCED_REASONS[subject]
        if subject.startswith("7."):
            return Reason.REFUSED
    return Reason.UNREACHABLE
