"""A transaction as the dialogue keeps it: what of its envelope is asked, answered, and still undecided."""

from __future__ import annotations

from collections.abc import Iterable

from mta.model.reply import Reply
from mta.smtp.envelope import Envelope, Stage


class Transaction:
    """An envelope on its way. Undecided are ``accepted``, ``index`` and above; when refused as a whole, ``pending``."""

    __slots__ = (
        "accepted",
        "count",
        "disorder",
        "disorder_stage",
        "envelope",
        "group_bytes",
        "index",
        "is_behind_end",
        "is_body_out",
        "is_chunked",
        "is_large",
        "is_refused",
        "is_unproven",
        "pending",
        "probed_count",
    )

    def __init__(self, envelope: Envelope, count: int) -> None:
        self.envelope = envelope
        self.count = count  # recipients of this transaction: the first ones of the envelope
        self.group_bytes = 0  # its commands in one write; 0 while none is out, and when not pipelined
        self.index = 0  # the recipient whose reply comes next
        self.accepted: list[int] = []
        self.probed_count = 0  # of a probe: accepted, and decided by that
        self.is_refused = False  # a reply decided all of it; the rest of the group's replies say nothing
        self.disorder: Reply | None = None  # that reply, where it spoke of the session; ``pending`` are those it met
        self.disorder_stage = Stage.IDLE
        self.pending: tuple[int, ...] = ()
        self.is_unproven = False  # it was refused as out of order, and nothing shows that the server knows an order
        self.is_behind_end = False  # its commands went out with the end of the message before it
        self.is_chunked = False  # its body goes by BDAT
        self.is_body_out = False  # up to and with the final dot
        self.is_large = False  # nothing is pipelined behind its dot

    def undecided(self) -> Iterable[int]:
        if self.is_refused:
            return self.pending
        return (*self.accepted, *range(self.index, self.count))
