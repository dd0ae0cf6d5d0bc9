"""Signatures: the keys that the benches sign with, and what ``openssl speed`` makes of the same kind of key."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from bench.content import SIGNED_DOMAIN

SELECTOR: Final = "bench"
SPEED_S: Final = 2
_TIMEOUT_S: Final = 60.0


class Dkim(enum.StrEnum):
    """How messages are signed."""

    NONE = "none"
    RSA2048 = "rsa2048"
    ED25519 = "ed25519"


def settings_of(dkim: Dkim, directory: Path) -> str:
    """The ``[[dkim]]`` table for a new key, which is written to ``directory``; empty when nothing is signed."""
    if dkim is Dkim.NONE:
        return ""
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    key = rsa.generate_private_key(65_537, 2_048) if dkim is Dkim.RSA2048 else ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = directory / f"{dkim}.pem"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    return f'[[dkim]]\ndomain = "{SIGNED_DOMAIN}"\nselector = "{SELECTOR}"\nkey = "{path}"\n'


def signs_per_second(dkim: Dkim) -> float | None:
    """Of one core; None where openssl is absent, or nothing is signed."""
    program = shutil.which("openssl")
    if program is None or dkim is Dkim.NONE:
        return None
    done = subprocess.run(
        [program, "speed", "-mr", "-seconds", str(SPEED_S), dkim.value],
        check=True,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    return read_speed(done.stdout)


def read_speed(told: str) -> float:
    """Signatures a second, of what ``openssl speed -mr`` has told of one kind of key."""
    # +F2:<number>:<bits>:<signs/s>:<verifies/s>, and +F6 with the curve's name between for EdDSA.
    line = next(line for line in told.splitlines() if line.startswith(("+F2:", "+F6:")))
    return float(line.split(":")[-2])
