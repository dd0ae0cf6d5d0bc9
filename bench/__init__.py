"""How fast it is, measured as an operator would have it: real processes, a durable queue, a far end that is not us.

``python -m bench SCENARIO``; each prints a table, or one line of JSON when asked. ``all`` runs every one into one file,
``picture`` draws that. A figure alone says more of the machine than of us, so each stands beside one of the same run on
the same machine: ``smtp-source``, a real Postfix, ``openssl speed``, the run without what disturbs, or an ideal.

A module a scenario; what they stand on is in `world` (database, name server, node), `far` and `receiver` (who takes the
mail), `content` (what is sent) and `usage` (CPU time and memory). Where CPU time is told by part, the far end's is one.

Owns temporary directories and every process it starts; all of them are gone afterwards. Never leaves loopback.
"""
