"""What `tests.support.schedule_world` is made of: parts, servers, children, and sites and egresses to try them on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mta.model.egress import Egress
from mta.model.site import MxHost, Site, site_key
from mta.traffic.actions import HandOut
from mta.traffic.sessions import Session


class Part(NamedTuple):
    """What the world puts in memory: recipients of one delivery at one site; positions are their numbers."""

    delivery: int
    weight: int
    domain: str
    pool: str


@dataclass
class Server:
    """How the far end behaves; may be changed at any moment."""

    open_s: float = 0.05
    message_s: float = 0.01
    is_down: bool = False
    refuse_odds: float = 0.0  # of a connection
    drop_odds: float = 0.0  # of a message: the connection is lost in it
    connections_max: int = 10**9  # it refuses more


class Sent(NamedTuple):
    """A message that reached a server."""

    at_s: float
    recipient: int
    session: int
    mx_host: str
    peer: str
    egress: Egress
    domain: str = ""


@dataclass
class Connection:
    """A child's side of a session."""

    session: Session
    server: Server
    queue: deque[tuple[HandOut[Part], Part, int]] = field(default_factory=deque)
    is_open: bool = False
    is_closing: bool = False
    is_over: bool = False
    is_busy: bool = False


@dataclass
class Child:
    reports: list[tuple[HandOut[Part], Part, list[int], list[int]]] = field(default_factory=list)
    connections: dict[int, Connection] = field(default_factory=dict)
    is_reporting: bool = False


def egress(number: int, weight: int = 1, **more: object) -> Egress:
    return Egress(f"e{number}", number, f"e{number}.example.com", weight=weight, **more)  # type: ignore[arg-type]


def site(*hosts: tuple[int, str, Sequence[str]]) -> Site:
    """A site of (preference, host, addresses)."""
    return Site(
        site_key([(preference, name) for preference, name, _ in hosts]),
        tuple(MxHost(name, preference, tuple(addresses)) for preference, name, addresses in hosts),
    )


A = site((10, "mx.a.test", ["192.0.2.1"]))
B = site((10, "mx.b.test", ["192.0.2.2"]))
