"""DANE (RFC 6698, RFC 7672): does what a server has shown fit a TLSA record of its host?

Two kinds of record are usable for SMTP (RFC 7672 §3.1): DANE-EE names the server's own certificate or key, and then
neither names nor dates nor issuers count; DANE-TA names an authority above it, and then the chain up to it, the
dates and the host's name must be right. All others are as if they said only that there is TLS (RFC 7672 §2.2).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from mta.model.tls import Authorities

CHAIN_MAX: Final = 10  # certificates that are looked at; an honest chain has two to four

_DANE_TA, _DANE_EE = 2, 3
_CERTIFICATE, _PUBLIC_KEY = 0, 1
_FULL, _SHA256, _SHA512 = 0, 1, 2
_DIGESTS: Final[dict[int, Callable[[bytes], bytes]]] = {
    _SHA256: lambda octets: hashlib.sha256(octets).digest(),
    _SHA512: lambda octets: hashlib.sha512(octets).digest(),
}
_DIGEST_BYTES: Final = {_SHA256: 32, _SHA512: 64}


@functools.lru_cache(maxsize=1024)  # asked for several times a session, and hosts are few
def usable(authorities: Authorities) -> Authorities:
    """The records that a server can be held against; of digests the strongest of their kind (RFC 7671 §9)."""
    if not authorities:
        return ()
    sound = [record for record in authorities if _is_usable(record)]
    has_sha512 = {(usage, selector) for usage, selector, matching, _ in sound if matching == _SHA512}
    return tuple(record for record in sound if not (record[2] == _SHA256 and (record[0], record[1]) in has_sha512))


def _is_usable(record: tuple[int, int, int, bytes]) -> bool:
    usage, selector, matching, data = record
    if usage not in (_DANE_TA, _DANE_EE) or selector not in (_CERTIFICATE, _PUBLIC_KEY):
        return False
    if matching == _FULL:
        return _is_wellformed(selector, data)
    return len(data) == _DIGEST_BYTES.get(matching, -1)


def _is_wellformed(selector: int, data: bytes) -> bool:
    try:
        if selector == _CERTIFICATE:
            x509.load_der_x509_certificate(data).public_key()
        else:
            serialization.load_der_public_key(data)
    except Exception:  # a stranger's octets, and cryptography has many names for what is wrong with them
        return False
    return True


def mismatch(authorities: Authorities, chain: Sequence[bytes], host: str) -> str:
    """Why what a server has shown fits none of the usable records; empty when it fits one.

    ``chain``: certificates as DER, the server's own first, in any order behind it. ``host``: the name of the MX host.
    """
    records = usable(authorities)
    try:
        certificates = [x509.load_der_x509_certificate(octets) for octets in chain[:CHAIN_MAX]]
        if not certificates:
            return "it has shown none"
        if any(_fits(record, certificates[0]) for record in records if record[0] == _DANE_EE):
            return ""
        anchored = [record for record in records if record[0] == _DANE_TA]
        return _not_anchored(anchored, certificates, host) if anchored else "its certificate or key is another"
    except Exception as error:  # as above: whatever it is, the server has not proved anything
        return f"it cannot be read ({type(error).__name__}: {error})"[:200]


def _fits(record: tuple[int, int, int, bytes], certificate: x509.Certificate) -> bool:
    _, selector, matching, data = record
    if selector == _CERTIFICATE:
        octets = certificate.public_bytes(serialization.Encoding.DER)
    else:
        octets = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return (octets if matching == _FULL else _DIGESTS[matching](octets)) == data


def _not_anchored(anchored: Sequence[tuple[int, int, int, bytes]], chain: list[x509.Certificate], host: str) -> str:
    """DANE-TA: why no chain leads from the server's certificate, for this host, to one that a record names."""
    anchors = [certificate for certificate in chain if any(_fits(record, certificate) for record in anchored)]
    # RFC 7671 §5.2.2: an authority that stands in DNS as a whole may be missing in the chain.
    anchors += [
        x509.load_der_x509_certificate(data)
        for _, selector, matching, data in anchored
        if (selector, matching) == (_CERTIFICATE, _FULL)
    ]
    if not anchors:
        return "no certificate of its chain is the authority that DNS names"
    verifier = (
        PolicyBuilder()
        .store(Store(anchors))
        .extension_policies(ca_policy=_authority_policy(), ee_policy=_server_policy())
        .build_server_verifier(x509.DNSName(host))
    )
    try:
        verifier.verify(chain[0], chain[1:])
    except VerificationError as error:
        return str(error).partition(" (encountered processing")[0]
    return ""


def _authority_policy() -> ExtensionPolicy:
    """No more than that it is one: an authority of one's own need not keep the rules of those in browsers."""
    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
    )


def _signs_certificates(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an authority whose key is not for certificates")


def _server_policy() -> ExtensionPolicy:
    return ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
