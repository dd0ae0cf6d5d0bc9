"""Bundles of a deliverability update for tests: small files, a key, and what comes of both."""

from __future__ import annotations

import datetime
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mta.bundle import Manifest, public_key_text, seal_bundle
from mta.settings.shipped import BOUNCE_RULES, PROVIDERS

MADE_AT = datetime.datetime(2027, 1, 31, 8, tzinfo=datetime.UTC)
BOUNCE = """[[rule]]
name = "sleeping"
category = "{category}"
stages = ["rcpt", "bounce"]
pattern = 'mailbox is sleeping'
"""
PROVIDER = """[[provider]]
name = "big"

[[rule]]
name = "big"
provider = "big"
mx = "*.big.example"
connections_max = {connections}
"""
MX_RULES = """[[rule]]
include = "providers.toml"

[[rule]]
name = "everybody"
mx = "*"
connections_max = 10
"""


def texts(category: str = "account_disabled", connections: int = 3) -> dict[str, str]:
    return {BOUNCE_RULES: BOUNCE.format(category=category), PROVIDERS: PROVIDER.format(connections=connections)}


class Maker:
    """Somebody who makes bundles, with a key of their own."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.public = public_key_text(self.key.public_key())

    def bundle(self, version: int, files: dict[str, str] | None = None, **manifest: Any) -> bytes:
        given: dict[str, Any] = {"created": MADE_AT, "program_min": "0.1.0", "files": {}, **manifest}
        return seal_bundle(Manifest(version, **given), texts() if files is None else files, self.key)


def changed(bundle: bytes, **values: object) -> bytes:
    """The document with other values, signatures as they were."""
    return json.dumps({**json.loads(bundle), **values}).encode()
