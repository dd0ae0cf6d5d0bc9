"""The brain as a process: claims parts, knows where they go, hands batches to children, collects outcomes.

One event loop owns everything here; between two awaits nothing else runs, so its books need no locks. The decisions
are made in `mta.traffic.schedule`; this package performs them. It never opens an SMTP connection, and never looks
into a merge value.
"""
