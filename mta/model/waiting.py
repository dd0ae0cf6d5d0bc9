"""Why something does not go now. Every wait has a reason from here and a time."""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class WaitReason(enum.StrEnum):
    """Named cause of a wait; the value is what operators read."""

    DNS = "dns"  # the domain is being resolved, or its servers did not answer
    RULE_CONNECTIONS = "rule-connections"  # connections_max of the rule is reached
    HOST_CONNECTIONS = "host-connections"  # the host was seen to refuse more connections
    RULE_CONNECTION_RATE = "rule-connection-rate"  # as many were begun lately as the rule allows, or the ramp is slow
    RULE_MESSAGES = "rule-messages"  # the second, the minute or the day is used up
    RULE_MESSAGES_PER_HOUR = "rule-messages-per-hour"  # the slice or the hour is used up
    RULE_BYTES = "rule-bytes"  # the volume of the minute, the hour or the day is used up
    QUIET_HOURS = "quiet-hours"  # of the rule
    WARM_UP = "warm-up"  # the source address has sent what its plan allows today
    SHARE = "share"  # other nodes hold this node's share of the limit, for the moment
    BACKOFF = "backoff"  # every path failed recently
    NO_EGRESS = "no-egress"  # the pool is unknown here, or its masks exclude the domain
    NO_SIGNING_KEY = "no-signing-key"  # its sender domain must be signed for, and a key is missing or unusable
    MACHINE = "machine"  # this machine cannot connect: its address, route, ports, files or memory
    SUSPENDED = "suspended"  # by an operator
    SESSIONS = "sessions"  # all sessions of all children are in use
    WINDOW = "window"  # its sessions are busy with what they have
    LEASE = "lease"  # the node's lease is not certain: nothing is handed out
    JOURNAL = "journal"  # the journal cannot be written

    __hash__ = str.__hash__  # that of enums is a call in Python, and reasons are looked up for every batch


# Of several egresses, the wait that is shown (and whose kind decides) is the first of these; the first four are short.
SOONEST_FIRST: Final = (
    WaitReason.WINDOW,
    WaitReason.SESSIONS,
    WaitReason.RULE_CONNECTIONS,
    WaitReason.HOST_CONNECTIONS,
    WaitReason.SHARE,
    WaitReason.RULE_CONNECTION_RATE,
    WaitReason.RULE_MESSAGES,
    WaitReason.RULE_MESSAGES_PER_HOUR,
    WaitReason.RULE_BYTES,
    WaitReason.WARM_UP,
    WaitReason.QUIET_HOURS,
    WaitReason.SUSPENDED,
    WaitReason.BACKOFF,
    WaitReason.MACHINE,
    WaitReason.NO_EGRESS,
)


class Wait(msgspec.Struct, frozen=True):
    """A reason and the time (monotonic seconds) at which to look again; inf: on an event only."""

    reason: WaitReason
    until: float
    detail: str = ""
