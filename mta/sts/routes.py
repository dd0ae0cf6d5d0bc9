"""Routes of domains as their policies allow them: a `mta.dns.resolver.Resolver` with MTA-STS besides.

| the domain | its route |
|---|---|
| has no policy, or one that is not to be enforced | that of the resolver, unchanged |
| has one to be enforced that names all hosts of its site | the site's verified twin |
| ... some of them | a verified site of these |
| ... none of them | not now, 4.7.5 |

Before a policy keeps mail from a host that it does not name it is fetched once more, at most once in ``FETCH_AGAIN_S``.

Single-threaded: every method belongs to the event loop on which the first question is asked.
"""

from __future__ import annotations

import asyncio
import random as random_module
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from mta.dns.answer import Answer, Found
from mta.dns.cache import Cache, Held
from mta.dns.names import canonical_domain
from mta.dns.nameservers import check_trust
from mta.dns.resolver import Resolver, Routes
from mta.model.dns import DnsSettings
from mta.model.errors import BadInput
from mta.model.masks import compile_masks
from mta.model.site import NoRoute, Route, Site, verified_site
from mta.model.sts import Mode, Policy, parse_record
from mta.model.tls import Dane, TlsSettings
from mta.sts.fetch import Fetcher, FetchFailed
from mta.sts.store import FILE_NAME, Known, PolicyStore
from mta.telemetry.faults import log_internal_error

TEXT_S_MAX: Final = 5.0  # a record that takes longer is none for now: recipients wait for it
FETCH_AGAIN_S: Final = 300.0  # RFC 8461 §3.3: after a failure, not sooner
REFRESH_S: Final = 86_400.0  # RFC 8461 §10.2: so that who can keep us from the server must do so for long
log = structlog.get_logger()


class _Applied:
    """What holds for a domain: a policy or (mostly) none; and the route that was made by it, for its source."""

    __slots__ = ("made", "policy", "source", "unnamed")

    def __init__(self, policy: Policy | None) -> None:
        self.policy = policy
        self.source: Site | None = None
        self.made: Route | None = None
        self.unnamed: frozenset[str] = frozenset()  # hosts of the source that the policy does not name


_NO_POLICY: Final = _Applied(None)


