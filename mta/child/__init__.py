"""The muscle: one process that renders, speaks SMTP and reports.

A child is handed sessions to open and batches to send over them. It knows nothing of rules, quotas or the queue;
it owns its connections, the rendered messages that are under way and its journal. Guarantees: no body is begun
before its intent is in the journal, nor while the node's lease is not certain; every recipient it was handed comes
back in exactly one outcome. When the master is gone it stops at once: the journal tells the rest.
"""
