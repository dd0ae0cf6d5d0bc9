"""mta: an on-premise, high-throughput mail sending core on PostgreSQL.

The picture, the packages and what may import what stand in ``docs/architecture.md``.
"""

__version__ = "0.1.0"
