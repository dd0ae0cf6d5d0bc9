"""What operators can ask for and have done: one module a topic, each with typed requests and answers.

The command line parses, calls one of these and prints; other front ends do the same, so that all of them decide alike.
A service opens no connection and prints nothing; what it refuses is a `mta.model.errors.BadInput` that names where and
what. Requests and answers are msgspec structs.
"""
