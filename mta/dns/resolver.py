"""The resolver: what is known at once, what must be asked once, and for how long it is believed.

Three tables, all bounded by ``cache_entries_max``: *domains* point to *places*, places are decided from *hosts*. A
place is where all domains with one MX set meet; so the addresses of a large provider are refreshed once, not once for
each of its domains, and all of these domains see the same `Site` object.

Single-threaded: every method belongs to the event loop on which the first question is asked.
"""

from __future__ import annotations

import asyncio
import math
import random as random_module
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import msgspec

from mta.dns import mx
from mta.dns.answer import Answer, Found, RecordType
from mta.dns.cache import Cache, Held, Lifetimes
from mta.dns.message import ALIASES_MAX
from mta.dns.names import canonical_domain, is_host_name, literal_address
from mta.dns.nameservers import endpoints
from mta.dns.networks import AddressPolicy
from mta.dns.transport import Transport, TransportStatistics
from mta.model.dns import DnsSettings
from mta.model.errors import BadInput, LocalFault
from mta.model.site import NoRoute, Route
from mta.telemetry.faults import log_internal_error

STALE_MAX_S: Final = 10.0  # how long past its end a route is still handed out while it is asked for anew
_REFRESHES_MAX = 100  # of those at once, so that they never crowd out first questions
Value = TypeVar("Value")
_HOSTS_AT_ONCE = 8  # of one MX set: 16 questions with both address families (threats D5 wants fewer than 20)


class Routes(Protocol):
    """Who knows where mail for a domain goes: a `Resolver`, or one that keeps domains' policies besides."""

    def cached(self, domain: str) -> Route | None: ...

    async def route(self, domain: str) -> Route: ...

    def current(self, domain: str) -> Route | None: ...

    async def renewed(self, domain: str) -> Route: ...

    async def close(self) -> None: ...


class ResolverStatistics(msgspec.Struct, frozen=True):
    """Counters since the start, sizes as they are now."""

    hits: int
    stale_hits: int
    misses: int
    evicted: int
    domains: int
    hosts: int
    places: int
    flights: int
    refreshes: int
    transport: TransportStatistics | None  # None until the first question


class _Place:
    """Where the domains of one MX set meet. ``flight`` is set while somebody asks for the addresses."""

    __slots__ = ("__weakref__", "expires_at", "flight", "plan", "route")

    def __init__(self, planned: mx.Plan | None, route: Route | None, expires_at: float) -> None:
        self.plan = planned
        self.route = route
        self.expires_at = expires_at
        self.flight: asyncio.Future[None] | None = None


