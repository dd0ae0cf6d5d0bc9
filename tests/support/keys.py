"""Keys for signing, made for the test run, and a verifier that is not ours."""

from __future__ import annotations

from functools import cache

import dkim
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from mta.message import Signer, load_key


@cache
def rsa_pem(bits: int = 2048, *, traditional: bool = False) -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    form = PrivateFormat.TraditionalOpenSSL if traditional else PrivateFormat.PKCS8
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


@cache
def ed25519_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def ec_pem() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encrypted_pem() -> bytes:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a passphrase"))


@cache
def rsa_signer() -> Signer:
    return Signer("shop.example", "r2048", load_key(rsa_pem(), "key"))


@cache
def ed25519_signer() -> Signer:
    return Signer("mail.shop.example", "ed.2026", load_key(ed25519_pem(), "key"))


def records(*signers: Signer) -> dict[str, bytes]:
    """What DNS would hold: names with the final dot, texts."""
    return {f"{one.selector}._domainkey.{one.domain}.": one.key.dns_record().encode() for one in signers}


def is_verified(message: bytes, keys: dict[str, bytes], index: int = 0) -> bool:
    """What dkimpy says of the signature at ``index``, from the top."""

    def lookup(name: bytes, timeout: int = 5) -> bytes | None:
        return keys.get(name.decode("ascii"))

    try:
        return bool(dkim.DKIM(message, minkey=2048).verify(index, dnsfunc=lookup))
    except (dkim.DKIMException, ValueError):  # ValueError: base64 that is none
        return False
