"""The queue in an operator's hands: what waits and since when, sent sooner, or taken out."""

from __future__ import annotations

import asyncio
import datetime
import secrets
import time
from typing import Final

import msgspec

from mta.model.address import domain_of, parse_domain, parse_mailbox
from mta.model.errors import BadInput
from mta.queue import events, removal, spread
from mta.queue.connection import Conn
from mta.queue.deliveries import no_such_delivery
from mta.queue.removal import Flushed, Found, Wanted
from mta.queue.spread import AGES_S, By, Spread
from mta.traffic.effects import EffectKind, Target

__all__ = ["AGES_S", "By", "Deleted", "Flushed", "Found", "Removal", "Spread", "count", "delete", "flush", "shape"]

EVENT_NAME: Final = "queue delete"
EVENT_LASTS: Final = datetime.timedelta(seconds=30)  # should who gave the order be gone
RENEW_S: Final = 2.0  # recipients that a session gives back are looked through anew so often
LOOK_S: Final = 0.2
_EXISTS: Final = "SELECT EXISTS (SELECT FROM mta.delivery WHERE id = $1)"
_IS_SITE: Final = "SELECT EXISTS (SELECT FROM mta.delivery_part WHERE site = $1)"


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to take out: an ``address`` (case does not matter), or a whole ``domain``; one of the two."""

    address: str = ""
    domain: str = ""

    def wanted(self) -> Wanted:
        """Raises BadInput."""
        if bool(self.address) is bool(self.domain):
            raise BadInput("ADDRESS", "or --domain: give one of them")
        if self.domain:
            return Wanted(f"@{parse_domain(self.domain, '--domain')}")
        return Wanted(parse_mailbox(self.address, "ADDRESS").text.lower())


class Deleted(msgspec.Struct, frozen=True):
    """``cancelled`` are recorded as such; ``left`` are still in the memory of ``nodes``, or on their sessions."""

    cancelled: int
    left: int
    nodes: list[str]


async def shape(conn: Conn, by: By, delivery_id: int | None = None) -> list[Spread]:
    """What waits, by one of its properties and by age. BadInput when there is no such delivery."""
    await _check_delivery(conn, delivery_id)
    return await spread.spread(conn, by, delivery_id)


async def flush(conn: Conn, what: str) -> Flushed:
    """What waits for its next attempt is due now: of a delivery (its number), a recipient domain, or a site.

    Limits, suspensions and pauses hold all the same, and a wave to come keeps its time.
    """
    if what.isdecimal():
        await _check_delivery(conn, int(what))
        return await removal.flush_delivery(conn, int(what))
    site = what.strip().lower()
    if await conn.fetchval(_IS_SITE, site):
        flushed = await removal.flush_site(conn, site)
        if flushed.recipients or "." not in site or not _is_domain(site):
            return flushed
    return await removal.flush_domain(conn, parse_domain(what, "DELIVERY, DOMAIN or SITE"))


async def count(conn: Conn, removal_of: Removal) -> Found:
    """How many wait."""
    return await removal.count(conn, removal_of.wanted())


async def delete(conn: Conn, removal_of: Removal, by: str, *, wait_s: float = 30.0) -> Deleted:
    """Takes recipients out of the queue, wherever it is: their outcome is cancelled, and ``by`` stands in the log.

    What nodes have in memory they end themselves, told by a traffic event that lasts while this waits for them. What a
    server is being told of already goes its way: it is delivered, or ends here when it comes back within ``wait_s``.
    """
    wanted = removal_of.wanted()
    reply = f"deleted by {by} (order {secrets.token_hex(4)})"
    is_domain = wanted.text.startswith("@")
    order = events.NewEvent(
        name=EVENT_NAME,
        kind=EffectKind.CANCEL,
        target=Target.DOMAIN if is_domain else Target.ADDRESS,
        on_what=wanted.text.removeprefix("@"),
        lasts=EVENT_LASTS,
        detail=reply,
    )
    made = await events.put_in_force(conn, order, by)
    try:
        left = await _until_gone(conn, wanted, reply, made.id, by, wait_s)
    finally:
        await events.cancel(conn, made.id, by)
    return Deleted(await removal.cancelled_with(conn, reply), left.free + left.leased, left.nodes)


async def _until_gone(conn: Conn, wanted: Wanted, reply: str, event_id: int, by: str, wait_s: float) -> Found:
    began_s = renewed_s = time.monotonic()
    while True:
        await removal.cancel_free(conn, wanted, reply)
        left = await removal.count(conn, wanted)
        now_s = time.monotonic()
        if not (left.free or left.leased) or now_s - began_s >= wait_s:
            return left
        if now_s - renewed_s >= RENEW_S:
            renewed_s = now_s
            await events.change(conn, event_id, by, lasts=EVENT_LASTS)
        await asyncio.sleep(LOOK_S)


async def _check_delivery(conn: Conn, delivery_id: int | None) -> None:
    if delivery_id is not None and not await conn.fetchval(_EXISTS, delivery_id):
        raise no_such_delivery(delivery_id)


def _is_domain(text: str) -> bool:
    try:
        return bool(domain_of(f"x@{parse_domain(text, 'domain')}"))
    except BadInput:
        return False
