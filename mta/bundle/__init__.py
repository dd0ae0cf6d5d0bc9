"""Bundles of a deliverability update: made, signed, fetched, checked and put into force.

A bundle brings newer texts of the files that a program ships: rules for failures, rules for providers. It is taken as a
whole or not at all. Nothing in it counts before a signature by a key of the operator's choosing fits, nothing is
written to a file, and what is the operator's own is only read.
"""

from mta.bundle.form import BUNDLE_BYTES_MAX, Manifest, Opened, open_bundle, seal_bundle
from mta.bundle.keys import make_key, parse_public_key, public_key_text, read_private_key

__all__ = [
    "BUNDLE_BYTES_MAX",
    "Manifest",
    "Opened",
    "make_key",
    "open_bundle",
    "parse_public_key",
    "public_key_text",
    "read_private_key",
    "seal_bundle",
]
