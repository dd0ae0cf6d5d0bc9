"""The node's set of traffic events in force, kept in step with the database: told, pulled, obeyed, and ended.

What this node brings about holds here at once, also while the database is away, and is told to the others when it is
there. What others and operators bring about is heard of on NOTIFY, and found by a look now and then all the same.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final

import asyncpg
import msgspec
import structlog

from mta.master.books import LeasedPart
from mta.master.intake import Intake
from mta.queue import events as store
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.events import StoredEvent, Told
from mta.telemetry.outages import DATABASE
from mta.traffic.effects import Effect, spread
from mta.traffic.events import TrafficEvent
from mta.traffic.schedule import Schedule

LOOK_S: Final = 1.0  # between looks while anything is in force
LOOK_IDLE_S: Final = 2.0
GATHER_S: Final = 0.05  # what comes at about the same time goes in one round trip
TOLD_MAX: Final = 500  # in one round trip
log = structlog.get_logger()


class _Held(msgspec.Struct, frozen=True):
    """An event in force, and what this node knows of its row. Times are of this node's clock, whatever it shows."""

    event: TrafficEvent
    id: int | None = None  # of its row; None: not known
    version: int = 0  # of the row as it was seen last
    told_replies: int = 0
    by_whom: str = ""
    touched_by: str = ""

    @property
    def key(self) -> str:
        return self.event.key


class EventBook:
    """Owned by the master's loop; `run` is its only task.

    ``apply`` is handed all that is in force whenever it changes, and answers the recipient domains that are held back
    no more. ``flushed`` returns when all that is collected is recorded.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        node: str,
        apply: Callable[[Sequence[Effect]], Collection[str]],
        flushed: Callable[[], Awaitable[None]],
        unix_offset_s: float,
    ) -> None:
        self._pool = pool
        self._node = node
        self._apply = apply
        self._flushed = flushed
        self._unix_offset_s = unix_offset_s
        self._held: dict[str, _Held] = {}  # by key
        self._untold: set[str] = set()  # keys of what has changed here
        self._over: list[_Held] = []  # to be told of
        self._released: set[str] = set()  # domains whose recipients are to be brought forward
        self._looked_at: str | None = None
        self._news = asyncio.Event()

    # --- from outside -------------------------------------------------------------------------

    def now_unix_s(self) -> float:
        """The clock that ``until`` is given by here: that of the schedule."""
        return asyncio.get_running_loop().time() + self._unix_offset_s

    def notify(self, *_: object) -> None:
        """Something has changed in the database (NOTIFY)."""
        self._news.set()

    def put(self, events: Iterable[TrafficEvent]) -> None:
        """What this node has brought about or changed: in force at once, told of when the database is there."""
        for event in events:
            before = self._held.get(event.key)
            held = _Held(event) if before is None else msgspec.structs.replace(before, event=event)
            self._held[event.key] = held
            self._untold.add(event.key)
            if _say(held, before):
                self._news.set()  # that more replies have matched is told of with the next look
        self._obey()

    def find(self, key: str) -> TrafficEvent | None:
        """What holds here under a key."""
        held = self._held.get(key)
        return None if held is None else held.event

    def in_force(self) -> list[TrafficEvent]:
        """All that holds here now, by the node itself or heard of."""
        return [held.event for held in self._held.values()]

    async def restore(self, conn: Conn) -> None:
        """All that is in force, before the first claim."""
        await self._exchange(conn)

    async def run(self) -> None:
        while True:
            self._news.clear()
            try:
                async with acquire(self._pool) as conn:
                    await self._exchange(conn)
            except DATABASE_AWAY as error:
                DATABASE.failed("exchange traffic events", error)
            else:
                DATABASE.answered("exchange traffic events")
            self._end_over()
            await self._wait()

    async def _wait(self) -> None:
        now_s = self.now_unix_s()
        next_end_s = min((held.event.until_unix_s for held in self._held.values()), default=math.inf)
        wait_s = min(LOOK_S if self._held else LOOK_IDLE_S, max(0.01, next_end_s - now_s))
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
                await asyncio.sleep(GATHER_S)
        except TimeoutError:
            return  # time for a look

    # --- with the database --------------------------------------------------------------------

    async def _exchange(self, conn: Conn) -> None:
        await self._tell(conn)
        found = await store.look(conn, self._looked_at)
        self._take(found.events)
        self._looked_at = found.looked_at
        if self._released:
            released = set(self._released)
            # What this node itself has put off until then is in the queue first.
            await self._flushed()
            moved = await store.bring_forward(conn, sorted(released))
            self._released -= released
            if moved:
                log.info("recipients of a domain are due again", domains=sorted(released), recipients=moved)

    async def _tell(self, conn: Conn) -> None:
        while self._untold or self._over:
            over = self._over[:TOLD_MAX]
            changed = [self._held[key] for key in list(self._untold)[: TOLD_MAX - len(over)]]
            # A key is there once at most: one that is over and has begun anew waits for the next round.
            ended = {one.key for one in over}
            changed = [one for one in changed if one.key not in ended]
            told = [self._told(one, is_over=True) for one in over] + [self._told(one) for one in changed]
            await store.tell(conn, told)
            del self._over[: len(over)]
            for one in changed:
                self._was_told(one)

    def _was_told(self, told: _Held) -> None:
        held = self._held.get(told.key)
        if held is told:
            self._untold.discard(told.key)
        if held is not None:
            self._held[told.key] = msgspec.structs.replace(held, told_replies=told.event.replies)

    def _told(self, held: _Held, *, is_over: bool = False) -> Told:
        event, now_s = held.event, self.now_unix_s()
        return Told(
            id=held.id,
            version=held.version,
            key=event.key,
            name=event.name,
            kind=event.kind.value,
            target=event.target.value,
            on_what=event.on,
            began_in_s=min(0.0, event.began_unix_s - now_s),
            until_in_s=None if event.until_unix_s == math.inf else event.until_unix_s - now_s,
            node=self._node,
            automation=event.automation,
            rule=event.rule,
            limits=event.limits,
            base=event.base,
            pool=event.pool,
            step=event.step,
            replies=max(0, event.replies - held.told_replies),
            detail=_storable(event.detail),
            is_over=is_over,
        )

    def _take(self, rows: Iterable[StoredEvent]) -> None:
        """What was found in the database, oldest first: of one key the one in force is the last."""
        for row in rows:
            held = self._held.get(row.key)
            if row.ended_at is not None:
                if held is not None and held.id == row.id:
                    self._drop(held, row.ended_why, row.touched_by)
            elif held is not None and row.key in self._untold:
                # Told of next, and merged there; from now on by its number, so that nothing that is ended comes back.
                if held.id is None:
                    self._held[row.key] = msgspec.structs.replace(held, id=row.id)
            elif held is None or held.id != row.id or held.version < row.version:
                self._adopt(row, held)
        self._obey()

    def _adopt(self, row: StoredEvent, before: _Held | None) -> None:
        held = _held(row, self.now_unix_s())
        if row.until_in_s <= 0 and before is None:
            if all(one.key != held.key for one in self._over):
                self._over.append(held)  # over while no node was there
            return
        self._held[row.key] = held
        _say(held, before)

    def _drop(self, held: _Held, why: str, by_whom: str = "") -> None:
        del self._held[held.key]
        self._untold.discard(held.key)
        log.info("traffic event is over", id=held.id, **_shown(held.event), why=why, by=by_whom)

    def _end_over(self) -> None:
        now_s = self.now_unix_s()
        for held in [one for one in self._held.values() if one.event.until_unix_s <= now_s]:
            self._drop(held, store.OVER)
            self._over.append(held)
            self._news.set()
        self._obey()

    # --- what holds ---------------------------------------------------------------------------

    def _obey(self) -> None:
        self._released |= set(self._apply([held.event.effect for held in self._held.values()]))


def _held(row: StoredEvent, now_unix_s: float) -> _Held:
    return _Held(row.traffic_event(now_unix_s), row.id, row.version, row.replies, row.by_whom, row.touched_by)


def _storable(text: str) -> str:
    """A server's words, as far as PostgreSQL can keep them."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")[: store.DETAIL_CHARS_MAX]


