"""Faults of this machine: a session that was not opened because of our own address, route, ports, files or memory.

No server has said or done anything then, so nothing of it counts against a recipient, a host or a path. What rests is
what the fault is about, and is tried again by one session after a while.

Whose fault an error is goes by the system call that gave it. ``socket`` and ``bind`` ask nobody but this machine.
``connect`` on a socket that does not block answers at once only from what this machine knows: its routes, its
addresses, its packet filter. What a router or a server says comes later, as the error of the connection, and is none of
these. The one exception is a refusal by a server on this very machine, see `is_of_machine`.
"""

from __future__ import annotations

import enum
import errno
from typing import Final

import msgspec


class SystemCall(enum.StrEnum):
    """What failed."""

    SOCKET = "socket"
    BIND = "bind"
    CONNECT = "connect"
    OPEN = "open"  # a file that a session needs


class FaultCause(enum.StrEnum):
    """What is wrong with this machine; the value is what operators read."""

    ADDRESS_ABSENT = "address-absent"
    NO_ROUTE = "no-route"
    FORBIDDEN = "forbidden"  # by a packet filter, a route, a sandbox
    NO_PORTS = "no-ports"
    NO_FAMILY = "no-family"
    NO_FILES = "no-files"
    NO_MEMORY = "no-memory"
    NO_AUTHORITIES = "no-authorities"  # by which servers prove themselves
    NO_RESOLVER = "no-resolver"
    OTHER = "other"


class RestUnit(enum.Enum):
    """What is left alone for a while. Everything beside it goes on."""

    PATH = "path"  # an egress and one address of a host
    FAMILY = "family"  # an egress in one address family
    CHILD = "child"  # a process, for new sessions


class MachineFault(msgspec.Struct, frozen=True):
    """One fault. ``what`` may name ``{source}``, ``{peer}`` and ``{family}``.

    ``is_by_peer``: it may hold for one peer and not for others; so it is the path's while others are reached.
    """

    cause: FaultCause
    unit: RestUnit
    what: str
    remedy: str
    is_by_peer: bool = False


_NOT_OF_MACHINE: Final = frozenset(
    (errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EPIPE, errno.EINPROGRESS)
)
_OUT_OF_FILES: Final = frozenset((errno.EMFILE, errno.ENFILE))
_OUT_OF_MEMORY: Final = frozenset((errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC))
_RESOURCES: Final = _OUT_OF_FILES | _OUT_OF_MEMORY
_NO_ROUTE: Final = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EINVAL))
_NO_FAMILY: Final = frozenset((errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT))
_FORBIDDEN: Final = frozenset((errno.EACCES, errno.EPERM))

_FILES: Final = MachineFault(
    FaultCause.NO_FILES,
    RestUnit.CHILD,
    "a child may open no more files",
    "raise LimitNOFILE (ulimit -n) above children.sessions_max, or fs.file-max, then restart the node",
)
_MEMORY: Final = MachineFault(
    FaultCause.NO_MEMORY,
    RestUnit.CHILD,
    "the kernel has no memory for one more socket",
    "look at free memory, net.ipv4.tcp_mem and the memory limit of the service; lower children.sessions_max",
)
_ADDRESS: Final = MachineFault(
    FaultCause.ADDRESS_ABSENT,
    RestUnit.FAMILY,
    "its address {source} is not on this machine",
    "put the address back (ip address add), or correct [[egress]] in mta.toml and restart; mta config check",
)
_FAMILY: Final = MachineFault(
    FaultCause.NO_FAMILY,
    RestUnit.FAMILY,
    "this machine has no {family}",
    "switch {family} on, or set dns.ipv4 or dns.ipv6 to false in mta.toml and restart",
)
_ROUTE: Final = MachineFault(
    FaultCause.NO_ROUTE,
    RestUnit.FAMILY,
    "no route to {peer} over {family}",
    "look at ip route get {peer}; without any {family} here, set dns.ipv4 or dns.ipv6 to false and restart",
    is_by_peer=True,
)
_FILTER: Final = MachineFault(
    FaultCause.FORBIDDEN,
    RestUnit.FAMILY,
    "this machine forbids to connect to {peer}",
    "look at its packet filter (nft list ruleset), at ip route get {peer}, and at the sandbox of the service",
    is_by_peer=True,
)
# A socket that is bound to an address takes its port at connect, by the whole 4-tuple: ports run out for one peer.
_PORTS: Final = MachineFault(
    FaultCause.NO_PORTS,
    RestUnit.PATH,
    "no free port to connect to {peer} from",
    "widen net.ipv4.ip_local_port_range; fewer connections in the rule (connections_max); more egresses",
    is_by_peer=True,
)
_NO_SOURCE: Final = MachineFault(
    FaultCause.NO_PORTS,
    RestUnit.FAMILY,
    "no {family} address or no free port to connect to {peer} from",
    "look at ip address and net.ipv4.ip_local_port_range; without any {family}, set dns.ipv4 or dns.ipv6 to false",
    is_by_peer=True,
)
_AUTHORITIES: Final = MachineFault(
    FaultCause.NO_AUTHORITIES,
    RestUnit.PATH,
    "the trusted authorities cannot be read, and {peer} must prove itself",
    "look at tls.ca_file: it must be there, and readable by the service",
)
RESOLVER: Final = MachineFault(
    FaultCause.NO_RESOLVER,
    RestUnit.FAMILY,
    "no name server can be asked",
    "look at dns.nameservers or /etc/resolv.conf: is the server running, and is there a route to it?",
)


def is_of_machine(call: SystemCall, number: int) -> bool:
    """Whether an error that ``call`` gave at once, with this errno, is this machine's own."""
    return call is not SystemCall.CONNECT or number not in _NOT_OF_MACHINE


def find_fault(call: SystemCall, number: int, *, has_source: bool) -> MachineFault:
    """What an error of this machine means. ``has_source``: the egress names the address that it leaves by."""
    if number in _RESOURCES:
        return _FILES if number in _OUT_OF_FILES else _MEMORY
    if call is SystemCall.OPEN:
        return _AUTHORITIES
    if number in _NO_FAMILY:
        return _FAMILY
    if number in _FORBIDDEN:
        return _FILTER
    if call is SystemCall.BIND and number in (errno.EADDRNOTAVAIL, errno.EINVAL):
        return _ADDRESS
    if number in (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN):
        return _PORTS if has_source else _NO_SOURCE
    if call is SystemCall.CONNECT and number in _NO_ROUTE:
        return _ROUTE
    name = errno.errorcode.get(number, str(number))
    return MachineFault(
        FaultCause.OTHER,
        RestUnit.FAMILY,
        f"this machine answers {call.value} with {name}",
        f"look up {name} in the manual of {call.value}(2)",
        is_by_peer=call is SystemCall.CONNECT,
    )
