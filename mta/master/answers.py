"""What the daemon says of itself when it is asked (`mta.master.control`), read from the state that decides.

Nothing here changes anything, and no answer keeps the loop for more than some milliseconds: long lists are read in
slices, between which all else goes on, and are cut off at a bound that the answer names.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from mta import is_compiled
from mta.dns.resolver import Routes
from mta.master.books import LeasedPart
from mta.master.control import Answerer, Question
from mta.model.errors import BadInput
from mta.model.site import Site
from mta.outcomes.writer import Writer
from mta.settings.config import Settings
from mta.traffic.diagnosis import SILENT_S, MachineTrouble, NodeFacts, Waiting
from mta.traffic.explain_now import LimitNow, count_waiting, event_of, is_lane_of, lane_now, limit_rows
from mta.traffic.lanes import Lane
from mta.traffic.machine_faults import OpenFault
from mta.traffic.rules import RuleSet
from mta.traffic.sessions import Group

if TYPE_CHECKING:
    from mta.master.daemon import Daemon

T = TypeVar("T")
SLICE: Final = 200  # lanes, batches or limits looked at in one turn of the loop
LIST_MAX: Final = 500  # entries of one answer, of any kind
LANES_MAX: Final = 10  # told of in full


class Answers:
    """Answers for one run. Everything is asked for and read in the master's loop."""

    def __init__(
        self,
        daemon: Daemon,
        settings: Settings,
        writer: Writer,
        resolver: Routes,
        rules: Callable[[], RuleSet],
        lease_until_s: Callable[[], float],
    ) -> None:
        """``rules``: those in force; ``lease_until_s``: until when the node's lease is certain, on the loop's clock."""
        self._daemon = daemon
        self._settings = settings
        self._writer = writer
        self._resolver = resolver
        self._rules = rules
        self._lease_until_s = lease_until_s
        self._started_unix_s = time.time()

    def table(self) -> dict[str, Answerer]:
        """By what is asked."""
        return {
            "status": self.status,
            "explain": self.explain,
            "limits": self.limits,
            "effects": self.effects,
            "slow": self.slow,
        }

    def _now(self) -> tuple[float, float]:
        return asyncio.get_running_loop().time(), time.time()

    # --- status -------------------------------------------------------------------------------

    async def status(self, question: Question) -> dict[str, object]:
        """How the node is: children, database, memory, and what its lanes wait for."""
        daemon = self._daemon
        now_s, _ = self._now()
        reasons: Counter[str] = Counter()
        async for lane in _sliced(daemon.schedule.lanes):
            if lane.ready.count:
                reasons["goes" if lane.wait is None else lane.wait.reason.value] += lane.ready.count
        intake, collector, writer = daemon.intake, daemon.collector, self._writer
        return {
            "node": daemon.node.name,
            "run": daemon.node.id,
            "started_unix_s": self._started_unix_s,
            "compiled": is_compiled(),
            "hold": daemon.dispatch.hold_reason,
            "lease_left_s": self._lease_until_s() - now_s,
            "ready": daemon.schedule.ready_count,
            "waiting_by_reason": dict(reasons.most_common()),
            "sessions": daemon.schedule.sessions_count,
            "parts": len(collector.parts),
            "recipients_in_memory": intake.held_recipients,
            "recipients_in_memory_max": self._settings.master.ready_recipients_max,
            "unrecorded": collector.unrecorded,
            "asked_domains": len(intake.asked),
            "children": self._children(now_s),
            "database": {
                "trouble": writer.trouble or intake.trouble,
                "commit_s": writer.commit_s,
                "committing_s": writer.committing_s(now_s),
                "claim_s": intake.claim_s,
                "claiming_s": intake.claiming_s(now_s),
            },
            "machine_faults": [
                {
                    "cause": one.cause.value,
                    "egress": one.egress,
                    "what": one.what,
                    "remedy": one.remedy,
                    "since_s": now_s - one.since_s,
                    "times": one.met,
                }
                for one in self._machine_faults()
            ],
            "deliveries": self._deliveries(),
        }

    def _machine_faults(self) -> list[OpenFault]:
        return list(self._daemon.schedule.faults.open.values())[:LIST_MAX]

    def _children(self, now_s: float) -> dict[str, object]:
        children = self._daemon.children
        living = [
            {
                "child": child.number,
                "pid": child.pid if child.process is not None else 0,
                "silent_s": max(0.0, now_s - child.heard_at_s),
                "is_draining": child.is_draining,
                "journal_trouble": child.journal_trouble,
                "rss_bytes": child.health.rss_bytes,
                "cpu_s": child.health.cpu_s,
                "messages": child.health.messages,
                "sessions": child.health.sessions,
            }
            for child in children.living.values()
        ]
        return {"missing": children.missing, "sessions_max": self._settings.children.sessions_max, "living": living}

    def _deliveries(self) -> list[dict[str, object]]:
        intake = self._daemon.intake
        ids = sorted(intake.deliveries.keys() | intake.waits.keys())[:LIST_MAX]
        return [self._delivery(delivery_id) for delivery_id in ids]

    def _delivery(self, delivery_id: int) -> dict[str, object]:
        intake = self._daemon.intake
        book, wait = intake.deliveries.get(delivery_id), intake.waits.get(delivery_id)
        return {
            "delivery": delivery_id,
            "in_memory": 0 if book is None else book.held_recipients,
            "is_leaving": book is not None and book.is_leaving,
            "reason": "" if wait is None else wait.reason.value,
            "detail": "" if wait is None else wait.detail,
            "event": "" if wait is None else event_of(wait),
            "until_unix_s": self._unix(wait.until) if wait is not None else None,
        }

    def _unix(self, at_s: float) -> float | None:
        now_s, unix_s = self._now()
        return None if at_s == float("inf") else at_s - now_s + unix_s

    # --- explain ------------------------------------------------------------------------------

    async def explain(self, question: Question) -> dict[str, object]:
        """Of a ``site`` (its key, an MX host, a recipient domain), of a ``delivery``, or of a recipient by ``part``,
        ``position`` and ``domain``."""
        if "site" in question:
            return await self._explain_site(_text(question, "site"))
        if "delivery" in question:
            return await self._explain_delivery(_number(question, "delivery"))
        if "part" in question:
            return await self._explain_recipient(
                _number(question, "part"), _number(question, "position"), _text(question, "domain")
            )
        raise BadInput("explain", "needs site, delivery, or part with position and domain")

    async def _explain_site(self, wanted: str) -> dict[str, object]:
        route = self._resolver.cached(wanted) if "." in wanted else None
        lanes = await self._lanes_of(route.key if isinstance(route, Site) else wanted)
        asked = self._asked_for(wanted)
        hosts = route.hosts if isinstance(route, Site) else ()
        names = [name for host in hosts for name in (host.name, *host.addresses)]
        return {
            "site": wanted,
            "asked": asked,
            "lanes": self._lanes_now(lanes),
            "lanes_all": len(lanes),
            "hosts": names[:LIST_MAX],  # names and addresses of its MX hosts, as far as they are known now
        }

    async def _lanes_of(self, wanted: str) -> list[Lane[LeasedPart]]:
        name = wanted.lower().rstrip(".")
        return [lane async for lane in _sliced(self._daemon.schedule.lanes) if is_lane_of(lane, name)]

    def _lanes_now(self, lanes: Iterable[Lane[LeasedPart]]) -> list[object]:
        now_s, unix_s = self._now()
        fullest = sorted(lanes, key=lambda lane: -lane.ready.count)[:LANES_MAX]
        return [lane_now(self._daemon.schedule, self._rules(), lane, now_s, unix_s) for lane in fullest]

    async def _explain_delivery(self, delivery_id: int) -> dict[str, object]:
        daemon = self._daemon
        counted: Counter[tuple[str, str]] = Counter()
        async for lane in _sliced(daemon.schedule.lanes):
            count_waiting((lane,), delivery_id, counted)
        out: Counter[str] = Counter()
        async for batch in _sliced(daemon.collector.batches.values()):
            if batch.stream.delivery_id == delivery_id:
                out[batch.lane.site.key] += sum(len(positions) for positions in batch.open.values())
        top = counted.most_common(LIST_MAX)
        sites = list(dict.fromkeys([site for (_, site), _ in top] + [site for site, _ in out.most_common()]))
        wanted = set(sites[:LANES_MAX])
        lanes = [lane async for lane in _sliced(daemon.schedule.lanes) if lane.site.key in wanted]
        return {
            **self._delivery(delivery_id),
            "waiting": [{"reason": reason, "site": site, "recipients": n} for (reason, site), n in top],
            "out": [{"site": site, "recipients": n} for site, n in out.most_common(LIST_MAX)],
            "asked": await self._asked_of(delivery_id),
            "lanes": self._lanes_now(lanes),
        }

    async def _explain_recipient(self, part_id: int, position: int, domain: str) -> dict[str, object]:
        part = self._daemon.collector.parts.get(part_id)
        if part is None or not 0 <= position < len(part.rows):
            return {"where": "elsewhere"}
        if not part.rows[position][0]:
            return {"where": "settled"}
        async for batch in _sliced(self._daemon.collector.batches.values()):
            if position in batch.open.get(part_id, ()):
                return {"where": "out", "session": self._session(batch.session), "site": batch.lane.site.key}
        if self._asked_for(domain):
            return {"where": "dns", "domain": domain}
        chooser, route = part.delivery.chooser, self._resolver.cached(domain)
        found = await self._lanes_of(route.key if isinstance(route, Site) else domain)
        of_class = self._daemon.schedule.domain_class(domain)
        own = [lane for lane in found if lane.domain_class == of_class and lane.egresses == chooser.eligible(domain)]
        return {"where": "ready", "lanes": self._lanes_now(own or found)}

    def _asked_for(self, domain: str) -> int:
        """Recipients that wait for the route of a domain."""
        return sum(len(one.positions) for one in self._daemon.intake.asked.get(domain, ()))

    async def _asked_of(self, delivery_id: int) -> int:
        """Recipients of a delivery that wait for routes."""
        found = 0
        async for waiting in _sliced(self._daemon.intake.asked.values()):
            found += sum(len(one.positions) for one in waiting if one.part.delivery.id == delivery_id)
        return found

    def _is_memory_full(self) -> bool:
        """Nothing is claimed but footholds of small deliveries."""
        bounds, collector = self._settings.master, self._daemon.collector
        held = self._daemon.intake.held_recipients + collector.unrecorded
        return held >= bounds.ready_recipients_max or collector.held_bytes >= bounds.ready_mbytes_max << 20

    def _session(self, session_id: int) -> dict[str, object] | None:
        session = self._daemon.schedule.session(session_id)
        if session is None:
            return None
        now_s, _ = self._now()
        return {
            "egress": session.group.egress.name,
            "mx_host": session.hop.mx_host,
            "peer": session.hop.peer,
            "rule": session.hop.rule.name,
            "in_flight": session.in_flight,
            "age_s": now_s - session.ordered_s,
            "is_open": session.opened_s <= now_s,
            "message_s": session.message_s,
        }

    # --- a slow delivery ------------------------------------------------------------------------

    async def slow(self, question: Question) -> NodeFacts:
        """What this node knows of why a ``delivery`` is slow."""
        daemon, delivery_id = self._daemon, _number(question, "delivery")
        counted: Counter[tuple[str, str]] = Counter()
        weights: Counter[Group] = Counter()  # recipients by the sessions that are to carry them
        busy: set[Group] = set()  # something of it is under way there
        details: dict[str, tuple[int, str]] = {}
        async for lane in _sliced(daemon.schedule.lanes):
            before = counted.total()
            count_waiting((lane,), delivery_id, counted)
            if (waiting := counted.total() - before) == 0:
                continue
            weights.update(dict.fromkeys(lane.groups.values(), waiting))
            if lane.wait is not None:
                told = (waiting, lane.wait.detail)
                details[lane.wait.reason.value] = max(details.get(lane.wait.reason.value, told), told)
        out = 0
        async for batch in _sliced(daemon.collector.batches.values()):
            session = daemon.schedule.session(batch.session)
            if batch.stream.delivery_id == delivery_id and session is not None:
                amount = sum(len(positions) for positions in batch.open.values())
                out += amount
                weights[session.group] += amount
                busy.add(session.group)
        now_s, _ = self._now()
        all_weights = max(1, weights.total())
        message_s = sum(n * _message_s(group, now_s, is_under_way=group in busy) for group, n in weights.items())
        wait = daemon.intake.waits.get(delivery_id)
        heard = [child for child in daemon.children.living.values() if now_s - child.heard_at_s <= SILENT_S]
        return NodeFacts(
            hold=daemon.dispatch.hold_reason,
            children_wanted=self._settings.children.effective_count,
            children_working=sum(not child.is_draining for child in heard),
            database_trouble=self._writer.trouble or daemon.intake.trouble,
            settlement_s=max(self._writer.commit_s, self._writer.committing_s(now_s)),
            claim_s=max(daemon.intake.claim_s, daemon.intake.claiming_s(now_s)),
            is_memory_full=self._is_memory_full(),
            reason="" if wait is None else wait.reason.value,
            detail="" if wait is None else wait.detail,
            waiting=tuple(Waiting(reason, site, n) for (reason, site), n in counted.most_common(LIST_MAX)),
            out=out,
            asked=await self._asked_of(delivery_id),
            message_s=message_s / all_weights,
            open_s=sum(n * group.open_s for group, n in weights.items()) / all_weights,
            details={reason: detail for reason, (_, detail) in details.items()},
            machine=tuple(MachineTrouble(one.what, one.remedy) for one in self._machine_faults()),
        )

    # --- limits, effects ----------------------------------------------------------------------

    async def limits(self, question: Question) -> dict[str, object]:
        """Every counter with its figures: those whose key has ``text`` in it, from number ``after`` on."""
        text, after = _text(question, "text", ""), _number(question, "after", 0)
        now_s, _ = self._now()
        rows: list[LimitNow] = []
        counters = [limit async for limit in _sliced(self._daemon.schedule.limits()) if text in limit.key]
        async for limit in _sliced(counters[after : after + LIST_MAX]):
            rows.extend(limit_rows(limit, self._rules(), now_s))
        more = after + LIST_MAX if len(counters) > after + LIST_MAX else None
        return {"limits": rows, "counters": len(counters), "next": more}

    async def effects(self, question: Question) -> dict[str, object]:
        """All that is in force besides the rules."""
        effects = self._daemon.schedule.effects
        return {"effects": [msgspec.to_builtins(one) for one in effects[:LIST_MAX]], "all": len(effects)}


def _message_s(group: Group, now_s: float, *, is_under_way: bool) -> float:
    """What a message takes on a session; where one is under way and nothing comes back, the time that this lasts."""
    return max(group.message_s, now_s - group.moved_s if is_under_way else 0.0)


async def _sliced(items: Iterable[T]) -> AsyncIterator[T]:
    """All of them, as they are now; after each slice the loop goes on with all else."""
    for number, item in enumerate(list(items), 1):
        yield item
        if number % SLICE == 0:
            await asyncio.sleep(0)


def _text(question: Question, key: str, default: str | None = None) -> str:
    given: Any = question.get(key, default)
    if not isinstance(given, str) or len(given) > 1_000:
        raise BadInput(key, "must be a text")
    return given


def _number(question: Question, key: str, default: int | None = None) -> int:
    given: Any = question.get(key, default)
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise BadInput(key, "must be a whole number, 0 or more")
    return given