class Resolver:
    """Routes for recipient domains. ``random`` draws query ids: hand in ``random.SystemRandom()`` outside tests.

    Domains are looked up as written; callers hand them in canonical form (`mta.dns.names.canonical_domain`), or pay
    for two spellings of one domain with two entries. ``BadInput`` at construction for settings that cannot be used.
    ``dane_port``: where MX hosts listen, if their TLSA records are to be honoured; the nameservers' word that an answer
    is validated is then taken, so they and the path to them must be trusted.
    """

    def __init__(
        self,
        settings: DnsSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: random_module.Random,
        dane_port: int | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._random = random
        self._servers = endpoints(settings.nameservers)
        self._policy = mx.Policy(
            addresses=AddressPolicy(allow_networks=settings.allow_networks, own_addresses=settings.own_addresses),
            own_names=frozenset(canonical_domain(name) for name in settings.own_names),
            hosts_max=settings.hosts_max,
            addresses_per_host_max=settings.addresses_per_host_max,
            is_dane=dane_port is not None,
        )
        self._dane_port = dane_port
        self._lifetimes = Lifetimes(
            min_s=settings.ttl_min_s,
            max_s=settings.ttl_max_s,
            negative_max_s=settings.negative_ttl_max_s,
            failure_s=settings.failure_ttl_s,
            failure_max_s=settings.failure_ttl_max_s,
        )
        families = ((RecordType.A, settings.ipv4), (RecordType.AAAA, settings.ipv6))
        self._address_kinds = tuple(kind for kind, is_wanted in families if is_wanted)
        self._domains: Cache[_Place] = Cache(settings.cache_entries_max)
        self._hosts: Cache[mx.HostAddresses] = Cache(settings.cache_entries_max)
        self._authorities: Cache[mx.HostAuthorities] = Cache(settings.cache_entries_max)
        self._places: WeakValueDictionary[str, _Place] = WeakValueDictionary()
        self._flights: dict[str, asyncio.Task[Route]] = {}
        self._host_flights: dict[str, asyncio.Future[None]] = {}
        self._authority_flights: dict[str, asyncio.Future[None]] = {}
        self._refreshes: set[asyncio.Task[Any]] = set()
        self._transport: Transport | None = None
        self._is_closed = False
        self._hits = self._stale_hits = self._misses = 0

    # -- asked from outside

    def cached(self, domain: str) -> Route | None:
        """The route, if it is known; never waits. O(1), well below 1 µs.

        Up to ``STALE_MAX_S`` past its end a route is still handed out, while it is asked for anew in the
        background; not so a temporary failure. Call it on the event loop's thread.
        """
        held = self._domains.find(domain)
        if held is None:
            self._misses += 1
            return None
        now = self._clock()
        place = held.value
        if now < held.expires_at and now < place.expires_at:
            self._hits += 1
            return place.route
        return self._stale(domain, held, now)

    async def route(self, domain: str) -> Route:
        """The route for a domain or domain literal: from the cache, or asked for, once for all who wait for it.

        Never raises for what DNS or the domain's spelling holds; that is a `NoRoute`. A cancelled caller does
        not disturb the others.
        """
        known = self.cached(domain)
        if known is not None:
            return known
        if self._is_closed:
            return self._closed(domain)
        return await asyncio.shield(self._flight(domain))

    def current(self, domain: str) -> Route | None:
        """As `cached`, but nothing that is past its end, and nothing is asked for."""
        held = self._domains.find(domain)
        if held is None:
            return None
        now = self._clock()
        return held.value.route if now < held.expires_at and now < held.value.expires_at else None

    async def renewed(self, domain: str) -> Route:
        """As `route`, but asked for anew as soon as it is past its end: for who has found nobody there."""
        known = self.current(domain)
        if known is not None:
            return known
        if self._is_closed:
            return self._closed(domain)
        return await asyncio.shield(self._flight(domain))

    @staticmethod
    def _closed(domain: str) -> NoRoute:
        return NoRoute(is_final=False, enhanced="4.4.3", text=f"{domain}: the resolver is closed")

    async def texts(self, name: str) -> Answer:
        """The TXT records of a canonical name. Not remembered: whoever asks does that; see `lifetime_s`."""
        if self._is_closed:
            return Answer(Found.TEMPORARY, name, text="the resolver is closed")
        return await self._look_up(name, RecordType.TXT)

    async def addresses(self, name: str) -> mx.HostAddresses:
        """The addresses of a host, refused ones dropped (threats D4); remembered as those of MX hosts are."""
        if self._is_closed:
            return mx.HostAddresses(is_known=False, found=Found.TEMPORARY, text="the resolver is closed")
        return (await self._host(name)).value

    async def close(self) -> None:
        """Ends what is under way; who still waits for a route is cancelled. Idempotent."""
        self._is_closed = True
        tasks = [*self._flights.values(), *self._refreshes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._transport is not None:
            await self._transport.close()

    async def __aenter__(self) -> Resolver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def statistics(self) -> ResolverStatistics:
        return ResolverStatistics(
            hits=self._hits,
            stale_hits=self._stale_hits,
            misses=self._misses,
            evicted=self._domains.evicted + self._hosts.evicted,
            domains=len(self._domains),
            hosts=len(self._hosts),
            places=len(self._places),
            flights=len(self._flights),
            refreshes=len(self._refreshes),
            transport=self._transport.statistics() if self._transport is not None else None,
        )

    # -- domains

    def _stale(self, domain: str, held: Held[_Place], now: float) -> Route | None:
        place = held.value
        route = place.route
        ended_at = min(held.expires_at, place.expires_at)
        is_temporary = isinstance(route, NoRoute) and not route.is_final
        if route is None or is_temporary or now - ended_at > STALE_MAX_S or self._is_closed:
            self._misses += 1
            return None
        self._stale_hits += 1
        if len(self._refreshes) < _REFRESHES_MAX:
            if now >= held.expires_at:
                if domain not in self._flights:
                    self._own(self._flight(domain))
            elif place.flight is None:
                # The flight is set here and not in the task's first step, or each further hit would start one more.
                place.flight = asyncio.get_running_loop().create_future()
                self._own(asyncio.get_running_loop().create_task(self._refill(place)))
        return route

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)

    def _flight(self, domain: str) -> asyncio.Task[Route]:
        flight = self._flights.get(domain)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._resolve(domain))
            self._flights[domain] = flight
        return flight

    async def _resolve(self, domain: str) -> Route:
        try:
            held = self._domains.find(domain)
            if held is not None and self._clock() < held.expires_at:
                await self._wait_for(held.value)
                place = held.value
            else:
                place = await self._find_place(domain, held.failures if held is not None else 0)
        except BadInput as problem:
            # Kept out of the cache: such text costs no question, and it comes in endless variety.
            return NoRoute(is_final=True, enhanced="5.1.2", text=str(problem))
        except Exception as error:
            return self._at_fault(domain, error)
        finally:
            del self._flights[domain]
        if place.route is None:
            raise LocalFault(f"no route was decided for {domain}")
        return place.route

    def _at_fault(self, domain: str, error: Exception) -> NoRoute:
        """An error of ours costs the one domain its route, for as long as a server's failure would."""
        log_internal_error("finding a route", error, domain=domain)
        route = NoRoute(is_final=False, enhanced="4.3.0", text=f"{domain}: internal error ({type(error).__name__})")
        known = self._domains.find(domain)
        failures = known.failures + 1 if known is not None else 1
        expires_at = self._clock() + self._lifetimes.failure_s(failures)
        self._domains.put(domain, _Place(None, route, math.inf), expires_at, failures=failures)
        return route

    async def _find_place(self, domain: str, failures: int) -> _Place:
        """Asks for the MX records, and decides; the domain points to its place from then on."""
        address = literal_address(domain)
        if address is not None:
            place = _Place(None, mx.literal_route(domain, address, self._policy), math.inf)
            self._domains.put(domain, place, self._clock() + self._settings.ttl_max_s)
            return place
        name = canonical_domain(domain)
        answer = await self._look_up(name, RecordType.MX)
        planned = mx.plan(name, answer, self._policy)
        expires_at = self._clock() + self.lifetime_s(answer, failures + 1)
        if isinstance(planned, mx.Plan) and planned.is_implicit:
            host = await self._host(planned.hosts[0][1])
            refusal = mx.without_mx_and_address(name, host.value)
            if refusal is not None:
                planned, expires_at = refusal, min(expires_at, host.expires_at)
        if isinstance(planned, NoRoute):
            place = _Place(None, planned, math.inf)
        else:
            place = await self._place(planned)
        is_failure = answer.found is Found.TEMPORARY
        self._domains.put(domain, place, expires_at, failures=failures + 1 if is_failure else 0)
        return place

    def lifetime_s(self, answer: Answer, failures: int) -> int:
        """How long an answer may be believed (threats D6): the ``failures``-th of its kind in a row, if it is none."""
        if answer.found is Found.RECORDS:
            return self._lifetimes.positive_s(answer.ttl_s)
        if answer.found is Found.TEMPORARY:
            # What this machine could not ask is asked again as soon as what waits for it comes again.
            return 1 if answer.is_of_machine else self._lifetimes.failure_s(failures)
        return self._lifetimes.negative_s(answer.ttl_s)

    # -- places

    async def _place(self, planned: mx.Plan) -> _Place:
        key = f"{planned.key} secure" if planned.is_secure else planned.key
        place = self._places.get(key)
        if place is None:
            place = _Place(planned, None, -math.inf)
            self._places[key] = place
        await self._wait_for(place)
        return place

    async def _wait_for(self, place: _Place) -> None:
        """Returns when the place's addresses are current: they are, or somebody is at it, or we do it."""
        while self._clock() >= place.expires_at:
            if place.flight is None:
                place.flight = asyncio.get_running_loop().create_future()
                await self._fill(place)
                return
            await asyncio.shield(place.flight)

    async def _refill(self, place: _Place) -> None:
        """As `_fill`, and nobody waits for it: who comes after its failure asks anew."""
        try:
            await self._fill(place)
        except Exception as error:
            log_internal_error("asking for the addresses of a site again", error)

    async def _fill(self, place: _Place) -> None:
        """Decides the place anew. Its ``flight`` has been set by the caller, and ends here whatever happens."""
        try:
            if place.plan is None:
                raise LocalFault("a place without hosts has ended")
            hosts = await self._hosts_of([name for _, name in place.plan.hosts])
            authorities = await self._authorities_of(place.plan, hosts) if place.plan.is_secure else []
            route = mx.decide(
                place.plan, [held.value for held in hosts], self._policy, [held.value for held in authorities]
            )
            if route != place.route:  # an equal one keeps its identity, by which others may key
                place.route = route
            place.expires_at = min([held.expires_at for held in hosts] + [held.expires_at for held in authorities])
        finally:
            if place.flight is not None and not place.flight.done():
                place.flight.set_result(None)
            place.flight = None

    # -- hosts

    async def _hosts_of(self, names: list[str]) -> list[Held[mx.HostAddresses]]:
        held: list[Held[mx.HostAddresses]] = []
        for start in range(0, len(names), _HOSTS_AT_ONCE):
            some = names[start : start + _HOSTS_AT_ONCE]
            if len(some) == 1:  # no task for what most domains have
                held.append(await self._host(some[0]))
            else:
                held += await asyncio.gather(*map(self._host, some))
        return held

    async def _host(self, name: str) -> Held[mx.HostAddresses]:
        """The host's addresses: from the cache, or asked for once for all who wait for them."""
        return await self._once(name, self._hosts, self._host_flights, self._ask_host)

    async def _once(
        self,
        name: str,
        cache: Cache[Value],
        flights: dict[str, asyncio.Future[None]],
        ask: Callable[[str, int], Awaitable[Held[Value]]],
    ) -> Held[Value]:
        while True:
            held = cache.find(name)
            if held is not None and self._clock() < held.expires_at:
                return held
            flight = flights.get(name)
            if flight is None:
                break
            await asyncio.shield(flight)
        flight = flights[name] = asyncio.get_running_loop().create_future()
        try:
            return await ask(name, held.failures if held is not None else 0)
        finally:
            del flights[name]
            if not flight.done():
                flight.set_result(None)

    async def _ask_host(self, name: str, failures: int) -> Held[mx.HostAddresses]:
        if not is_host_name(name):
            found = mx.host_addresses(name, (), self._policy)
            return self._hosts.put(name, found, self._clock() + self._settings.negative_ttl_max_s)
        questions = [(kind, self._asking().ask(name, kind)) for kind in self._address_kinds]
        answers = [await self._follow(await question, kind) for kind, question in questions]
        found = mx.host_addresses(name, answers, self._policy)
        failures = 0 if found.is_known else failures + 1
        # The missing family of a host that has the other ends with the one it has: AAAA is missing nearly
        # everywhere, mostly with a short negative TTL, and nothing is lost by noticing late that it came.
        missing = (Found.NO_RECORDS, Found.NO_NAME) if found.found is Found.RECORDS else ()
        lifetime_s = min(self.lifetime_s(answer, failures) for answer in answers if answer.found not in missing)
        return self._hosts.put(name, found, self._clock() + lifetime_s, failures=failures)

    # -- authorities (DANE)

    async def _authorities_of(
        self, planned: mx.Plan, hosts: list[Held[mx.HostAddresses]]
    ) -> list[Held[mx.HostAuthorities]]:
        """TLSA records of those hosts that can be used and whose addresses were validated."""
        none = Held(mx.HostAuthorities(), math.inf, 0)
        found = [none] * len(hosts)
        for i, ((_, name), at) in enumerate(zip(planned.hosts, hosts, strict=True)):
            # RFC 7672 §2.2.2: the name servers of zones that are not signed often choke on such questions.
            if at.value.is_secure and at.value.usable:
                bases = f"{at.value.alias_of} {name}".strip()
                found[i] = await self._once(bases, self._authorities, self._authority_flights, self._ask_authorities)
        return found

    async def _ask_authorities(self, bases: str, failures: int) -> Held[mx.HostAuthorities]:
        """``bases``: the name at the end of the host's aliases, if it has any, and its own (RFC 7672 §2.2.3)."""
        for name in bases.split():
            answer = await self._look_up(f"_{self._dane_port}._tcp.{name}", RecordType.TLSA)
            found = mx.host_authorities(name, answer)
            if found.records or found.fault:
                break
        failures = failures + 1 if found.fault else 0
        return self._authorities.put(bases, found, self._clock() + self.lifetime_s(answer, failures), failures=failures)

    # -- questions

    def _asking(self) -> Transport:
        if self._transport is None:
            settings = self._settings
            self._transport = Transport(
                self._servers,
                timeout_s=settings.timeout_s,
                tries=settings.tries,
                outstanding_max=settings.concurrency_max,
                rng=self._random,
                asks_secure=self._policy.is_dane,
            )
        return self._transport

    async def _look_up(self, name: str, kind: RecordType) -> Answer:
        return await self._follow(await self._asking().ask(name, kind), kind)

    async def _follow(self, answer: Answer, kind: RecordType) -> Answer:
        """Asks for the targets of aliases that the server left to us (RFC 1034 §3.6.2), within their bound."""
        seen = {answer.name}
        aliases, ttl_s, is_secure = 0, answer.ttl_s, answer.is_secure
        while answer.open_alias:
            aliases += answer.aliases
            if not is_host_name(answer.name):
                return Answer(Found.NO_NAME, answer.name, ttl_s)
            answer = await self._asking().ask(answer.name, kind)
            ttl_s = min(ttl_s, answer.ttl_s)
            is_secure = is_secure and answer.is_secure
            if (answer.open_alias and answer.name in seen) or aliases + answer.aliases > ALIASES_MAX:
                return Answer(Found.LOOP, answer.name, ttl_s, text=f"aliases of {answer.name} never end")
            seen.add(answer.name)
        if not aliases:
            return answer
        return msgspec.structs.replace(answer, ttl_s=ttl_s, is_secure=is_secure, aliases=aliases + answer.aliases)
