"""What became of each recipient, made safe: journal first, then database.

Owns the local journal (one set of segment files a child) and the lines of ``mta.delivery_log``.
Guarantees: a body is begun only after its intent is in the journal; an outcome is in the journal before it
is reported; a segment goes only when all that it tells is in the database. It decides nothing about traffic.
"""
