"""What has to be done with outcomes after they are recorded: addresses quarantined, texts of failures counted.

A process beside the daemons (`mta keep`). It follows the log by a pointer and applies each line exactly once, in the
transaction that moves the pointer; so it may be away for hours, and a kill at any point changes nothing. Of all that
are started one works, the others stand by. It never sends, and nothing that sends waits for it.
"""
