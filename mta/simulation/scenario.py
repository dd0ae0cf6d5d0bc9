"""What is simulated: the node and its egresses, the providers and their ways, the deliveries. Figures only."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from mta.model.egress import EgressPool
from mta.model.site import Site
from mta.traffic.events import TrafficEvent
from mta.traffic.retry import CLASSIC, RetrySchedule
from mta.traffic.rules import RuleSet

DAY_S: Final = 86_400


class OutageKind(enum.StrEnum):
    """What is met while a provider is away."""

    REFUSED = "refused"  # nobody listens: known at once
    SILENT = "silent"  # no answer: known when the rule's connect timeout is over


class Outage(msgspec.Struct, frozen=True):
    """From ``from_s`` on, for ``for_s`` seconds; connections that are open break."""

    from_s: float
    for_s: float
    kind: OutageKind = OutageKind.REFUSED


class Block(msgspec.Struct, frozen=True):
    """Who has sent too fast is refused for a time, whatever it sends."""

    refusals: int = 10  # of the provider's limits, within ``within_s``, then the block begins
    within_s: int = 60
    for_s: float = 900.0
    reply: str = "421 4.7.0 you are blocked for a while"
    at_greeting: bool = True  # else at MAIL


class ProviderModel(msgspec.Struct, frozen=True, kw_only=True):
    """A mailbox provider: one site, or ``sites`` that are alike. None is no limit.

    All limits hold for each source address, over all sites of the provider when they are one house (``is_one_house``),
    else for each site.
    """

    name: str
    share: float  # of the recipients, among the shares of all
    hosts: tuple[str, ...]  # "{n}" stands for the number of the site
    domains: tuple[str, ...] = ()  # of recipients; empty: made from the name
    sites: int = 1
    falloff: float = 0.0  # of several sites the n-th has a share of 1 / n ** falloff
    is_one_house: bool = True
    addresses: int = 1  # of each host
    connect_s: float = 0.15  # until the greeting and what follows it are over
    message_s: float = 0.05
    spread: float = 0.35  # of both, see `mta.simulation.dice.Latency`
    connections_max: int | None = None
    connections_per_minute_max: int | None = None
    messages_per_connection_max: int | None = None
    messages_per_minute_max: int | None = None
    messages_per_hour_max: int | None = None
    refusal: str = "450 4.7.28 too many messages, slow down"  # of who exceeds the rates; 421 ends the connection
    connection_refusal: str = "421 4.7.0 too many connections"
    failed_percent: float = 0.0  # of recipients, for good
    deferred_percent: float = 0.0  # of attempts, for no reason of ours
    failed_reply: str = "550 5.1.1 no such user"
    deferred_reply: str = "451 4.3.0 try again later"
    greylist_s: float = 0.0  # the first attempt is refused, and those until so long after it
    greylist_percent: float = 100.0  # of recipients
    greylist_reply: str = "451 4.7.1 greylisted, try again later"
    block: Block | None = None
    outages: tuple[Outage, ...] = ()
    site: Site | None = (
        None  # its one site, where that is known; then ``hosts``, ``sites`` and ``addresses`` say nothing
    )


class DeliveryModel(msgspec.Struct, frozen=True, kw_only=True):
    """Recipients that are spread over the providers by their shares."""

    name: str
    recipients: int
    start_s: float = 0.0
    over_s: float = 0.0  # they are appended evenly over so long
    weight: int = 1
    priority: int = 2
    pool: str = "default"
    retry: RetrySchedule = CLASSIC
    validity_s: float = 5.0 * DAY_S
    message_bytes: int = 40_000
    only: tuple[str, ...] = ()  # names of providers; empty: all of them
    counts: tuple[tuple[str, int], ...] = ()  # (provider, recipients), where that is known; else by shares
    # As traffic events name it. ``domain``: all its recipients are there; empty: at that of their site.
    delivery_id: int = 0  # 0: its place in the scenario, from 1
    tenant: str = "sender"
    domain: str = ""


class NodeModel(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one node; each as in mta.toml."""

    children: int = 2
    batch_recipients: int = 50
    sessions_max: int = 1_000
    ready_recipients_max: int = 100_000
    ready_per_site_max: int = 5_000
    claim_parts_max: int = 16


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation. Times are seconds since ``starts_unix_s``."""

    name: str
    seed: int = 1
    starts_unix_s: float = 1_767_571_200.0  # 2026-01-05T00:00:00Z, a Monday
    duration_s: float = float(DAY_S)  # it ends then, or sooner when all is done
    rules: RuleSet
    pools: tuple[EgressPool, ...]
    providers: tuple[ProviderModel, ...]
    deliveries: tuple[DeliveryModel, ...]
    node: NodeModel = NodeModel()
    nodes: int = 1
    until: tuple[str, ...] = ()  # it ends when these deliveries are done; empty: all of them
    credits_used: tuple[tuple[str, int, int], ...] = ()  # before the start, see `Schedule.load_credits`
    in_force: tuple[TrafficEvent, ...] = ()  # at the start

    @property
    def recipients(self) -> int:
        return sum(delivery.recipients for delivery in self.deliveries)
