"""Where recipients go: their domains' routes, the pool they leave from, and the lane they wait in.

What is held back by a traffic event (`mta.traffic.holds`) goes back to the queue from here. When nobody can be reached
where recipients wait, their routes are looked up once more before an attempt is counted (`Routing.follow`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import structlog

from mta.dns.resolver import Routes
from mta.failure.judge import OF_NO_ANSWER, OF_NO_ROUTE, judged
from mta.master.books import LeasedPart
from mta.master.collector import Collector
from mta.master.dispatch import Dispatch
from mta.master.holds import put_off_s, put_off_site
from mta.master.resolver_rest import ResolverRest
from mta.model.address import domain_of
from mta.model.errors import BadInput
from mta.model.outcome import Reason, Status
from mta.model.reply import Reply
from mta.model.site import NoRoute, Route, Site
from mta.model.waiting import Wait
from mta.telemetry.faults import log_internal_error
from mta.traffic.actions import GiveBack
from mta.traffic.effects import Effect
from mta.traffic.egress import EgressChooser
from mta.traffic.holds import Changes, Holds
from mta.traffic.lanes import Lane
from mta.traffic.ready import Run, Stream
from mta.traffic.schedule import Schedule

log = structlog.get_logger()
LOOKUPS_MAX = 1_000  # at a time; the resolver asks fewer questions at once, and some wait for one and the same host


class Waiting(NamedTuple):
    """Recipients of a part who wait for their domain's route."""

    part: LeasedPart
    positions: list[int]
    given_up: GivenUp | None = None


class GivenUp(NamedTuple):
    """``action`` is performed if the domain's route still leads to ``site``, where nobody could be reached."""

    action: GiveBack[LeasedPart]
    site: Site


