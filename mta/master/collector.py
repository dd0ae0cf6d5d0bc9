"""From outcomes to the settlement: what is settled, what comes back, what moves which counter.

The collector fills one settlement after another; the writer takes them. It is the only place that lowers
``LeasedPart.left``, and it does so for a recipient exactly once.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from mta.failure.scope import Rest
from mta.failure.triage import NOT_JUDGED
from mta.master.books import BatchBook, DeliveryBook, LeasedPart, Refused
from mta.master.new_parts import Later, new_parts
from mta.model.outcome import InDoubtPolicy, Reason, Status
from mta.model.reply import Reply
from mta.outcomes.line import escaped, log_line, session_columns, timestamp, volume_of
from mta.outcomes.replay import Told
from mta.queue.settle import IN_DOUBT_MAX, TRAFFIC_AT, Doubt, Row, Settlement
from mta.traffic.counters import BYTES_SUFFIX, OPENINGS_SUFFIX
from mta.traffic.lanes import Lane
from mta.traffic.quota import BUCKET_S
from mta.traffic.ready import Run
from mta.traffic.refusals import NOTHING_AVOIDED, Avoided, PathRefusal
from mta.traffic.retry import RetrySchedule
from mta.traffic.schedule import Schedule
from mta.wire import Outcome, PathRefused, Report

SURPLUS_STEP_S: Final = 5  # surplus of one site that is due at about the same time shares parts
_BYTES_DELIVERED, _BYTES_OTHER = TRAFFIC_AT["bytes_delivered"], TRAFFIC_AT["bytes_other"]
_random: Final = random.SystemRandom()


class Collector:
    """Owned by the master's loop."""

    def __init__(
        self, schedule: Schedule[LeasedPart], on_work: Callable[[int], None], *, in_doubt_max: int = IN_DOUBT_MAX
    ) -> None:
        """``in_doubt_max``: a recipient that was in doubt so often is held, whatever its delivery says."""
        self._in_doubt_max = in_doubt_max
        self._schedule = schedule
        self._on_work = on_work
        self.parts: dict[int, LeasedPart] = {}
        self.held_bytes = 0  # of their rows
        self.batches: dict[int, BatchBook] = {}
        self._settlement = Settlement(in_doubt_max=in_doubt_max)
        self._lines_bytes = 0
        self._later: dict[Later, tuple[list[int], list[Row]]] = {}
        self._reported: dict[int, int] = {}  # child -> last report in the settlement
        self._rates: dict[str, list[int]] = {}  # recipient domain -> attempted, and of them failed or deferred
        self.on_attempted: Callable[[dict[str, list[int]]], None] | None = None  # told of each report's
        self.unrecorded = 0  # recipients that are settled, but not yet in the database
        # One throw for all that is settled together: what comes back is still few parts, and yet not all at once.
        self._dice = _random.random()

    # --- parts in memory ----------------------------------------------------------------------

    def hold(self, part: LeasedPart) -> None:
        """A part that was claimed; it is here until it is settled or released."""
        self.parts[part.id] = part
        self.held_bytes += len(part.claimed.recipients)
        part.delivery.held_recipients += part.left

    def _let_go(self, part: LeasedPart) -> None:
        del self.parts[part.id]
        self.held_bytes -= len(part.claimed.recipients)

    # --- reports ------------------------------------------------------------------------------

    def report(self, child: int, report: Report, now_s: float) -> None:
        """Takes over what a child reports."""
        self._reported[child] = report.sequence
        if report.lines:
            self._settlement.lines.append(report.lines)
            self._lines_bytes += len(report.lines)
        for told in report.refusals:
            self._path_refused(told, now_s)
        doubts = {(doubt[0], doubt[1]): doubt for doubt in report.doubts}
        for outcome in report.outcomes:
            self._outcome(outcome, doubts, now_s)
        if self._rates:
            rates, self._rates = self._rates, {}
            if self.on_attempted is not None:
                self.on_attempted(rates)
        self._on_work(self._lines_bytes)

    def _outcome(
        self, outcome: Outcome, doubts: dict[tuple[int, int], tuple[int, int, str, str, str]], now_s: float
    ) -> None:
        batch = self.batches[outcome.batch]
        part = self.parts[outcome.part_id]
        open_ = batch.open[outcome.part_id]
        before = len(open_)
        for positions in (
            outcome.delivered,
            outcome.failed,
            outcome.deferred,
            outcome.in_doubt,
            outcome.returned,
            outcome.simulated,
        ):
            open_.difference_update(positions)
        came = before - len(open_)
        returned = len(outcome.returned)
        attempted = came - returned
        delivery = part.delivery
        decided = outcome.delivered + outcome.failed + outcome.simulated
        assert came == len(decided) + len(outcome.deferred) + len(outcome.in_doubt) + returned, "an outcome came twice"
        if not open_:
            del batch.open[outcome.part_id]
            if not batch.open:
                del self.batches[outcome.batch]
        part.out -= came
        if attempted:
            self._attempted(part, delivery, batch, outcome, attempted, now_s)
        if part.refusals and outcome.delivered:
            self._outdone(part, outcome.delivered, now_s)
        greylisted, put_off = frozenset(outcome.greylisted), frozenset(outcome.put_off)
        site, dated = batch.lane.site.key, batch.dated_unix_s
        for position in outcome.deferred:
            decided.append(position)
            egress = self._egress_of(batch) if position in put_off else None
            greylists = position in greylisted
            self._defer(part, position, site, batch.retry, dated, put_off_at=egress, is_greylisted=greylists)
        for position in outcome.in_doubt:
            decided.append(position)
            self._doubt(part, position, doubts[outcome.part_id, position], site, batch.retry, dated)
        accepted = len(outcome.delivered) + len(outcome.simulated)
        self._schedule.decided(batch.session, attempted, returned, now_s, outcome.size_bytes, accepted)
        if returned:
            self._return(part, batch, outcome.returned, now_s)
        if decided:
            self.settle(part, decided)
        if delivery.is_leaving:
            self.release_if_free(part)

    def _attempted(
        self, part: LeasedPart, delivery: DeliveryBook, batch: BatchBook, outcome: Outcome, attempted: int, now_s: float
    ) -> None:
        self._schedule.sent(batch.lane, attempted, now_s)
        count = self._settlement.count
        traffic = self._settlement.traffic_of(time.time(), self._egress_of(batch))
        traffic[_BYTES_DELIVERED] += outcome.delivered_bytes
        traffic[_BYTES_OTHER] += outcome.size_bytes - outcome.delivered_bytes
        for status, positions in (
            (Status.DELIVERED, outcome.delivered),
            (Status.FAILED, outcome.failed),
            (Status.DEFERRED, outcome.deferred),
            (Status.IN_DOUBT, outcome.in_doubt),
            (Status.SIMULATED, outcome.simulated),
        ):
            if positions:
                count(delivery.id, status, len(positions))
                traffic[TRAFFIC_AT[status]] += len(positions)
        self._rate(part, outcome.delivered, 0)
        # What a limit of the host explains, and the first 4yz that a recipient meets, are no errors of its domain.
        excused = set(outcome.excused)
        if part.attempt <= 1:
            excused.update(outcome.put_off)
        for positions in (outcome.failed, outcome.deferred):
            self._rate(
                part, [position for position in positions if position not in excused] if excused else positions, 1
            )
        if outcome.largest_bytes > self._schedule.sizes_bytes.get(delivery.id, 0):
            self._schedule.sizes_bytes[delivery.id] = outcome.largest_bytes
        for key in self._schedule.stored_keys(outcome.limit):
            if not key.endswith(OPENINGS_SUFFIX):
                self._credit(key, outcome.size_bytes if key.endswith(BYTES_SUFFIX) else attempted)

    def _rate(self, part: LeasedPart, positions: list[int], error: int) -> None:
        rates, rows = self._rates, part.rows
        for position in positions:
            address = rows[position][0]
            domain = address[address.rfind("@") + 1 :]
            rate = rates.get(domain)
            if rate is None:
                rates[domain] = [1, error]
            else:
                rate[0] += 1
                rate[1] += error

    def _egress_of(self, batch: BatchBook) -> str:
        session = self._schedule.session(batch.session)
        return "" if session is None else session.group.egress.name

    def _return(self, part: LeasedPart, batch: BatchBook, positions: list[int], now_s: float) -> None:
        if part.delivery.is_expired:
            self.expire(part, positions)
        elif not part.delivery.is_leaving:
            # At the back: one that ends every session it is begun in lets the others go first.
            for lane, run in self._runs_of(part, batch.lane, sorted(positions)):
                self._schedule.put(lane, batch.stream, part.delivery.weight, run, now_s)

    # --- refusals of paths --------------------------------------------------------------------

    def _runs_of(
        self, part: LeasedPart, lane: Lane[LeasedPart], positions: list[int]
    ) -> Iterator[tuple[Lane[LeasedPart], Run[LeasedPart]]]:
        """The lane of each: that which they were in, or the one that keeps them from what has refused them."""
        if not part.refusals:
            yield lane, Run(part, positions)
            return
        by_avoided: dict[Avoided, list[int]] = {}
        for position in positions:
            refused = part.refusals.get(position)
            by_avoided.setdefault(NOTHING_AVOIDED if refused is None else refused.avoided, []).append(position)
        for avoided, of_these in by_avoided.items():
            if avoided != lane.avoided:
                yield self._schedule.lane(lane.site, lane.chooser, lane.domain, avoided), Run(part, of_these)
            else:
                yield lane, Run(part, of_these)

    def _path_refused(self, told: PathRefused, now_s: float) -> None:
        """Remembers of each recipient which paths have refused it in this attempt, and of the path that it refused."""
        session = self._schedule.session(told.session)
        if session is None:
            return  # its recipients go again as if nothing had been said
        refusal = PathRefusal(
            told.scope,
            told.rest,
            told.stage,
            Reply(told.code, told.text, told.enhanced),
            told.status,
            told.reason,
            told.judged,
            session.group.site.key,
            session.group.egress.name,
            session.hop.mx_host,
            session.hop.peer,
        )
        for part_id, position in told.met:
            refusals = self.parts[part_id].refusals
            before = refusals.get(position)
            avoided = refusal.avoided if before is None else before.avoided | refusal.avoided
            refusals[position] = Refused(avoided, refusal)
        self._schedule.refused(told.session, refusal, len(told.met), now_s)

    def _outdone(self, part: LeasedPart, delivered: list[int], now_s: float) -> None:
        """Another path has taken what one refused with words that might have been about the message."""
        for position in delivered:
            refused = part.refusals.get(position)
            if refused is not None and refused.last.rest is Rest.BY_CONTRAST:
                self._schedule.outdone(refused.last, 1, now_s)

    def recovered(
        self, part: LeasedPart, position: int, told: Told, line: bytes, retry: RetrySchedule | None = None
    ) -> None:
        """An outcome that a journal tells of, or the doubt that it leaves, for a part of a dead run.

        ``retry``: of the rule for the host that it was sent to, as far as that is known.
        """
        assert told.status is not None
        self._settlement.lines.append(line)
        self._settlement.count(part.delivery.id, told.status, 1)
        minute_s, egress, sent_bytes = volume_of(line)
        traffic = self._settlement.traffic_of(minute_s, egress)
        traffic[TRAFFIC_AT[told.status]] += 1
        traffic[_BYTES_DELIVERED if told.status is Status.DELIVERED else _BYTES_OTHER] += sent_bytes
        for key in told.limit.split():
            self._credit(key, 1)
        if told.status is Status.DEFERRED:
            self._defer(part, position, "", retry, told.dated_unix_s)
        elif told.status is Status.IN_DOUBT:
            doubt = (part.id, position, told.mx_host, told.peer, told.cause)
            self._doubt(part, position, doubt, "", retry, told.dated_unix_s)
        self.settle(part, [position])

    def name_doubt(self, doubt: Doubt, line: bytes) -> None:
        """A message that may have gone twice, or may yet: it is listed, and nothing else about it changes."""
        self._settlement.lines.append(line)
        self._settlement.count(doubt.delivery_id, Status.IN_DOUBT, 1)
        self._settlement.doubts.append(doubt)

    def opened(self, limits: str) -> None:
        """A connection is begun that is counted on these limits."""
        for key in self._schedule.stored_keys(limits):
            if key.endswith(OPENINGS_SUFFIX):
                self._credit(key, 1)

    def _credit(self, limit: str, used: int) -> None:
        credit = (limit, int(time.time() // BUCKET_S))
        self._settlement.credits[credit] = self._settlement.credits.get(credit, 0) + used

    # --- what comes back later ----------------------------------------------------------------

    def _defer(
        self,
        part: LeasedPart,
        position: int,
        site: str,
        retry: RetrySchedule | None = None,
        dated_unix_s: int = 0,
        *,
        put_off_at: str | None = None,
        is_greylisted: bool = False,
        in_doubt: bool = False,
    ) -> None:
        """``retry``: of the rule that held; None: that of the delivery. ``dated_unix_s``: of the hand-out, if there was
        one. ``put_off_at``: the egress, where a 4yz about the recipient came there; ``is_greylisted``: and it said that
        it is greylisting."""
        delivery = part.delivery
        now_unix_s = time.time()
        schedule = retry or delivery.retry
        due_s = schedule.next_due(
            part.attempt,
            now_unix_s,
            delivery.valid_until_s,
            dice=self._dice,
            is_greylisted=is_greylisted,
            is_put_off=put_off_at is not None,
        )
        # None: no attempt before its validity ends; it comes back then, to expire, and not a moment earlier.
        due_in_s = math.ceil(delivery.valid_until_s - now_unix_s) if due_s is None else round(due_s - now_unix_s)
        egress = put_off_at if put_off_at and part.attempt <= schedule.same_egress_attempts else ""
        attempt = part.attempt
        self._again(part, position, site, attempt, due_in_s, dated_unix_s, egress=egress, in_doubt=in_doubt)

    def _doubt(
        self,
        part: LeasedPart,
        position: int,
        told: tuple[int, int, str, str, str],
        site: str,
        retry: RetrySchedule | None,
        dated_unix_s: int,
    ) -> None:
        delivery = part.delivery
        policy = delivery.view.in_doubt_policy
        _, _, mx_host, peer, cause = told
        self._settlement.doubts.append(
            Doubt(
                delivery.id,
                part.number(position),
                part.id,
                part.attempt,
                part.rows[position][0],
                mx_host,
                peer,
                policy.value,
                cause,
            )
        )
        if policy is InDoubtPolicy.HOLD:
            self._again(part, position, "", part.attempt, 0, dated_unix_s, held=True)
        else:
            self._defer(part, position, site, retry, dated_unix_s, in_doubt=True)

    def _again(
        self,
        part: LeasedPart,
        position: int,
        site: str,
        attempt: int,
        due_in_s: int,
        dated_unix_s: int = 0,
        *,
        held: bool = False,
        egress: str = "",
        in_doubt: bool = False,
    ) -> None:
        # Who was dated once stays so; who was never handed out is dated when he is.
        dated_unix_s = part.dated_unix_s or dated_unix_s
        appended_at, due_in_s, fields = part.claimed.appended_at, max(0, due_in_s), part.fields
        key = Later(
            part.delivery.id, fields, attempt, held, appended_at, due_in_s, site, egress, in_doubt, dated_unix_s
        )
        numbers, rows = self._later.setdefault(key, ([], []))
        numbers.append(part.number(position))
        rows.append(part.rows[position])

    def surplus(self, part: LeasedPart, positions: list[int], site: str, due_in_s: float) -> None:
        """Recipients that cannot go soon return to the queue; no attempt is counted."""
        step_s = math.ceil(due_in_s / SURPLUS_STEP_S) * SURPLUS_STEP_S
        for position in positions:
            self._again(part, position, site, part.attempt - 1, step_s)
        self.settle(part, positions)
        self._on_work(self._lines_bytes)

    # --- decided here -------------------------------------------------------------------------

    def conclude(
        self,
        part: LeasedPart,
        positions: Iterable[int],
        status: Status,
        reason: Reason,
        reply: Reply,
        *,
        site: str = "",
        is_attempt: bool,
        retry: RetrySchedule | None = None,
        judged: str = NOT_JUDGED,
        mx_host: str = "",
        peer: str = "",
        egress: str = "",
    ) -> None:
        """Outcomes that need no session: no route, expired, cancelled, a site that cannot be reached or refuses us.

        ``judged``: type and category, where it is a failure (`mta.failure.judge.judged`). ``mx_host``, ``peer`` and
        ``egress``: of the path whose refusal it is.
        """
        at = timestamp(time.time())
        verdict = f"{status:d}\t{reason:d}\t{reply.code}\t{reply.enhanced}"
        session = session_columns(site, mx_host, peer, egress)
        text = escaped(reply.text)
        attempt = part.attempt if is_attempt else part.attempt - 1
        done = list(positions)
        lines = []
        for position in done:
            address, reference, _ = part.rows[position]
            number = part.number(position)
            lines.append(
                log_line(
                    at,
                    part.delivery.id,
                    number,
                    part.id,
                    attempt,
                    verdict,
                    address,
                    reference,
                    session,
                    text,
                    0,
                    judged,
                )
            )
            if status is Status.DEFERRED:
                self._defer(part, position, site, retry)
        encoded = "".join(lines).encode()
        self._settlement.lines.append(encoded)
        self._lines_bytes += len(encoded)
        self._settlement.count(part.delivery.id, status, len(done))
        if done and status in TRAFFIC_AT:
            self._settlement.traffic_of(time.time(), egress)[TRAFFIC_AT[status]] += len(done)
        self.settle(part, done)
        self._on_work(self._lines_bytes)

    def expire(self, part: LeasedPart, positions: Iterable[int]) -> None:
        """Recipients whose delivery's validity is over: no attempt any more."""
        reply = Reply(0, "the validity of the delivery has ended", "4.4.7")  # RFC 3463 §3.5
        self.conclude(part, positions, Status.EXPIRED, Reason.NOT_DEFINED, reply, is_attempt=False)

    def settle(self, part: LeasedPart, positions: list[int]) -> None:
        """These positions of a leased part are done with; the part goes when none is left."""
        part.left -= len(positions)
        part.forget(positions)
        self._settlement.recipients += len(positions)
        self.unrecorded += len(positions)
        part.delivery.held_recipients -= len(positions)
        assert part.left >= part.out >= 0, f"part {part.id}: {part.left} left, {part.out} out"
        if part.left:
            self._settlement.settled.setdefault(part.id, []).extend(positions)
        else:
            self._settlement.settled.pop(part.id, None)
            self._settlement.finished.append(part.id)
            self._let_go(part)

    def set_aside(self, part_id: int) -> None:
        """A part that cannot be read is held, untouched, for an operator."""
        self._settlement.set_aside.append(part_id)
        self._on_work(self._lines_bytes)

    def release_if_free(self, part: LeasedPart) -> None:
        """Gives a part back to the queue once no child has any of it."""
        if part.left and not part.out and part.id in self.parts:
            part.delivery.held_recipients -= part.left
            self._let_go(part)
            self._settlement.released.append(part.id)
            self._on_work(self._lines_bytes)

    # --- the writer's side --------------------------------------------------------------------

    def recorded(self, settlement: Settlement) -> None:
        """The settlement is in the database."""
        self.unrecorded -= settlement.recipients

    def take(self) -> tuple[Settlement, dict[int, int]]:
        """The settlement so far, and for each child the last report that is in it."""
        settlement, self._settlement = self._settlement, Settlement(in_doubt_max=self._in_doubt_max)
        later, self._later = self._later, {}
        reported, self._reported = self._reported, {}
        self._lines_bytes = 0
        self._dice = _random.random()
        settlement.new_parts.extend(new_parts(later))
        return settlement, reported
