"""MTA-STS (RFC 8461): which domains want their mail to go only to hosts that they name, and that prove who they are.

In charge of: asking for a domain's ``_mta-sts`` record beside its MX records, fetching the policy that it announces,
remembering it until it ends (over restarts too), and making of a domain's site the one that its policy allows.

Guarantees:

- A policy that was seen once holds until it ends or is replaced by a newer one; that its record has gone, or that its
  server cannot be reached, does not end it (RFC 8461 §5.1): that is what somebody in the path would bring about.
- A domain without a policy waits for one TXT question, which goes out together with that for its MX records.
- Policy servers are reached by the addresses that our own resolver gives and allows, and by no proxy.

Never: decides about sessions. A site says that its hosts are to be verified, what is made of it is for the rules.

``fetch`` gets a policy; ``store`` keeps them; ``routes`` applies them. What a record and a policy are as text stands in
`mta.model.sts`.
"""

from mta.sts.routes import PolicyRoutes, open_routes

__all__ = ["PolicyRoutes", "open_routes"]
