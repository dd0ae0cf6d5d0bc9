"""What a refusal is about: its recipient, or something that another path, session or day would answer differently."""

from __future__ import annotations

import enum


class Scope(enum.StrEnum):
    """The smallest thing that a refusal speaks of. Only `RECIPIENT` and `MESSAGE` are about the attempt itself."""

    RECIPIENT = "recipient"  # the mailbox
    MESSAGE = "message"  # the content, or the sender's address: refused by every host of the site
    SESSION = "session"  # the state or the number of messages of this connection; a new one may go on
    HOST = "host"  # how much the host takes at a time: connections, rate
    EGRESS = "egress"  # the address, name or reputation that we come from: another may pass
    TRANSPORT = "transport"  # TLS or the lack of it: another host may have it