class PolicyRoutes:
    """`Routes` with policies. ``clock`` as the resolver's, ``wall_clock`` for what outlives the process."""

    def __init__(
        self,
        resolver: Resolver,
        fetcher: Fetcher,
        store: PolicyStore,
        *,
        entries_max: int,
        exempt: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._resolver = resolver
        self._fetcher = fetcher
        self._store = store
        self._exempt = compile_masks(exempt)
        self._clock = clock
        self._wall_clock = wall_clock
        self._domains: Cache[_Applied] = Cache(entries_max)
        self._flights: dict[str, asyncio.Task[_Applied]] = {}
        self._again: dict[str, asyncio.Task[_Applied]] = {}  # domains whose policy is fetched as it names too few hosts
        self._refreshes: set[asyncio.Task[None]] = set()
        self._sites: Cache[Site] = Cache(entries_max)  # verified twins: one object for all domains of a site
        self._failed: Cache[str] = Cache(entries_max)  # domain -> the id of which it was said that it fails
        # Domain -> hosts that its policy, as fetched last, does not name. Not fetched again before the entry's end.
        self._fetched: Cache[frozenset[str]] = Cache(entries_max)

    # -- asked from outside

    def cached(self, domain: str) -> Route | None:
        """As `mta.dns.resolver.Resolver.cached`; None too while the domain's policy is not known, or doubtful."""
        return self._known(domain, self._resolver.cached)

    def current(self, domain: str) -> Route | None:
        """As `mta.dns.resolver.Resolver.current`; None as for `cached`."""
        return self._known(domain, self._resolver.current)

    async def route(self, domain: str) -> Route:
        """As `mta.dns.resolver.Resolver.route`; both questions are asked at the same time."""
        known = self.cached(domain)
        return known if known is not None else await self._find_route(domain, self._resolver.route)

    async def renewed(self, domain: str) -> Route:
        """As `mta.dns.resolver.Resolver.renewed`."""
        known = self.current(domain)
        return known if known is not None else await self._find_route(domain, self._resolver.renewed)

    def _known(self, domain: str, ask: Callable[[str], Route | None]) -> Route | None:
        held = self._domains.find(domain)
        if held is None or self._clock() >= held.expires_at:
            return None
        route = ask(domain)
        applied = held.value
        if applied.policy is None or route is None:
            return route
        allowed = self._allowed(domain, route, applied)
        return None if self._is_doubtful(domain, applied) else allowed

    async def _find_route(self, domain: str, ask: Callable[[str], Awaitable[Route]]) -> Route:
        try:
            flight = self._flights.get(domain)
            if flight is None:
                flight = self._flights[domain] = asyncio.get_running_loop().create_task(self._discover(domain))
                flight.add_done_callback(_look_at)
            route = await ask(domain)
            applied = await asyncio.shield(flight)
            allowed = self._allowed(domain, route, applied)
            if self._is_doubtful(domain, applied):
                applied = await self._fetched_again(domain, applied)
                allowed = self._allowed(domain, route, applied)
            self._note_unnamed(domain, applied)
        except Exception as error:
            log_internal_error("finding the policy of a domain", error, domain=domain)
            text = f"{domain}: internal error ({type(error).__name__})"
            return NoRoute(is_final=False, enhanced="4.3.0", text=text)
        return allowed

    async def close(self) -> None:
        """Ends what is under way, and writes what is not written. Idempotent."""
        tasks = [*self._flights.values(), *self._again.values(), *self._refreshes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._fetcher.close()
        await self._store.close()
        await self._resolver.close()

    # -- what a policy makes of a route

    def _allowed(self, domain: str, route: Route, applied: _Applied) -> Route:
        policy = applied.policy
        if policy is None or policy.mode is Mode.NONE or not isinstance(route, Site):
            return route
        if applied.source is not route or applied.made is None:
            applied.source, applied.made = route, self._apply(domain, route, policy)
            applied.unnamed = frozenset(host.name for host in route.hosts if not policy.names(host.name))
        return applied.made

    def _is_doubtful(self, domain: str, applied: _Applied) -> bool:
        """The policy is to be enforced, does not name all hosts, and may be older than they are.

        A domain that moves changes policy, id and hosts in three places; our record of the id may be as old as its TTL,
        and until then mail would be held up by a policy that is no more (RFC 8461 §8.1). §5.1: nothing fails for good
        before a newer policy was looked for. One that names some hosts and never the others is asked for once.
        """
        policy, unnamed = applied.policy, applied.unnamed
        if policy is None or policy.mode is not Mode.ENFORCE or not unnamed:
            return False
        if domain in self._again:
            return True
        fetched = self._fetched.find(domain)
        if fetched is None:
            return True
        is_due = self._clock() >= fetched.expires_at
        return is_due and (not unnamed <= fetched.value or isinstance(applied.made, NoRoute))

    def _note_unnamed(self, domain: str, applied: _Applied) -> None:
        fetched = self._fetched.find(domain)
        if fetched is not None:
            fetched.value |= applied.unnamed

    async def _fetched_again(self, domain: str, applied: _Applied) -> _Applied:
        """What holds after the policy was fetched, whatever its id; once for all who wait."""
        flight = self._again.get(domain)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._fetch_again(domain, applied))
            self._again[domain] = flight
            flight.add_done_callback(_look_at)
        return await asyncio.shield(flight)

    async def _fetch_again(self, domain: str, applied: _Applied) -> _Applied:
        try:
            name = canonical_domain(domain)
            known = self._store.find(name, self._wall_clock())
            fetched = None if known is None else await self._fetch(name, known.id)
            if fetched is None or fetched == applied.policy:
                return applied
            again = self._applied(fetched, None)
            held = self._domains.find(domain)
            ends_at = self._clock() + fetched.max_age_s
            self._domains.put(domain, again, ends_at if held is None else min(held.expires_at, ends_at))
            return again
        finally:
            del self._again[domain]

    def _apply(self, domain: str, site: Site, policy: Policy) -> Route:
        hosts = tuple(host for host in site.hosts if policy.names(host.name))
        if len(hosts) < len(site.hosts):
            others = ", ".join(host.name for host in site.hosts if host not in hosts)
            log.warning("mta-sts policy does not name hosts", domain=domain, mode=policy.mode.value, hosts=others)
        if policy.mode is not Mode.ENFORCE:
            return site
        if not hosts:
            # RFC 3463 §3.8, cryptographic failure: nobody may vouch for these hosts.
            text = f"{domain}: its MTA-STS policy names none of its MX hosts ({others})"
            return NoRoute(is_final=False, enhanced="4.7.5", text=text)
        made = verified_site(site, hosts)
        held = self._sites.find(made.key)
        if held is not None and held.value == made:
            return held.value
        self._sites.put(made.key, made, 0.0)
        return made

    # -- finding a domain's policy (RFC 8461 §3.1, §5.1)

    async def _discover(self, domain: str) -> _Applied:
        try:
            held = self._domains.find(domain)
            name = self._asked_name(domain)
            if name is None:
                applied = _NO_POLICY
                self._domains.put(domain, applied, self._clock() + REFRESH_S)
            else:
                applied = await self._find(domain, name, held)
        finally:
            del self._flights[domain]
        return applied

    def _asked_name(self, domain: str) -> str | None:
        """The domain in the form in which it is asked for; None for one that has no policy (literals, exempt ones)."""
        if domain.startswith("["):
            return None
        try:
            name = canonical_domain(domain)
        except BadInput:
            return None  # the resolver says what is wrong with it
        return None if self._exempt.fullmatch(name) else name

    async def _find(self, domain: str, name: str, held: Held[_Applied] | None) -> _Applied:
        failures = held.failures + 1 if held is not None else 1
        answer = await self._texts(f"_mta-sts.{name}")
        announced = parse_record(answer.texts)
        expires_at = self._clock() + self._resolver.lifetime_s(answer, failures)
        known = self._store.find(name, self._wall_clock())
        policy = None if known is None else known.policy
        if announced is not None:
            if known is None or known.id != announced:
                fetched = await self._fetch(name, announced)
                if fetched is None:
                    expires_at = max(expires_at, self._clock() + FETCH_AGAIN_S)
                else:
                    policy = fetched
            elif self._wall_clock() - known.fetched_unix_s >= min(REFRESH_S, known.policy.max_age_s / 2):
                self._refresh(name, announced)
        if policy is not None:
            # Looked at again when it ends at the latest.
            ends = self._store.find(name, self._wall_clock())
            if ends is not None:
                expires_at = min(expires_at, self._clock() + ends.expires_unix_s - self._wall_clock())
        is_failure = answer.found is Found.TEMPORARY
        applied = self._applied(policy, held)
        self._domains.put(domain, applied, expires_at, failures=failures if is_failure else 0)
        return applied

    @staticmethod
    def _applied(policy: Policy | None, held: Held[_Applied] | None) -> _Applied:
        if policy is None or policy.mode is Mode.NONE:
            return _NO_POLICY
        # An equal policy keeps what was made by it, and is not complained of again.
        return held.value if held is not None and held.value.policy == policy else _Applied(policy)

    async def _texts(self, name: str) -> Answer:
        try:
            async with asyncio.timeout(TEXT_S_MAX):
                return await self._resolver.texts(name)
        except TimeoutError:
            return Answer(Found.TEMPORARY, name, text=f"no answer in {TEXT_S_MAX:.0f} s")

    def _refresh(self, domain: str, announced: str) -> None:
        """Beside the mail: what is known holds meanwhile, and longer when this fails."""
        task = asyncio.get_running_loop().create_task(self._fetch_beside(domain, announced))
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)

    async def _fetch_beside(self, domain: str, announced: str) -> None:
        try:
            await self._fetch(domain, announced)
        except Exception as error:
            log_internal_error("fetching a policy again", error, domain=domain)

    async def _fetch(self, domain: str, announced: str) -> Policy | None:
        self._fetched.put(domain, frozenset(), self._clock() + FETCH_AGAIN_S)
        try:
            policy = await self._fetcher.fetch(domain)
        except FetchFailed as error:
            said = self._failed.find(domain)
            if said is None or said.value != announced:
                log.warning("mta-sts policy cannot be fetched", domain=domain, id=announced, error=str(error))
                self._failed.put(domain, announced, 0.0)
            return None
        now_s = self._wall_clock()
        before = self._store.find(domain, now_s)
        if before is None or before.policy != policy:
            log.info("mta-sts policy", domain=domain, id=announced, mode=policy.mode.value, max_age_s=policy.max_age_s)
        self._store.keep(domain, Known(announced, policy, now_s, now_s + policy.max_age_s))
        return policy


