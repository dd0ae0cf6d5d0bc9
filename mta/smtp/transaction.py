"""A transaction as the dialogue keeps it: what of its envelope is asked, answered, and still undecided."""

from __future__ import annotations

from collections.abc import Iterable

from mta.smtp.envelope import Envelope


class Transaction:
    """An envelope on its way. Undecided are ``accepted`` and, unless refused as a whole, ``index`` and above."""

    __slots__ = (
        "accepted",
        "count",
        "envelope",
        "group_bytes",
        "index",
        "is_body_out",
        "is_large",
        "is_refused",
        "probed_count",
    )

    def __init__(self, envelope: Envelope, count: int, group_bytes: int) -> None:
        self.envelope = envelope
        self.count = count  # recipients of this transaction: the first ones of the envelope
        self.group_bytes = group_bytes  # its commands in one write; 0 when not pipelined
        self.index = 0  # the recipient whose reply comes next
        self.accepted: list[int] = []
        self.probed_count = 0  # of a probe: accepted, and decided by that
        self.is_refused = False  # MAIL was: nothing of it is undecided
        self.is_body_out = False  # up to and with the final dot
        self.is_large = False  # nothing is pipelined behind its dot

    def undecided(self) -> Iterable[int]:
        if self.is_refused:
            return ()
        return (*self.accepted, *range(self.index, self.count))
