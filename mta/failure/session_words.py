"""Refusals that speak of the session or of the connections, not of a recipient: what their words and codes hint at.

A hint is no proof. Texts are a server's own, and the codes are used for much else: sendmail answers MAIL with
"452 4.4.5 Insufficient disk space" when its disk is full. What this session and the next one do decides
(`mta.child.session_watch`).
"""

from __future__ import annotations

from typing import Final

import re2

from mta.model.host import HostFact
from mta.model.reply import Reply
from mta.smtp.envelope import Stage

# 421 is not among them: the server closes the session, so all of it goes back anyway (RFC 5321 §3.8).
_CLOSING: Final = 421
_STAGES: Final = frozenset({Stage.MAIL, Stage.RCPT, Stage.DATA})
# x.4.5 is congestion of the mail system, x.3.2 a system that accepts no messages (RFC 3463 §3.5, §3.4); x.7.28 is used
# for floods of mail. No code is about sessions.
_HINTS: Final = frozenset({"4.5", "3.2", "7.28"})
# Of other subjects, however many messages went before: size, mailbox, address of the sender, protocol, content.
_OTHER_SUBJECTS: Final = ("1.", "2.", "5.", "6.", "3.4", "7.10")
_OTHER_CODES: Final = frozenset({500, 501, 502, 503, 504, 530, 535, 552, 553, 555})

_CONNECTIONS: Final = re2.compile(
    r"(?i)too many (\w+ ){0,2}(connections|sessions|channels)\b"
    r"|\b(concurrent|simultaneous|parallel|open) (smtp )?(connections?|sessions?)\b"
    r"|\b(connections?|concurrency) (limit|quota|count)\b"
    r"|\bmax(imum|\.)? (number of )?(smtp )?(connections|sessions)\b"
)
# How often one connects, which is not how many connections there are at a time.
_RATE: Final = re2.compile(
    r"(?i)\brate\b|frequen|\b(per|a|an|each|last|every) (\d+ )?(second|minute|hour|day)|\btoo (fast|often|quickly)\b"
)
_MESSAGES: Final = re2.compile(
    r"(?i)\b(messages?|mails?|e-?mails?|transactions?|deliver(y|ies)) (\w+ ){0,4}"
    r"(per|in|on|over|for|during|by|within|of) (\w+ ){0,2}(connection|session)\b"
    r"|\b(per|this|each|one|single|a)[ -](connection|session)[ -](\w+ ){0,2}(limit|quota|max)"
    r"|\b(connection|session) (message|mail|transaction)s? (limit|quota|count)"
    r"|\bsession limit\b"
    r"|\b(new|another|different|fresh|separate|next) (smtp )?(connection|session)\b"
    r"|\b(re-?connect|connect again)\b"
)


def session_limit(stage: Stage, reply: Reply, accepted_in_session: int) -> HostFact | None:
    """What a refusal (4yz or 5yz) hints at: that the host takes no more connections, or no more messages in a session.

    None where neither words nor codes say so. ``accepted_in_session``: messages that the session delivered before; of
    one that delivered none, no refusal is about their number.
    """
    if stage not in _STAGES or reply.code == _CLOSING:
        return None
    text = reply.text
    if accepted_in_session and _MESSAGES.search(text):
        return HostFact.MESSAGES_PER_SESSION
    if says_too_many_connections(text):
        return HostFact.CONNECTIONS
    if accepted_in_session and stage is not Stage.RCPT and reply.enhanced[2:] in _HINTS:
        return HostFact.MESSAGES_PER_SESSION
    return None


def says_too_many_connections(text: str) -> bool:
    """True of words for a limit on how many connections are open at a time: the host is busy, and refuses nobody."""
    return _CONNECTIONS.search(text) is not None and _RATE.search(text) is None


def may_end_session(stage: Stage, reply: Reply) -> bool:
    """True where a refusal without such words may be about the session, if others were delivered in it before.

    A reply to MAIL names no recipient, nor does one to DATA. One that names another subject is believed.
    """
    if stage is not Stage.MAIL and stage is not Stage.DATA:
        return False
    return (
        reply.code != _CLOSING and reply.code not in _OTHER_CODES and not reply.enhanced[2:].startswith(_OTHER_SUBJECTS)
    )
