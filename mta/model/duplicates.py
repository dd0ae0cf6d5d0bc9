"""What a delivery is for, and what becomes of an address that stands in it twice."""

from __future__ import annotations

import enum


class DeliveryKind(enum.StrEnum):
    """What its recipients are: an audience, each of whom is to get it once, or events, each of which is a message."""

    CAMPAIGN = "campaign"
    TRANSACTIONAL = "transactional"

    @property
    def duplicates(self) -> Duplicates:
        """What is done with them unless somebody says otherwise. Two orders of a customer are two confirmations."""
        return Duplicates.EXCLUDE if self is DeliveryKind.CAMPAIGN else Duplicates.KEEP


class Duplicates(enum.StrEnum):
    """What becomes of a recipient whose address was in the delivery before."""

    KEEP = "keep"  # is mailed again
    EXCLUDE = "exclude"  # is not mailed: the first one stays (`mta.queue.duplicates`)
