"""From a recipient's domain to the site that serves it (RFC 5321 §5.1, RFC 7505).

In charge of: asking recursive nameservers, believing their answers no longer than they may be believed, and deciding
from them which MX hosts and addresses may be dialled. Owns its UDP ports and TCP connections to the nameservers, and
three bounded tables: domains, sites, hosts.

Guarantees:

- One question at a time for a name, whoever asks for it, and never more than ``concurrency_max`` questions on the wire.
- Only a definite "no" is final. Silence, SERVFAIL, REFUSED, a lame or garbled answer is "not now", and never turns
  into an attempt at the domain's own address.
- Every address in a `Site` was held against the refused networks; whoever dials only such addresses cannot be led
  inside by a name that changes its mind (threats D4).
- Two domains with equal MX sets share one `Site` object, until its addresses change.
- `Resolver.cached` never waits: known domains are not delayed by unknown ones.

Never: validates DNSSEC (where it is told to, it takes the nameservers' word that they have, for TLSA records), opens an
SMTP connection, chooses an order among equals (`mta.model.site.order_hosts` does, at the time of use).

``mx`` and ``networks`` decide, without I/O; ``message`` reads and writes packets; ``transport`` carries them; ``cache``
remembers; ``resolver`` ties them together.
"""

from mta.dns.resolver import Resolver, ResolverStatistics, Routes

__all__ = ["Resolver", "ResolverStatistics", "Routes"]
