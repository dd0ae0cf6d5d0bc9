"""What is known of an address: the statuses of the engine we replace (campaign-mta §5)."""

from __future__ import annotations

import enum
from typing import Final


class AddressStatus(enum.IntEnum):
    """Stored in ``quarantine.status``; the numbers never change."""

    WITH_ERRORS = 1  # soft errors were counted; it is mailed
    VALID = 2  # it was quarantined or had errors, and is mailed again
    DENYLISTED = 3  # a complaint, an unsubscription, or an operator's word: never mailed
    QUARANTINED = 4  # never mailed, until an operator says otherwise
    ALLOWLISTED = 5  # always mailed, whatever happens

    @property
    def label(self) -> str:
        """As operators read and write it: ``with-errors``."""
        return self.name.lower().replace("_", "-")


NOT_MAILED: Final = frozenset({AddressStatus.DENYLISTED, AddressStatus.QUARANTINED})


def folded(address: str) -> str:
    """The form in which addresses are compared and stored: servers that tell case apart in a local part are extinct."""
    return address.lower()
