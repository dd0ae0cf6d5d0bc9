"""The far end: an SMTP server that does as its script says, and writes down what it received.

In charge of playing the other side for the demo, the tests and the benchmarks: scripted replies,
delays and disconnects (``script``), a mailbox provider that enforces limits of its own and notices
when ours are broken (``provider``), STARTTLS, extensions shown or hidden, several processes on one
port (``processes``), and the DNS that leads to it (``nameserver``).

Owns the record directory: each process appends to one file of its own, nobody else writes there.

Guarantees: a message is in the record before its reply leaves, so ``kill -9`` of the sink never
leaves a message that was answered ``250`` and is not counted; the same seed and the same order of
commands give the same behaviour; times in the record are CLOCK_MONOTONIC, so that the files of
several processes on one machine merge exactly.

Never relays, never resolves a name, never opens a connection to another host.
"""