class Routing:
    """Owned by the master's loop.

    What goes wrong in finding a recipient's way, by an error of ours, defers that recipient. What goes wrong in the
    books (schedule, collector) ends the run: see `mta.telemetry.faults`.
    """

    def __init__(
        self,
        resolver: Routes,
        schedule: Schedule[LeasedPart],
        collector: Collector,
        dispatch: Dispatch,
        holds: Holds,
    ) -> None:
        self._resolver = resolver
        self._schedule = schedule
        self._collector = collector
        self._dispatch = dispatch
        self._holds = holds
        self.asked: dict[str, list[Waiting]] = {}  # domain -> who waits for its route
        self._rest = ResolverRest(schedule.faults)
        self._unasked: deque[str] = deque()  # of them, those whose look-up has to wait
        self._lookups: set[asyncio.Task[None]] = set()
        dispatch.follow = self.follow

    def take_in(self, part: LeasedPart, positions: Iterable[int]) -> None:
        """Groups recipients of a part by domain and sends each group on its way."""
        by_domain = _by_domain(part, positions)
        if self._holds.cancels:
            by_domain = {
                domain: left for domain, found in by_domain.items() if (left := self._cancel(part, domain, found))
            }
        self._route_all(part, by_domain)

    def _cancel(self, part: LeasedPart, domain: str, positions: list[int]) -> list[int]:
        """Recipients that an operator takes out of the queue have their outcome; answers the others."""
        left: list[int] = []
        gone: dict[str, list[int]] = {}  # by what their log says
        for position in positions:
            effect = self._holds.cancelled(part.rows[position][0], domain)
            if effect is None:
                left.append(position)
            else:
                gone.setdefault(effect.detail, []).append(position)
        for said, taken in gone.items():
            self._collector.conclude(
                part, taken, Status.CANCELLED, Reason.NOT_DEFINED, Reply(0, said), is_attempt=False
            )
        return left

    def _cancel_asked(self, domain: str) -> None:
        """The same of who waits for a route, but for those whose attempt may be over with it."""
        waiting = self.asked.get(domain, [])
        kept = []
        for one in waiting:
            left = one.positions if one.given_up is not None else self._cancel(one.part, domain, one.positions)
            if left:
                kept.append(one._replace(positions=left))
        waiting[:] = kept

    def take_in_anew(self, changes: Changes) -> None:
        """What waits in memory and is held, or leaves from elsewhere, from now on is sorted once more."""
        domains = changes.domains | changes.cancelled
        if not (domains or changes.sites):
            return
        for domain in changes.cancelled:
            self._cancel_asked(domain)
        routes = [self._resolver.cached(domain) for domain in domains]
        sites = changes.sites | {route.key for route in routes if isinstance(route, Site)}
        is_any = None in routes  # a route that is not known any more may be that of any lane
        for lane in list(self._schedule.lanes):
            if is_any or lane.site.key in sites:
                self._empty(lane)

    def _empty(self, lane: Lane[LeasedPart]) -> None:
        taken = [(part, positions) for _, part, positions in lane.ready.shed(lane.ready.count)]
        for part, positions in reversed(taken):  # the last came first
            self._schedule.ready_count -= len(positions)
            self.take_in(part, positions)

    def _route_all(self, part: LeasedPart, by_domain: dict[str, list[int]]) -> None:
        lanes: dict[tuple[str, str, str], tuple[Site, str, list[int]]] = {}
        for domain, positions in by_domain.items():
            try:
                way = self._way(part, domain)
            except Exception as error:
                way = _at_fault(domain, error)
            if isinstance(way, tuple):
                key, site = way
                lane = lanes.get(key)
                if lane is None:
                    lanes[key] = (site, domain, positions)
                else:
                    lane[2].extend(positions)
            elif way is None:
                self._ask(domain, Waiting(part, positions))
            elif isinstance(way, Effect):
                self._put_off(part, positions, domain, way)
            else:
                self._no_route(part, positions, domain, way)
        for site, domain, positions in lanes.values():
            self._ready(part, site, domain, positions)

    def _way(self, part: LeasedPart, domain: str) -> tuple[tuple[str, str, str], Site] | Effect | NoRoute | None:
        """Where a part's recipients of a domain go: the lane's key and its site; None: the route must be asked for."""
        if (effect := self._holds.domain(domain)) is not None:
            return effect
        route = self._resolver.cached(domain)
        if not isinstance(route, Site):
            return route
        of_domain = self._schedule.domain_class(domain)
        return (route.key, self._chooser(part, route, of_domain).eligible_names(domain), of_domain), route

    def _put_off(self, part: LeasedPart, positions: list[int], domain: str, effect: Effect) -> None:
        """Recipients of a domain that is held back are in the queue again until then; no attempt is counted."""
        if not part.delivery.is_leaving:  # else it goes back as a whole
            due_in_s = put_off_s(effect.until_unix_s, time.time(), len(positions))
            self._collector.surplus(part, positions, put_off_site(domain), due_in_s)

    def _chooser(self, part: LeasedPart, site: Site, domain_class: str) -> EgressChooser:
        chooser = self._holds.chooser(part.delivery.chooser, site, domain_class)
        egress = part.claimed.egress
        return chooser if egress is None else chooser.only(egress)

    def _ready(self, part: LeasedPart, site: Site, domain: str, positions: list[int]) -> None:
        chooser = self._chooser(part, site, self._schedule.domain_class(domain))
        lane = self._schedule.lane(site, chooser, domain)
        stream = Stream(part.delivery.id, part.fields)
        now_s = asyncio.get_running_loop().time()
        self._schedule.put(lane, stream, part.delivery.weight, Run(part, positions), now_s)

    # --- routes -------------------------------------------------------------------------------

    def follow(self, given_up: list[GiveBack[LeasedPart]]) -> list[GiveBack[LeasedPart]]:
        """Looks once more where recipients go of whose site nobody could be reached; returns those who stay given up.

        Whose domain leads elsewhere by now goes there, and no attempt is counted. A route past its end is asked for
        again first. What is given up is all that waits in a lane, so all of it follows.
        """
        stay: list[GiveBack[LeasedPart]] = []
        sites = {id(action.lane): action.lane.site for action in given_up}  # a lane gets its new site below
        for action in given_up:
            site = sites[id(action.lane)]
            for domain, positions in _by_domain(action.part, action.positions).items():
                route = self._resolver.current(domain)
                of_domain = _of_domain(action, positions)
                waiting = Waiting(action.part, positions, GivenUp(of_domain, site))
                if action.part.delivery.is_leaving or route == site:
                    stay.append(of_domain)
                elif route is None:
                    self._ask(domain, waiting)
                else:
                    self._go_on(domain, waiting, route)
        return stay

    def _ask(self, domain: str, who: Waiting) -> None:
        waiting = self.asked.get(domain)
        if waiting is not None:
            waiting.append(who)
            return
        self.asked[domain] = [who]
        self._unasked.append(domain)
        if len(self._lookups) < LOOKUPS_MAX:
            task = asyncio.get_running_loop().create_task(self._look_up_all())
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)

    async def _look_up_all(self) -> None:
        """One of a bounded number: a task for each domain would be half a gigabyte for a hundred thousand."""
        while self._unasked:
            await self._look_up(self._unasked.popleft())

    async def _look_up(self, domain: str) -> None:
        try:
            route: Route = await self._resolver.renewed(domain)
        except BadInput as error:
            route = NoRoute(True, "5.1.2", f"the domain is not valid: {error.what}")
        except Exception as error:
            route = _at_fault(domain, error)
        if isinstance(route, Site) or not route.is_of_machine:
            self._rest.worked()
        for waiting in self.asked.pop(domain):
            if not waiting.part.delivery.is_leaving:
                self._go_on(domain, waiting, route)
        self._dispatch.wake()

    def _go_on(self, domain: str, waiting: Waiting, route: Route) -> None:
        """A domain's route is known: its recipients are on their way, or their attempt ends here."""
        part, positions, given_up = waiting
        if (effect := self._holds.domain(domain)) is not None:
            self._put_off(part, positions, domain, effect)
        elif given_up is not None and (route == given_up.site or (isinstance(route, NoRoute) and not route.is_final)):
            self._dispatch.give_back(given_up.action)
        elif isinstance(route, Site):
            if given_up is not None:
                log.info("route has changed", domain=domain, site=route.key, was=given_up.site.key)
            self._ready(part, route, domain, positions)
        else:
            self._no_route(part, positions, domain, route)

    def resolver_wait(self, now_s: float) -> Wait | None:
        """Why no recipients can be taken in, as no name server can be asked."""
        return self._rest.wait(now_s)

    def _no_route(self, part: LeasedPart, positions: list[int], domain: str, route: NoRoute) -> None:
        if route.is_of_machine:
            # No server was asked: an attempt was not made.
            due_in_s = self._rest.failed(route.text, asyncio.get_running_loop().time())
            if not part.delivery.is_leaving:
                self._collector.surplus(part, positions, put_off_site(domain), due_in_s)
            return
        status, verdict = (Status.FAILED, OF_NO_ROUTE) if route.is_final else (Status.DEFERRED, OF_NO_ANSWER)
        reply = Reply(0, route.text, route.enhanced)
        self._collector.conclude(
            part, positions, status, verdict.reason, reply, is_attempt=True, judged=judged(verdict)
        )

    async def stop(self) -> None:
        """Look-ups are dropped, their recipients go back with their parts."""
        for task in list(self._lookups):
            task.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)
        self._unasked.clear()
        self.asked.clear()


def _at_fault(domain: str, error: Exception) -> NoRoute:
    log_internal_error("finding the way of recipients", error, domain=domain)
    return NoRoute(is_final=False, enhanced="4.3.0", text=f"{domain}: internal error ({type(error).__name__})")


def _of_domain(action: GiveBack[LeasedPart], positions: list[int]) -> GiveBack[LeasedPart]:
    if len(positions) == len(action.positions):
        return action
    return GiveBack(action.lane, action.stream, action.part, positions, action.due_in_s, True, action.cause)


def _by_domain(part: LeasedPart, positions: Iterable[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    rows = part.rows
    for position in positions:
        domain = domain_of(rows[position][0])
        of_domain = found.get(domain)
        if of_domain is None:
            found[domain] = [position]
        else:
            of_domain.append(position)
    return found
