"""Why a session is not opened, in words. The same wait is the same object, as it is told for each batch."""

from __future__ import annotations

import math
from typing import Final

from mta.model.waiting import Wait, WaitReason
from mta.traffic.counters import HostRoom, Limit, Room
from mta.traffic.sessions import Full, Hop

NO_HOP: Final = Wait(WaitReason.NO_EGRESS, math.inf, "no address of the site can be reached from this egress")
ATTEMPT_SPENT: Final = Wait(
    WaitReason.BACKOFF, math.inf, "as many addresses failed as are tried in one attempt; others are tried in the next"
)
BUSY: Final = Wait(WaitReason.WINDOW, math.inf, "its sessions are busy")
OPENING: Final = Wait(WaitReason.WINDOW, math.inf, "more sessions are opened when those that are being opened answer")


def full_wait(hop: Hop, room: Room) -> Wait:
    """Why no session is opened by the hop while this room is full. Asked at each look of whoever waits there."""
    is_share = room.lacks_share
    known = hop.full
    if known is None or known.room is not room or known.sessions_max != room.sessions_max or known.is_share != is_share:
        known = hop.full = Full(room, is_share, _wait_while_full(hop, room, is_share))
    return known.wait


def _wait_while_full(hop: Hop, room: Room, is_share: bool) -> Wait:
    if isinstance(room, HostRoom):
        detail = f"host {room.host} takes {room.sessions_max} connections at a time, as it has shown"
        return Wait(WaitReason.HOST_CONNECTIONS, math.inf, detail)
    if isinstance(room, Limit):
        title, counted_on = room.title, room.key
    else:
        title, counted_on = f"rule {hop.rule.name}", f"{hop.rule.name} to {hop.peer}"
    if is_share:
        detail = f"{title}: other nodes hold the rest, this one has {room.sessions_max}, counted on {counted_on}"
        return Wait(WaitReason.SHARE, math.inf, detail)
    return Wait(
        WaitReason.RULE_CONNECTIONS, math.inf, f"{title}: {room.sessions_max} connections, counted on {counted_on}"
    )
