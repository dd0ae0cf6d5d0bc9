"""The vocabulary: values that every other package speaks of.

Owns no state, does no I/O, reads no clock. Everything here is immutable, and whatever crosses a
process border is a ``msgspec.Struct``. May import nothing else of ours.
"""
