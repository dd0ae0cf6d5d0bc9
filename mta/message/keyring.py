"""Who signs for whom: the signers of each sender domain, and which sender domains must not go unsigned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from mta.message.dkim import Signer
from mta.message.headers import parse_named_mailbox
from mta.model.errors import BadInput


class RingEntry(NamedTuple):
    """One signature of the messages of a sender domain."""

    domain: str  # of the mailbox in From, canonical
    has_subdomains: bool  # also of those below it that have no entry of their own, nor a nearer parent
    signer: Signer | None  # None: there is to be this signature, and its key cannot be used


class KeyRing:
    """The signers of all sender domains. Immutable."""

    def __init__(self, entries: Iterable[RingEntry] = (), *, is_required: bool = False) -> None:
        """``is_required``: also a sender domain that no entry speaks of must be signed, so it cannot be sent."""
        self._is_required = is_required
        self._exact: dict[str, list[Signer | None]] = {}
        self._above: dict[str, list[Signer | None]] = {}
        for entry in entries:
            self._exact.setdefault(entry.domain, []).append(entry.signer)
            if entry.has_subdomains:
                self._above.setdefault(entry.domain, []).append(entry.signer)

    def signers_for(self, sender_domain: str) -> tuple[Signer, ...] | None:
        """Who signs, in order; none at all when nothing is to be signed. None: it must be signed, and cannot be.

        All signatures or nothing: one key of several that cannot be used holds the domain too.
        """
        wanted = self._exact.get(sender_domain)
        parent = sender_domain
        while wanted is None and (parent := parent.partition(".")[2]):
            wanted = self._above.get(parent)
        if wanted is None:
            return None if self._is_required else ()
        signers = tuple(signer for signer in wanted if signer is not None)
        return signers if len(signers) == len(wanted) else None


class _OnlySender(msgspec.Struct):
    sender: str


def sender_domain(sender: str) -> str:
    """The domain of a content's sender, canonical: what keys are chosen by. Raises BadInput."""
    return parse_named_mailbox(sender, "sender").mailbox.domain


def sender_domain_of(content_json: bytes) -> str | None:
    """The sender's domain of a stored content; None when it cannot be told: such a content is refused as a whole."""
    try:
        return sender_domain(msgspec.json.decode(content_json, type=_OnlySender).sender)
    except (BadInput, msgspec.DecodeError, UnicodeDecodeError):
        return None
