"""What became of a recipient in one attempt: status, and the numbered reason for a failure.

Statuses are stored as small integers in ``delivery_log.status``; the numbers never change.
"""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """The recorded end of an attempt. All but DEFERRED and IN_DOUBT are final."""

    DELIVERED = 1
    FAILED = 2
    EXPIRED = 3
    CANCELLED = 4
    SIMULATED = 5  # of a simulated delivery: the server accepted RCPT, and nothing was sent
    DEFERRED = 10  # not final: due again in a new part
    IN_DOUBT = 11  # not final: the final dot went out, no reply came; the delivery's policy decides

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
    REFUSED = 20


class InDoubtPolicy(enum.StrEnum):
    """What a delivery wants for a message whose final dot was never answered."""

    RESEND = "resend"
    HOLD = "hold"
