"""What a node learns of an MX host by talking to it: what it can do, and how much it takes.

Servers do not all do what they announce. What one was seen to do is kept for a time, with its cause, and is obeyed by
every later session with that host.
"""

from __future__ import annotations

import enum
from typing import Final


class HostFact(enum.StrEnum):
    """One thing that a host was seen to do. Those with a number say how much it takes; the others have the value 0."""

    NO_PIPELINING_BEHIND_END = "no_pipelining_behind_end"  # commands that come with the end of data are lost or refused
    NO_PIPELINING = "no_pipelining"
    NO_CHUNKING = "no_chunking"
    NO_TLS = "no_tls"  # STARTTLS is offered and fails
    MESSAGES_PER_SESSION = "messages_per_session"
    CONNECTIONS = "connections"  # at a time, from one egress
    RECIPIENTS_PER_TRANSACTION = "recipients_per_transaction"
    RESETS = "resets"  # RSET in a row, with no message between

    def said(self, value: int) -> str:
        """What it means for sessions with the host, in words."""
        return _SAID[self].format(value)


_SAID: Final = {
    HostFact.NO_PIPELINING_BEHIND_END: "nothing is sent behind the end of a message before its reply is here",
    HostFact.NO_PIPELINING: "PIPELINING is not used",
    HostFact.NO_CHUNKING: "CHUNKING (BDAT) is not used",
    HostFact.NO_TLS: "STARTTLS is not used where TLS is opportunistic",
    HostFact.MESSAGES_PER_SESSION: "{} messages a session",
    HostFact.CONNECTIONS: "{} connections at a time from an egress",
    HostFact.RECIPIENTS_PER_TRANSACTION: "{} recipients a transaction",
    HostFact.RESETS: "{} RSET in a row",
}
