"""Performs what the schedule decides: sessions to open and close, batches to hand out, recipients to give back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count
from typing import Final

import msgspec

from mta.failure.judge import Judge, judged
from mta.failure.scope import rest_of, scope_of
from mta.failure.session_words import says_too_many_connections
from mta.master.books import BatchBook, DeliveryBook, LeasedPart
from mta.master.children import Child, Children
from mta.master.collector import Collector
from mta.model.egress import source_for
from mta.model.failure import Category, Evidence
from mta.model.limits import PART_BYTES_MAX
from mta.model.outcome import Status
from mta.model.reply import Reply
from mta.smtp.envelope import Stage
from mta.traffic.ready import Run
from mta.traffic.refusals import PathRefusal
from mta.traffic.rules import Rule
from mta.traffic.schedule import CloseSession, GiveBack, HandOut, OpenSession, Schedule
from mta.wire import Batch, BatchPart, Close, Forget, Open, OpenFailed, Recall, Template

# Dates are a little older than the hand-out, so that those who are deferred together come back in one part.
DATE_STEP_S: Final = 5
# A part's rows are below PART_BYTES_MAX, so a batch stays below twice this, and far below a frame's bound.
BATCH_BYTES_MAX: Final = PART_BYTES_MAX
_pack: Final = msgspec.json.Encoder().encode


class Dispatch:
    """Owned by the master's loop. `pump` is called through `wake`, once a turn however often it is woken."""

    def __init__(
        self, schedule: Schedule[LeasedPart], collector: Collector, children: Children, judge: Judge, *, port: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._schedule = schedule
        self._collector = collector
        self._children = children
        self.judge = judge  # of sites that cannot be reached
        self._port = port
        self._batches = count(1)
        self._is_woken = False
        self._timer: asyncio.TimerHandle | None = None
        self.contents: dict[int, bytes] = {}  # delivery -> content, while the node works on it
        self.automations_of: Callable[[Rule], tuple[int, ...]] | None = None  # what children look for in replies
        # Of what is given up, what stays so: the others have a way (`mta.master.routing.Routing.follow`).
        self.follow: Callable[[list[GiveBack[LeasedPart]]], list[GiveBack[LeasedPart]]] | None = None
        self.hold_reason = ""  # not empty: nothing is handed out (lease, journal, drain)

    def wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.hold_reason:
            return
        now_s = self._loop.time()
        touched: set[int] = set()
        given_up: list[GiveBack[LeasedPart]] = []
        for action in self._schedule.hand_out(now_s):
            if isinstance(action, HandOut):
                touched.add(self._hand_out(action, now_s))
            elif isinstance(action, OpenSession):
                touched.add(self._open(action))
            elif isinstance(action, CloseSession):
                touched.add(self._close(action))
            elif action.is_attempt:
                given_up.append(action)
            else:
                self.give_back(action)
        self._give_up(given_up)
        for number in touched:
            if child := self._children.living.get(number):
                child.flush()
        if self._schedule.has_runnable:
            self.wake()
        elif (due_s := self._schedule.next_due_s()) < float("inf"):
            self._timer = self._loop.call_at(due_s, self.wake)

    def _open(self, action: OpenSession) -> int:
        session = action.session
        hop, egress, obeyed = session.hop, session.group.egress, session.obeyed
        child = self._children.living[session.child]
        child.tell(
            Open(
                session=session.id,
                site=session.group.site.key,
                mx_host=hop.mx_host,
                peer=hop.peer,
                port=hop.rule.port or self._port,
                egress=egress.name,
                limit=hop.keys,
                source=source_for(egress, hop.peer),
                helo=hop.rule.helo or egress.helo,
                tls=session.tls.value,
                pipelining=hop.rule.pipelining and obeyed.pipelining,
                chunking=hop.rule.chunking and obeyed.chunking,
                recipients_per_transaction_max=min(hop.rule.recipients_per_transaction_max, obeyed.recipients_max),
                timeouts=hop.rule.timeouts,
                automations=() if self.automations_of is None else self.automations_of(hop.rule),
                authorities=hop.authorities,
                pipelines_behind_end=obeyed.pipelines_behind_end,
                resets_max=obeyed.resets_max,
            )
        )
        self._collector.opened(hop.keys)
        return child.number

    def _close(self, action: CloseSession) -> int:
        child = self._children.living.get(action.session.child)
        if child is not None:
            child.tell(Close(action.session.id, action.gives_back))
        return action.session.child

    def _hand_out(self, action: HandOut[LeasedPart], now_s: float) -> int:
        session = action.session
        if action.taken[0][0].delivery.is_expired:  # all of a stream are of one delivery
            for part, positions in action.taken:
                self._collector.expire(part, positions)
            self._schedule.decided(session.id, 0, action.amount, now_s)
            return session.child
        child = self._children.living.get(session.child)
        if child is None:
            # Its end is not dealt with yet: the recipients stay here.
            for part, positions in action.taken:
                run = Run(part, positions)
                self._schedule.put(action.lane, action.stream, part.delivery.weight, run, now_s, at_front=True)
            self._schedule.decided(session.id, 0, action.amount, now_s)
            return session.child
        self._send_template(child, action.taken[0][0].delivery)
        parts: list[BatchPart] = []
        rows: list[bytes] = []
        size_bytes = 0
        dated_unix_s = int(time.time()) // DATE_STEP_S * DATE_STEP_S
        for part, positions in action.taken:
            of_part = part.rows
            packed = _pack([of_part[position] for position in positions])[1:-1]
            if parts and size_bytes + len(packed) > BATCH_BYTES_MAX:
                self._send_batch(child, action, parts, rows, dated_unix_s)
                parts, rows, size_bytes = [], [], 0
            part.out += len(positions)
            # The Date is that of the first hand-out, not of the append: what waited for hours is not hours old.
            of_part_s = part.dated_unix_s or dated_unix_s
            parts.append(BatchPart(part.id, part.attempt, of_part_s, positions, part.numbers(positions)))
            rows.append(packed)
            size_bytes += len(packed)
        self._send_batch(child, action, parts, rows, dated_unix_s)
        return child.number

    def _send_batch(
        self, child: Child, action: HandOut[LeasedPart], parts: list[BatchPart], rows: list[bytes], dated_unix_s: int
    ) -> None:
        number = next(self._batches)
        open_: dict[int, set[int]] = {}
        for part in parts:
            open_.setdefault(part.part_id, set()).update(part.positions)
        session, stream = action.session, action.stream
        self._collector.batches[number] = BatchBook(
            session.id, child.number, action.lane, stream, open_, session.hop.rule.retry, dated_unix_s
        )
        packed = b"[" + b",".join(rows) + b"]"
        is_rerouted = bool(action.lane.avoided)
        child.tell(Batch(number, session.id, stream.delivery_id, stream.fields, parts, packed, is_rerouted))

    def _send_template(self, child: Child, delivery: DeliveryBook) -> None:
        if delivery.id not in child.templates:
            child.templates.add(delivery.id)
            child.tell(Template(delivery.id, self.contents[delivery.id], delivery.view.is_simulated))

    def recall(self, delivery_id: int | None) -> None:
        """Children give back what they have not begun, of one delivery or of all."""
        self._children.tell_all(Recall(delivery_id))

    def forget(self, delivery_id: int) -> None:
        """The node works on this delivery no more."""
        self.contents.pop(delivery_id, None)
        self._schedule.sizes_bytes.pop(delivery_id, None)
        for child in self._children.living.values():
            if delivery_id in child.templates:
                child.templates.discard(delivery_id)
                child.tell(Forget(delivery_id))

    def not_opened(self, failed: OpenFailed, now_s: float) -> None:
        """A session was refused: where that is about us, its path rests. Before the schedule hears of its end."""
        session = self._schedule.session(failed.session)
        if session is None or not failed.code:
            return
        stage, reply = Stage[failed.stage], Reply(failed.code, failed.text, failed.enhanced)
        host, egress = session.hop, session.group.egress.name
        verdict = self.judge.verdict(
            Evidence(failed.code, failed.enhanced, failed.text, stage.name.lower(), host.mx_host)
        )
        scope = scope_of(stage, reply, verdict)
        is_busy = not (reply.is_permanent or verdict.category is Category.IP_BLOCKED)
        if not scope.is_of_path or is_busy or says_too_many_connections(failed.text):
            return  # busy, or in trouble: it is tried again soon, beside the sessions that are open
        refusal = PathRefusal(
            scope,
            rest_of(scope, stage, reply, verdict),
            failed.stage,
            reply,
            Status.DEFERRED,
            verdict.reason,
            judged(verdict),
            session.group.site.key,
            egress,
            host.mx_host,
            host.peer,
        )
        self._schedule.refused(failed.session, refusal, session.in_flight, now_s)

    def _give_up(self, given_up: list[GiveBack[LeasedPart]]) -> None:
        """All paths of their sites are away: these are deferred, but for those who have another route by now."""
        if given_up and self.follow is not None:
            given_up = self.follow(given_up)
        for action in given_up:
            self.give_back(action)

    def give_back(self, action: GiveBack[LeasedPart]) -> None:
        """These recipients leave the memory."""
        if action.part.delivery.is_leaving:
            return  # it goes back as a whole, or has gone: recipients in a part of their own would be there twice
        if not action.is_attempt:
            self._collector.surplus(action.part, action.positions, action.lane.site.key, action.due_in_s)
            return
        by_refusal: dict[PathRefusal | None, list[int]] = {}
        of_lane = action.lane.last_refusal()
        for position in action.positions:
            refused = action.part.refusals.get(position)
            by_refusal.setdefault(of_lane if refused is None else refused.last, []).append(position)
        for refusal, positions in by_refusal.items():
            if refusal is None:
                self._not_reached(action, positions)
            else:
                self._refused_by_all(action, positions, refusal)

    def _not_reached(self, action: GiveBack[LeasedPart], positions: list[int]) -> None:
        """No session was to be had with the site."""
        site = action.lane.site.key
        # 4.4.1: no answer from host (RFC 3463 §3.5).
        reply = Reply(0, f"no session with {site}: {action.cause}", "4.4.1")
        verdict = self.judge.verdict(Evidence(0, "4.4.1", action.cause, "connect", site))
        self._collector.conclude(
            action.part,
            positions,
            Status.DEFERRED,
            verdict.reason,
            reply,
            site=site,
            is_attempt=True,
            retry=self._schedule.rule_of(action.lane).retry,
            judged=judged(verdict),
        )

    def _refused_by_all(self, action: GiveBack[LeasedPart], positions: list[int], refusal: PathRefusal) -> None:
        """Every path there is has refused these recipients or rests after refusals: the last one is their outcome."""
        has_met = positions[0] in action.part.refusals
        self._collector.conclude(
            action.part,
            positions,
            refusal.status if has_met else Status.DEFERRED,
            refusal.reason,
            refusal.reply,
            site=action.lane.site.key,
            is_attempt=True,
            retry=self._schedule.rule_of(action.lane).retry,
            judged=refusal.judged,
            mx_host=refusal.mx_host,
            peer=refusal.peer,
            egress=refusal.egress,
        )
