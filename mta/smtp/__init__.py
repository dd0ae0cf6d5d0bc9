"""SMTP as a conversation, without a socket: bytes in, verdicts out, bytes to send.

In charge of: reading replies (``reply``), what a server offers (``extensions``), making a body safe for the wire
(``transparency``), and mail transactions on a greeted session, pipelined where the server allows (``dialogue``).

Guarantees: every recipient of every offered envelope gets exactly one verdict, whatever the server sends and
whenever the link breaks; nothing a server sends raises out of a dialogue; a reply that was not owed is never taken
as an answer; after the final dot only a reply decides (anything else is *in doubt*); memory is bounded by the caps in
``reply`` and one body at a time.

Never: opens or reads a socket, looks at a clock, retries, decides what a refusal means for the next attempt
(that is ``mta.failure``), logs.
"""
