"""What is read from a mail that came back."""

from __future__ import annotations

import enum

import msgspec

from mta.model.failure import Evidence


class Kind(enum.StrEnum):
    BOUNCE = "bounce"  # of some recipients: failed, or (delayed) not delivered yet
    AUTOREPLY = "autoreply"  # somebody is away, has moved, or wants to know who we are
    FEEDBACK = "feedback"  # a recipient complained (RFC 5965)
    NOT_BOUNCE = "not-bounce"


class Recipient(msgspec.Struct, frozen=True):
    """``address`` empty: the mail does not say whose. ``is_delayed``: a warning, the server goes on trying."""

    address: str
    evidence: Evidence
    is_delayed: bool = False


class Letter(msgspec.Struct, frozen=True):
    """``returned`` are headers of the message that came back, ``reported`` the fields of a complaint (RFC 5965 §3).

    Both by lower-case name; a stranger wrote them.
    """

    kind: Kind
    recipients: tuple[Recipient, ...] = ()
    feedback_type: str = ""  # abuse, fraud, auth-failure, ... (RFC 5965 §3.1, RFC 6591)
    returned: dict[str, str] = {}
    reported: dict[str, str] = {}
    subject: str = ""
    sender: str = ""  # address of its From
    is_challenge: bool = False  # an AUTOREPLY that wants an answer before it lets our message through
