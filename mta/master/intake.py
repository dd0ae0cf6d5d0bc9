"""Taking work in: which deliveries run, which part is claimed next, where its recipients go.

Claims are made only while the memory has room, from the delivery whose turn it is by weighted fair order; so ten
million waiting recipients cost nothing here but their turn.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import asyncpg
import msgspec
import structlog

from mta.dns.resolver import Routes
from mta.failure.judge import judged
from mta.master.books import DeliveryBook, LeasedPart
from mta.master.collector import Collector
from mta.master.dispatch import Dispatch
from mta.master.duplicates import DuplicateChecks
from mta.master.keys import KeyStore
from mta.master.routing import Routing, Waiting
from mta.message.keyring import sender_domain_of
from mta.model.egress import EgressPool
from mta.model.failure import Category, FailureType, Verdict
from mta.model.limits import AUTO_PART_RECIPIENTS_MAX
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.model.waiting import Wait, WaitReason
from mta.queue import claim as claims
from mta.queue import quarantine
from mta.queue.claim import ClaimedPart, DeliveryView
from mta.queue.connection import DATABASE_AWAY, Conn, acquire
from mta.queue.nodes import NodeRun
from mta.settings.config import MasterSettings
from mta.telemetry.faults import log_internal_error
from mta.telemetry.outages import DATABASE
from mta.telemetry.waits import event_or_timeout
from mta.traffic.effects import Effect
from mta.traffic.egress import EgressChooser
from mta.traffic.fair import FairQueue
from mta.traffic.holds import Holds
from mta.traffic.rules import RuleSet
from mta.traffic.schedule import Schedule

log = structlog.get_logger()

# A delivery with less than this in memory may always claim: a small one gets in though large ones fill the room.
# Between what is committed there and what an append could see of it, with time to spare.
QUARANTINE_MARGIN = datetime.timedelta(minutes=5)
FINISH_PERIOD_S = 0.5  # between looks for deliveries that are done
FOOTHOLD_RECIPIENTS = 2 * AUTO_PART_RECIPIENTS_MAX


class Intake:
    """Owned by the master's loop; `run` is its only task."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        run: NodeRun,
        settings: MasterSettings,
        pools: Mapping[str, EgressPool],
        resolver: Routes,
        schedule: Schedule[LeasedPart],
        collector: Collector,
        dispatch: Dispatch,
        flushed: Callable[[], Awaitable[None]],
        keys: KeyStore,
    ) -> None:
        self._pool = pool
        self._flushed = flushed  # returns when all that is collected is recorded
        self._run = run
        self._settings = settings
        self._choosers = {name: EgressChooser(egress_pool) for name, egress_pool in pools.items()}
        self._holds = Holds(self._choosers, self._warn_of_pool)
        self._routing = Routing(resolver, schedule, collector, dispatch, self._holds)
        self._schedule = schedule
        self._collector = collector
        self._dispatch = dispatch
        self._fair: FairQueue[int] = FairQueue(quantum=AUTO_PART_RECIPIENTS_MAX)
        self._expiries: dict[int, asyncio.TimerHandle] = {}  # delivery -> the end of its validity
        self._news = asyncio.Event()
        self._unknown_pools: set[str] = set()
        self._keys = keys
        self._duplicates = DuplicateChecks(pool, self.notify)
        self.waits: dict[int, Wait] = {}  # deliveries of which nothing is claimed, though it is due
        self.deliveries: dict[int, DeliveryBook] = {}
        self.due_views: dict[int, DeliveryView] = {}
        self._finished_at_s = 0.0
        self.is_stopping = False
        self._quarantined_at: datetime.datetime | None = None  # when the last address became one that is not mailed
        self.trouble = ""
        self.claim_s = 0.0  # what a claim takes, lately
        self._claim_began_s = math.inf  # of the one that is under way

    def claiming_s(self, now_s: float) -> float:
        """For how long it has waited for the claim under way; 0 when there is none."""
        return max(0.0, now_s - self._claim_began_s)

    @property
    def asked(self) -> Mapping[str, list[Waiting]]:
        """Domains whose route is not known yet, each with who waits for it."""
        return self._routing.asked

    def notify(self) -> None:
        """Something in the queue has changed (NOTIFY), or memory became free."""
        self._news.set()

    def keys_changed(self) -> None:
        """What cannot be signed any more goes back to the queue, what can be now is claimed."""
        self._look_at_deliveries()

    def _look_at_deliveries(self) -> None:
        for book in list(self.deliveries.values()):
            if book.held_recipients and not book.is_leaving and not self._may_go(book):
                self._let_go(book)
        self._news.set()

    def set_rules(self, rules: RuleSet) -> None:
        """For the pools that they name; they hold for what comes in from now on."""
        self._holds.set_rules(rules)

    def set_effects(self, effects: Iterable[Effect]) -> frozenset[str]:
        """All that is in force from now on; answers the recipient domains that are held back no more.

        What children have been given of a domain or a site still goes.
        """
        changes = self._holds.set_effects(effects)
        if changes.has_deliveries:
            self._look_at_deliveries()
        self._routing.take_in_anew(changes)
        self._dispatch.wake()
        return changes.released

    @property
    def held_recipients(self) -> int:
        return sum(book.held_recipients for book in self.deliveries.values())

    async def run(self) -> None:
        """Claims while there is room and work; looks again on news, when something is due, or after the poll time."""
        while not self.is_stopping:
            wait_s = self._settings.poll_idle_s
            self._news.clear()
            self._claim_began_s = math.inf
            try:
                async with acquire(self._pool) as conn:
                    if self.trouble:
                        await self._release_strays(conn)
                        self.trouble = ""
                        DATABASE.answered("claim")
                    views = await claims.active_deliveries(conn)
                    self._refresh(views)
                    self._duplicates.look(views)
                    self._quarantined_at = await quarantine.latest(conn)
                    await self._cancel_cancelled(conn)
                    await self._finish_ended(conn)
                    wait_s = min(wait_s, await self._claim_due(conn))
            except DATABASE_AWAY as error:
                self.trouble = f"{type(error).__name__}: {error}"
                DATABASE.failed("claim", error)
            await event_or_timeout(self._news, wait_s)

    async def _finish_ended(self, conn: Conn) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._finished_at_s >= FINISH_PERIOD_S:
            self._finished_at_s = now_s
            if await claims.finish_ended_deliveries(conn):
                self._news.set()

    async def _release_strays(self, conn: Conn) -> None:
        """A claim whose answer was lost leased parts that nobody here knows of: they go back to the queue."""
        known = set(self._collector.parts)
        strays = set(await claims.owned_part_ids(conn, self._run.id)) - known
        if strays:
            # Parts that are done with leave `parts` before the database: what is collected must be recorded first.
            await self._flushed()
            strays &= set(await claims.owned_part_ids(conn, self._run.id))
            strays -= set(self._collector.parts)
        if strays:
            log.warning("parts of a lost claim go back to the queue", parts=len(strays))
            await claims.release(conn, self._run.id, sorted(strays))

    # --- deliveries ---------------------------------------------------------------------------

    def _refresh(self, views: list[DeliveryView]) -> None:
        """Adopts the deliveries that run; lets go of those that do not run any more."""
        running = {view.id: view for view in views if view.state == "running"}
        self.due_views = {view.id: view for view in views if view.due_in_s is not None}
        self.waits = {key: wait for key, wait in self.waits.items() if key in running}
        for view in running.values():
            try:
                self._take_view(view)
            except Exception as error:
                log_internal_error("reading a delivery", error, delivery=view.id)
        for book in list(self.deliveries.values()):
            if book.id not in running and not book.is_leaving:
                self._let_go(book)
            elif not book.held_recipients and (book.is_leaving or book.id not in self.due_views):
                self._forget(book)

    def _take_view(self, view: DeliveryView) -> None:
        book = self.deliveries.get(view.id)
        if book is None:
            if view.due_in_s is not None and (chooser := self._chooser(view)):
                self._adopt(DeliveryBook(view, chooser))
        elif not book.is_leaving:
            book.update(view)

    def _adopt(self, book: DeliveryBook) -> None:
        self.deliveries[book.id] = book
        delay_s = max(0.0, book.valid_until_s - time.time())
        self._expiries[book.id] = asyncio.get_running_loop().call_later(delay_s, self._expire, book)

    def _expire(self, book: DeliveryBook) -> None:
        """Its validity ends: what is not begun never will be. By timer, so that it also holds without a database."""
        if book.is_leaving:
            return
        if not book.is_expired:  # the clock was set back, or the validity was made longer
            self._adopt(book)
            return
        for part, positions in self._schedule.remove_delivery(book.id):
            self._collector.expire(part, positions)
        for waiting in self._routing.asked.values():
            for one in waiting:
                if one.part.delivery is book:
                    self._collector.expire(one.part, one.positions)
            waiting[:] = [one for one in waiting if one.part.delivery is not book]
        self._dispatch.recall(book.id)
        self._news.set()

    def _chooser(self, view: DeliveryView) -> EgressChooser | None:
        chooser = self._choosers.get(view.egress_pool)
        if chooser is None and view.valid_until.timestamp() <= time.time():
            return next(iter(self._choosers.values()))  # only to end it: nothing is sent any more
        if chooser is None:
            self.waits[view.id] = Wait(
                WaitReason.NO_EGRESS, math.inf, f"pool {view.egress_pool} is not configured on this node"
            )
        if chooser is None and view.egress_pool not in self._unknown_pools:
            self._unknown_pools.add(view.egress_pool)
            log.warning(
                "delivery waits: its egress pool is not configured on this node",
                delivery=view.id,
                pool=view.egress_pool,
                known=sorted(self._choosers),
            )
        return chooser

    def _warn_of_pool(self, pool: str) -> None:
        log.warning(
            "another pool is asked for that is not configured on this node", pool=pool, known=sorted(self._choosers)
        )

    def _let_go(self, book: DeliveryBook) -> None:
        """Paused, cancelled or finished elsewhere: nothing of it is begun from here on."""
        book.is_leaving = True
        if expiry := self._expiries.pop(book.id, None):
            expiry.cancel()
        for _ in self._schedule.remove_delivery(book.id):
            pass  # the parts know what is left of them
        self._dispatch.recall(book.id)
        for part in [part for part in self._collector.parts.values() if part.delivery is book]:
            self._collector.release_if_free(part)

    def _forget(self, book: DeliveryBook) -> None:
        del self.deliveries[book.id]
        if expiry := self._expiries.pop(book.id, None):
            expiry.cancel()
        self._fair.remove(book.id)
        self._dispatch.forget(book.id)

    async def _cancel_cancelled(self, conn: Conn) -> None:
        """Recipients of cancelled deliveries get their outcome without an attempt."""
        for view in self.due_views.values():
            if view.state != "cancelled" or view.id in self.deliveries:
                continue
            chooser = next(iter(self._choosers.values()))
            book = DeliveryBook(view, chooser)
            for claimed in await claims.claim(
                conn, self._run.id, view.id, self._settings.claim_parts_max, also_not_due=True
            ):
                if part := self._lease(claimed, book):
                    reply = Reply(0, "cancelled by an operator")
                    self._collector.conclude(
                        part, part.open_positions(), Status.CANCELLED, Reason.NOT_DEFINED, reply, is_attempt=False
                    )
            self._news.set()

    # --- claims -------------------------------------------------------------------------------

    async def _claim_due(self, conn: Conn) -> float:
        """Claims in fair order until memory or work is used up; seconds until something more is due."""
        due = {}
        next_due_s = float("inf")
        for view in self.due_views.values():
            assert view.due_in_s is not None
            book = self.deliveries.get(view.id)
            if book is None or book.is_leaving or not self._may_go(book) or self._waits_for_machine(book):
                continue
            if view.due_in_s <= 0 or book.is_expired:
                due[view.id] = book
                self._fair.add(view.id, book.weight)
            else:
                next_due_s = min(next_due_s, view.due_in_s)
        for absent in [key for key in self.deliveries if key in self._fair and key not in due]:
            self._fair.remove(absent)
        is_full = False
        while due and not self.is_stopping:
            delivery_id = self._fair.pick()
            assert delivery_id is not None, "what is due is in the fair queue"
            book = due[delivery_id]
            allowed = self._allowance(book, sum(other.weight for other in due.values()))
            if allowed <= 0:
                is_full = True
                self._fair.remove(delivery_id)
                del due[delivery_id]
                continue
            if self._waits_for_machine(book) or not await self._has_content(conn, book):
                self._fair.remove(delivery_id)
                del due[delivery_id]
                continue
            parts = max(1, min(self._settings.claim_parts_max, allowed // book.part_recipients))
            loop = asyncio.get_running_loop()
            self._claim_began_s = loop.time()
            claimed = await claims.claim(conn, self._run.id, delivery_id, parts, also_not_due=book.is_expired)
            self.claim_s += 0.2 * (loop.time() - self._claim_began_s - self.claim_s)
            self._claim_began_s = math.inf
            if not claimed:
                self._fair.remove(delivery_id)
                del due[delivery_id]
                continue
            self._fair.charge(delivery_id, sum(part.count for part in claimed))
            book.part_recipients = max(part.count for part in claimed)
            parts_held = [part for one in claimed if (part := self._lease(one, book)) is not None]
            excluded = await self._not_mailed(conn, book, parts_held)
            for part in parts_held:
                if part.id in self._collector.parts:  # not given back meanwhile
                    self._admit(part, book, excluded)
            self._dispatch.wake()
            await asyncio.sleep(0)  # let reports in between two claims
        return 0.05 if is_full else max(0.01, next_due_s)

    async def _has_content(self, conn: Conn, book: DeliveryBook) -> bool:
        """Reads a delivery's content before its first claim. False: its messages may not be sent now."""
        if book.id not in self._dispatch.contents:
            content = await claims.delivery_content(conn, book.id)
            try:
                book.sender_domain = sender_domain_of(content) or ""
            except Exception as error:
                log_internal_error("reading the content of a delivery, which waits", error, delivery=book.id)
                return False
            if not self._may_go(book):
                return False
            self._dispatch.contents[book.id] = content
        return True

    def _may_go(self, book: DeliveryBook) -> bool:
        """False: nothing of it may be begun now, as it is suspended or cannot be signed; `waits` has why."""
        if book.is_expired:
            return True
        effect = self._holds.delivery(book.id, book.sender_domain)
        if effect is not None:
            until_s = effect.until_unix_s - time.time() + asyncio.get_running_loop().time()
            detail = f"{effect.target} {effect.on}: {effect.said}"
            self.waits[book.id] = Wait(WaitReason.SUSPENDED, until_s, detail)
            return False
        wait = self.waits.get(book.id)
        if wait is not None and wait.reason in (WaitReason.SUSPENDED, WaitReason.MACHINE):
            del self.waits[book.id]
        return self._is_signable(book)

    def _waits_for_machine(self, book: DeliveryBook) -> bool:
        """True: this machine can send nothing of it now, so nothing is claimed; `waits` has why.

        When the pause is over a little is claimed, to try again with, unless there is some in memory.
        """
        if book.is_expired or not self._schedule.faults.open:
            return False
        now_s = asyncio.get_running_loop().time()
        is_tried = bool(self.asked)
        wait = self._routing.resolver_wait(now_s)
        if wait is None:
            is_tried = book.held_recipients > 0
            wait = self._schedule.machine_wait(book.chooser.pool.egresses, now_s)
        if wait is None:
            return False
        self.waits[book.id] = wait
        return is_tried or now_s < wait.until

    def _is_signable(self, book: DeliveryBook) -> bool:
        """False: nothing of it may be sent now. It then waits for a key, and is told of once."""
        if not book.sender_domain or book.is_expired:  # not known yet, or past being sent
            return True
        if self._keys.ring.signers_for(book.sender_domain) is not None:
            if self.waits.pop(book.id, None):
                log.info("delivery goes on: its messages can be signed", delivery=book.id)
            return True
        if book.id not in self.waits:
            self.waits[book.id] = Wait(WaitReason.NO_SIGNING_KEY, float("inf"), book.sender_domain)
            log.warning(
                "delivery waits: its messages cannot be signed", delivery=book.id, sender_domain=book.sender_domain
            )
        return False

    def _allowance(self, book: DeliveryBook, weights: int) -> int:
        """How many more recipients of a delivery the memory has room for; ``weights`` is the sum over those that claim.

        By weight, as what children have in hand at a time would otherwise decide the shares, whatever the weights say.
        """
        bound = self._settings.ready_recipients_max
        # What waits for the writer is in memory too: a slow database holds the claims back.
        held = self.held_recipients + self._collector.unrecorded
        if self._collector.held_bytes >= self._settings.ready_mbytes_max << 20:
            return 0
        # Footholds may go over the bound, but not so far that the schedule sheds again what was just claimed.
        foothold = min(FOOTHOLD_RECIPIENTS, bound // 8)
        if book.held_recipients < foothold and held < bound + bound // 8:
            return foothold
        share = bound * book.weight // weights
        return min(bound - held, max(share, foothold) - book.held_recipients)

    def _lease(self, claimed: ClaimedPart, book: DeliveryBook) -> LeasedPart | None:
        try:
            part = LeasedPart(claimed, book)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            # Nobody but a hand in the database writes such a part. It is held, untouched, and named.
            log.error("part cannot be read and is held", part=claimed.id, delivery=book.id, error=str(error))
            self._collector.set_aside(claimed.id)
            return None
        except Exception as error:
            log_internal_error("reading a part, which is held", error, part=claimed.id, delivery=book.id)
            self._collector.set_aside(claimed.id)
            return None
        self._collector.hold(part)
        if not part.left:
            self._collector.settle(part, [])
            return None
        return part

    async def _not_mailed(self, conn: Conn, book: DeliveryBook, parts: list[LeasedPart]) -> dict[str, Reason]:
        """Recipients of these parts that are not to be mailed. What was known at the append is excluded since then."""
        latest = self._quarantined_at
        if latest is None or book.view.keeps_quarantined:
            return {}
        since = latest + QUARANTINE_MARGIN
        addresses = [
            part.rows[position][0]
            for part in parts
            if book.view.has_waves or part.claimed.appended_at <= since
            for position in part.open_positions()
        ]
        return await quarantine.not_mailed(conn, addresses) if addresses else {}

    def _exclude(self, part: LeasedPart, excluded: dict[str, Reason]) -> None:
        by_reason: dict[Reason, list[int]] = {}
        for position in part.open_positions():
            if (reason := excluded.get(part.rows[position][0])) is not None:
                by_reason.setdefault(reason, []).append(position)
        for reason, positions in by_reason.items():
            reply = Reply(0, "denylisted" if reason is Reason.DENYLISTED else "in quarantine")
            columns = judged(Verdict(FailureType.IGNORED, reason, Category.NONE))
            self._collector.conclude(part, positions, Status.EXCLUDED, reason, reply, is_attempt=False, judged=columns)

    def _admit(self, part: LeasedPart, book: DeliveryBook, excluded: dict[str, Reason]) -> None:
        """Groups a part's recipients by domain and sends each group on its way."""
        if book.is_expired:
            self._collector.expire(part, part.open_positions())
            return
        if book.is_leaving or not self._may_go(book):  # its key was taken away while it was claimed
            self._collector.release_if_free(part)
            return
        going = part.open_positions()
        if excluded:
            going = [position for position in going if part.rows[position][0] not in excluded]
            self._exclude(part, excluded)
        if going:
            self._routing.take_in(part, going)

    async def stop(self) -> None:
        """No more claims; look-ups are dropped, their recipients go back with their parts."""
        self.is_stopping = True
        self._news.set()
        for expiry in self._expiries.values():
            expiry.cancel()
        await self._duplicates.stop()
        await self._routing.stop()
