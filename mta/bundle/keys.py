"""Ed25519 keys by which bundles are signed: as settings have them, and as files."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mta.model.errors import BadInput
from mta.settings.deliverability import PUBLIC_KEY_PREFIX, public_key_octets
from mta.settings.toml_source import read_whole

_FILE_BYTES_MAX: Final = 16 * 1024


def parse_public_key(text: str, where: str) -> Ed25519PublicKey:
    """From ``ed25519:`` and the base64 of 32 octets. Raises BadInput."""
    return Ed25519PublicKey.from_public_bytes(public_key_octets(text, where))


def public_key_text(key: Ed25519PublicKey) -> str:
    """As ``[deliverability] public_keys`` has it."""
    octets = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return PUBLIC_KEY_PREFIX + base64.b64encode(octets).decode()


def make_key(out: Path) -> str:
    """Writes a new private key (PEM, mode 0600), and answers its public half. Never writes over a file."""
    key = Ed25519PrivateKey.generate()
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise BadInput(str(out), "is there already; a key is never written over") from None
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        os.fsync(file.fileno())
    return public_key_text(key.public_key())


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises BadInput for a file that others may read, or that holds no such key."""
    content, _ = read_whole(path, _FILE_BYTES_MAX, _too_open)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, binascii.Error):
        raise BadInput(str(path), "holds no private key that can be read (PEM, without a passphrase)") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(str(path), "is no Ed25519 key; mta deliverability keygen makes one")
    return key


def _too_open(found: os.stat_result) -> str:
    mode = stat.S_IMODE(found.st_mode)
    return f"can be read or written by others (mode {mode:04o}); chmod 600 it" if mode & 0o077 else ""
