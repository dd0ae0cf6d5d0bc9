"""Certificates and TLSA records for tests: an authority of one's own, and what a server shows and DNS says."""

from __future__ import annotations

import datetime
import hashlib
import ssl
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

Record = tuple[int, int, int, bytes]
HOST = "mx.example.test"


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def expired(authority: trustme.CA, name: str = HOST) -> trustme.LeafCert:
    now = datetime.datetime.now(datetime.UTC)
    return authority.issue_cert(name, not_before=now - datetime.timedelta(9), not_after=now - datetime.timedelta(2))


def ca_file(folder: Path, *authorities: trustme.CA) -> str:
    path = folder / "authorities.pem"
    path.write_bytes(b"".join(authority.cert_pem.bytes() for authority in authorities))
    return str(path)


def certificate_of(made: trustme.LeafCert | trustme.CA) -> bytes:
    """As DER."""
    pem = made.cert_pem if isinstance(made, trustme.CA) else made.cert_chain_pems[0]
    return x509.load_pem_x509_certificate(pem.bytes()).public_bytes(serialization.Encoding.DER)


def key_of(certificate: bytes) -> bytes:
    """The public key of a certificate in DER, as SubjectPublicKeyInfo."""
    return (
        x509.load_der_x509_certificate(certificate)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def tlsa(usage: int, selector: int, matching: int, certificate: bytes) -> Record:
    """The TLSA record for a certificate in DER (RFC 6698 §2.1)."""
    octets = key_of(certificate) if selector else certificate
    digests = {0: lambda: octets, 1: hashlib.sha256(octets).digest, 2: hashlib.sha512(octets).digest}
    return usage, selector, matching, digests[matching]()


def presentation(record: Record) -> str:
    """As a zone file has it."""
    usage, selector, matching, data = record
    return f"{usage} {selector} {matching} {data.hex()}"
