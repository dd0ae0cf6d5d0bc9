"""How fast it is, measured as an operator would have it: real processes, a durable queue, a far end that is not us.

``python -m bench drain`` and ``python -m bench throttled``; each ends with one line of JSON when asked. Every figure
stands beside one of the same run on the same machine (``smtp-source``, or the run without the throttled half), since
a figure alone says more of the machine than of us.

Owns a temporary directory and every process it starts; all of them are gone afterwards. Never leaves loopback.
"""
