"""What a failure means: the one place where a verdict of the protocol becomes an outcome.

Pure. Nothing else in the program tests a reply code for 4yz or 5yz to decide about a recipient. (Telling
*why* an address failed, beyond the plain codes, is qualification and comes on top of this.)
"""