def _look_at(task: asyncio.Task[_Applied]) -> None:
    """Who asked may be gone: then nobody else looks at what went wrong, and it would count as an error of the loop."""
    if not task.cancelled():
        task.exception()


def open_routes(
    dns: DnsSettings,
    tls: TlsSettings,
    *,
    smtp_port: int,
    directory: Path | None,
    random: random_module.Random,
) -> Routes:
    """Routes as the settings want them. ``directory``: where policies are kept; None: in memory only.

    ``smtp_port``: where MX hosts listen; TLSA records are those of this port. Raises BadInput for settings that cannot
    be used.
    """
    check_trust(dns, tls)
    resolver = Resolver(dns, random=random, dane_port=None if tls.dane is Dane.OFF else smtp_port)
    if not tls.mta_sts:
        return resolver
    try:
        fetcher = Fetcher(resolver, ca_file=tls.ca_file, port=tls.mta_sts_port)
    except OSError as error:  # ssl.SSLError is one
        raise BadInput("tls.ca_file", f"{tls.ca_file} cannot be used: {error}") from error
    store = PolicyStore(None if directory is None else directory / FILE_NAME)
    store.read()
    return PolicyRoutes(resolver, fetcher, store, entries_max=dns.cache_entries_max, exempt=tls.mta_sts_except)
