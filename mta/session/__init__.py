"""SMTP sessions on real sockets: opened (``open``), then driven (``link``).

In charge of: the TCP connection from a chosen source address, greeting, EHLO or HELO (``handshake``) and STARTTLS
(``tls``) with whatever proof the server owes (``authority``: TLSA records), the hand-over of the live
transport, and from then on moving octets between that transport and an ``mta.smtp`` dialogue under the time limits of
RFC 5321 §4.5.3.2.

Owns one transport per session, from the connect to the ``closed`` call that always ends it; and, for the process, the
TLS sessions that may be resumed. Guarantees: no octet that was not owed survives the hand-over; nothing learnt before a
TLS handshake counts after it (RFC 3207 §4.2); no task, future or timer per message; reading goes on while writing is
blocked.

Never: chooses a host, retries (but for the new connections that a failed resumption and opportunistic TLS mean),
renders a body, or decides what a failure means for a recipient.
"""
