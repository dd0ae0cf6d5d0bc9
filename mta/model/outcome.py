"""What became of a recipient in one attempt: status, and the numbered reason for a failure.

Statuses are stored as small integers in ``delivery_log.status``; the numbers never change.
"""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """What a line of the log records. Up to EXCLUDED final: a recipient has exactly one such line, and nothing is
    attempted after it.

    From BOUNCED on it came later, about a recipient that was delivered, and makes its outcome another.
    """

    DELIVERED = 1
    FAILED = 2
    EXPIRED = 3
    CANCELLED = 4
    SIMULATED = 5  # of a simulated delivery: the server accepted RCPT, and nothing was sent
    EXCLUDED = 6  # not to be mailed: quarantined or denylisted, when it was appended or was to be sent; or a duplicate
    DEFERRED = 10  # not final: due again in a new part
    IN_DOUBT = 11  # not final: the final dot went out, no reply came; the delivery's policy decides
    BOUNCED = 20  # came back by mail
    COMPLAINED = 21  # the recipient called it spam
    UNSUBSCRIBED = 22

    @property
    def is_final(self) -> bool:
        return self < Status.DEFERRED


class Reason(enum.IntEnum):
    """Why it failed; the numbers are those of the engine we replace (campaign-mta §4)."""

    NOT_DEFINED = 0
    USER_UNKNOWN = 1
    INVALID_DOMAIN = 2
    UNREACHABLE = 3
    ACCOUNT_DISABLED = 4
    MAILBOX_FULL = 5
    NOT_CONNECTED = 6
    NOT_SPECIFIED = 7  # there is no address
    DENYLISTED = 8  # a complaint, an unsubscription, an operator's word
    QUARANTINED = 9
    DOUBLE = 10  # the same address was in this delivery before
    BAD_QUALITY = 14
    REFUSED = 20
    ERROR_IGNORED = 25  # the address is on the allowlist: the error is noted, and mail goes on
    CONTROL = 127


class InDoubtPolicy(enum.StrEnum):
    """What a delivery wants for a message whose final dot was never answered."""

    RESEND = "resend"
    HOLD = "hold"
