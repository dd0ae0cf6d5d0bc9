"""What goes into a dialogue and what comes out of it: envelopes, stages, verdicts."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from mta.model.host import HostFact
from mta.model.reply import Reply


class Stage(enum.IntEnum):
    """Where in a session something happened, or which reply is awaited."""

    CONNECT = 0
    GREETING = 1
    EHLO = 2
    STARTTLS = 3
    MAIL = 4
    RCPT = 5
    DATA = 6
    BODY = 7  # the body is due from us, or left us in part
    DOT = 8  # the final dot, or the last octet of BDAT
    RSET = 9
    QUIT = 10
    IDLE = 11  # no transaction begun


class Kind(enum.IntEnum):
    """What became of a recipient in this session."""

    ACCEPTED = 1  # the server took responsibility (RFC 5321 §6.1)
    REFUSED = 2  # a reply said no, for now or for good; or the server does not offer what the message needs
    IN_DOUBT = 3  # everything was sent, and no reply came
    NOT_ATTEMPTED = 4  # the server cannot have taken it: try elsewhere or later, no attempt was made
    PROBED = 5  # of a Probe only: RCPT was accepted, and nothing was to be sent


class Envelope:
    """Return path and recipients of one transaction (RFC 5321 §2.3.1), addresses without angle brackets."""

    __slots__ = ("mail", "needs_8bit", "needs_smtputf8", "recipients", "size_bytes", "token")

    is_probe = False  # of the class: an ordinary envelope pays nothing for it

    def __init__(
        self,
        token: int,
        mail: bytes,
        recipients: tuple[bytes, ...],
        size_bytes: int = 0,
        needs_8bit: bool = False,
        needs_smtputf8: bool = False,
    ) -> None:
        self.token = token  # the caller's name for it, unique among the open ones
        self.mail = mail  # b"" is the null path
        self.recipients = recipients
        self.size_bytes = size_bytes  # of the body on the wire; 0: not known
        self.needs_8bit = needs_8bit
        self.needs_smtputf8 = needs_smtputf8

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.token} from {self.mail!r} to {len(self.recipients)}>"


class Probe(Envelope):
    """An envelope without a letter: MAIL and RCPT are asked, no content ever follows (campaign-mta §1, "Test SMTP")."""

    __slots__ = ()

    is_probe = True


def in_one_transaction(probes: Sequence[Envelope]) -> Probe:
    """Probes of one sender as one, which asks for all their recipients; its token and return path are the first one's.

    What it says of itself to the server fits each of them: the size is that of the largest.
    """
    return Probe(
        probes[0].token,
        probes[0].mail,
        tuple([recipient for probe in probes for recipient in probe.recipients]),
        max(probe.size_bytes for probe in probes),
        any(probe.needs_8bit for probe in probes),
        any(probe.needs_smtputf8 for probe in probes),
    )


class Verdict(NamedTuple):
    """The end of one recipient in one session. Each recipient of each offered envelope gets exactly one."""

    token: int
    recipient: int  # index into the envelope's recipients
    kind: Kind
    stage: Stage
    reply: Reply | None
    cause: str  # why, where no reply to a command of this envelope says it; "local: ..." when nothing was sent


class Observation(NamedTuple):
    """What the host was seen to do, for every later session with it."""

    fact: HostFact
    value: int  # how much it takes, where the fact is of a number
    cause: str  # what it did, in words