def _shown(event: TrafficEvent) -> dict[str, object]:
    return {"name": event.name, "kind": event.kind.value, "target": event.target.value, "on": event.on}


def _say(held: _Held, before: _Held | None) -> bool:
    """Once a change that somebody decided on; False: it is none, only that more replies have matched."""
    if before is not None and _fingerprint(held) == _fingerprint(before):
        return False
    event = held.event
    for_s = None if event.until_unix_s == math.inf else round(event.until_unix_s - event.began_unix_s)
    limits = store.given_limits(event.limits)
    log.info("traffic event", id=held.id, **_shown(event), for_s=for_s, reply=event.detail, limits=limits)
    return True


def _fingerprint(held: _Held) -> tuple[object, ...]:
    event = held.event
    by_hand = round(event.until_unix_s) if held.touched_by else 0
    return (event.key, event.limits, event.pool, event.step, held.touched_by, by_hand)


class Enforcer:
    """Hands what is in force to who obeys it: the schedule and the intake."""

    def __init__(self, schedule: Schedule[LeasedPart], intake: Intake, egress_ids: Collection[int]) -> None:
        self._schedule = schedule
        self._intake = intake
        self._egress_ids = egress_ids
        self._applied: list[Effect] = []

    def apply(self, effects: Sequence[Effect]) -> Collection[str]:
        """All that is in force from now on; answers the recipient domains that are held back no more."""
        schedule = self._schedule
        wanted = list(spread(effects, lambda: [limit.key for limit in schedule.limits()], self._egress_ids))
        if wanted == self._applied:
            return ()
        self._applied = wanted
        schedule.set_effects(wanted, asyncio.get_running_loop().time())
        return self._intake.set_effects(effects)
