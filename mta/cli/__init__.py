"""The command line: parse, call, print.

In charge of words on a terminal: options into values, values into tables or (``--json``) one JSON document a line.
Owns nothing and decides nothing; no SQL stands here. Exit codes: 0 done; 1 done, but not all is well (an audit that
finds a fault, rows refused); 2 not done, with one line that says why.
"""
