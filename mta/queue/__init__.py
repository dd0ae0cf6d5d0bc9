"""The durable queue in PostgreSQL: deliveries, their parts, and the record of what became of each recipient.

In charge of: the schema and its migrations; deliveries and their states; appending parts (from Python, from files,
from plain SQL); claiming, leasing and settling them; the audit that proves the books from queue and log.

Guarantees. An append that has answered is durable, and the same append again gives the same answer and no second
copy. From its delivery's start on, which may give it the time of a wave, a part never changes but for its lease.
Nothing can be appended after a seal. Times are the database's clock, never this process's. Memory is bounded by a
part, a batch or a byte per recipient, never by the queue.

Never: opens an SMTP session, resolves a name, applies a rule, renders a message. SQL stands in ``schema/`` and in
module constants; values travel as parameters only.
"""
