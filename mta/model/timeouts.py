"""Time limits of an SMTP session, seconds. The defaults are the minimum of RFC 5321 §4.5.3.2 where it has one."""

from __future__ import annotations

import msgspec


class SessionTimeouts(msgspec.Struct, frozen=True):
    """How long to wait for what. Each limit is for one *complete* reply (a byte now and then wins no time)."""

    connect_s: float = 30.0  # TCP; RFC 5321 has no figure
    greeting_s: float = 300.0  # RFC 5321 §4.5.3.2.1
    command_s: float = 300.0  # EHLO, STARTTLS, MAIL, RCPT, RSET: RFC 5321 §4.5.3.2.2 and §4.5.3.2.3
    data_s: float = 120.0  # reply to DATA: RFC 5321 §4.5.3.2.4
    block_s: float = 180.0  # while we write and the far end takes nothing: RFC 5321 §4.5.3.2.5
    dot_s: float = 600.0  # reply to the final dot: RFC 5321 §4.5.3.2.6
    quit_s: float = 5.0  # its reply decides nothing: RFC 5321 §4.1.1.10
    idle_s: float = 5.0  # an open session without an envelope is given back; no source, a courtesy
    setup_s: float = (
        660.0  # the whole of connect, greeting, EHLO, STARTTLS, EHLO; one greeting and one command at their limit
    )
    session_s: float = 3600.0  # age after which a session begins no further envelope
