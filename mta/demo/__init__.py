"""The whole of the sending core on one machine, from nothing: shown working, and counted at the far end.

In charge of setting a stage in a temporary directory (PostgreSQL from a wheel, the sink, a name server, one node),
sending one personalised delivery over it, showing what happens while it happens, and holding the node's books against
what the sink wrote down (``account``).

The node is ``mta run`` in a process of its own, not a `Daemon` in this one: that is what an operator runs, its event
loop owes nothing to the display, and it can be killed like the real thing (``kill``).

Owns its directory and every process it started. Guarantees: all of them are gone when `run_demo` returns or raises;
those of a demo that was killed itself are cleared away by the next one. Never leaves loopback, never touches a
database that it did not make.
"""

from mta.demo.account import Account
from mta.demo.run import DemoFailed, run_demo
from mta.demo.scene import DemoOptions

__all__ = ["Account", "DemoFailed", "DemoOptions", "run_demo"]
