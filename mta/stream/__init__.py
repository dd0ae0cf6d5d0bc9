"""Event streams: what became of each recipient, told to other programs in batches.

A stream reads the log from a place of its own, and the place moves when its sink has acknowledged. So each event
arrives at least once, whatever is killed, and by its id a repeat is known. Events of a delivery keep their order.
Streams run beside the keeper (`mta keep`), each on one node at a time; a sink that is slow or away holds up its own
stream and nothing else.
"""
