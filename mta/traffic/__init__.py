"""What may go where, and when: rules, quotas, fair order, backoff, retries, waves, the choice of egress.

In charge of every decision about the pace and the path of mail. Owns its counters and nothing else:
it does no I/O, is handed each time as a plain number of seconds and each die already thrown, so that
the daemon under real time and a simulation under virtual time run the very same code.

Guarantees: a limit of a rule is never exceeded, in no window, over no reload or restart; whatever
does not go has a reason and a time; nobody starves; memory is bounded by configuration.
Never: opens a socket, reads a clock, writes a log line, or knows what a message says.
"""
