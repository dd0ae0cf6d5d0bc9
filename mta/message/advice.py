"""What is worth saying of a content before it is sent: not wrong, and yet most likely not what is meant."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mta.message.content import Content
from mta.message.unsubscribe import LIST_UNSUBSCRIBE_POST
from mta.model.limits import MESSAGE_BYTES_ADVISED, MESSAGE_BYTES_WARNED

# RFC 8058 §4: a receiver asks for a DKIM signature that covers both headers before it shows the button.
ONE_CLICK_UNSIGNED: Final = (
    "one-click unsubscription is offered, and no signature covers its headers: mail programs show no button then "
    "(RFC 8058 §4)"
)


def size_advice(size_bytes: int) -> str | None:
    """What to say of a message's size on the wire; None: nothing."""
    if size_bytes > MESSAGE_BYTES_WARNED:
        return (
            f"the message is large: {size_bytes / 1000:,.1f} kB; above {MESSAGE_BYTES_WARNED / 1000:.0f} kB sending is "
            f"slower and some mailboxes cut it off. Advised are {MESSAGE_BYTES_ADVISED / 1000:.0f} kB at most"
        )
    if size_bytes > MESSAGE_BYTES_ADVISED:
        return f"the message has {size_bytes / 1000:,.1f} kB; {MESSAGE_BYTES_ADVISED / 1000:.0f} kB at most are advised"
    return None


def one_click_advice(content: Content, signers: Collection[object] | None) -> str | None:
    """What to say of one-click unsubscription; None: nothing. ``signers`` None: who signs is not known here."""
    if signers or not _offers_one_click(content):
        return None
    if signers is None:
        return "one-click unsubscription needs a signature: name the node's settings (--config) to see if it has one"
    return ONE_CLICK_UNSIGNED


def _offers_one_click(content: Content) -> bool:
    wanted = content.list_unsubscribe
    if wanted is not None:
        return wanted.url is not None and wanted.one_click
    return any(name.lower() == LIST_UNSUBSCRIBE_POST.lower() for name in content.headers)
