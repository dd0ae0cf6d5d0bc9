"""DKIM (RFC 6376): keys, signers, and the relaxed canonical form of header lines.

Signatures are relaxed/relaxed, rsa-sha256 with keys of 2048 bits and more (RFC 8301 §3) or ed25519-sha256
(RFC 8463), never with ``l=``. What a reader sees or a mail program acts upon stands once more in ``h=`` than in the
message, so that no second one can be put in front of it on the way (RFC 6376 §8.15). ``t=`` is the time of the
message's Date: the same message signed again is the same.

Keys come in as the octets of a PEM; where they lie, and who may read them, is for the settings to see to.
No key, and no error about one, shows what the key is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Final, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPrivateNumbers
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mta.model.address import parse_domain, shown
from mta.model.errors import BadInput
from mta.model.limits import DOMAIN_OCTETS_MAX

RSA_BITS_MIN: Final = 2048  # RFC 8301 §3.2: signers should
RSA_BITS_MAX: Final = 4096  # RFC 8301 §3.2: what every verifier must be able to check
PEM_OCTETS_MAX: Final = 64 * 1024

# Signed where they are there, in this order (RFC 6376 §5.4.1, RFC 8058 §4). A header of a list or a campaign that
# a receiver acts upon must be ours, too.
SIGNED_HEADERS: Final = (
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Reply-To",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "List-Id",
    "List-Help",
    "List-Owner",
    "List-Subscribe",
    "List-Post",
    "List-Archive",
    "Feedback-ID",
    "In-Reply-To",
    "References",
)
OVERSIGNED_HEADERS: Final = (
    "From",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Reply-To",
    "MIME-Version",
    "Content-Type",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
)

_SELECTOR: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")
_WHITE_SPACE: Final = re.compile(r"[ \t]+")
_SIGNATURE_LINE_OCTETS: Final = 74


class SigningKey:
    """A private key that signs a SHA-256 digest. Shows nothing of itself, and cannot be pickled or copied about."""

    __slots__ = ("_key", "algorithm", "sign")

    algorithm: str
    sign: Callable[[bytes], bytes]

    def __init__(self, key: RSAPrivateKey | Ed25519PrivateKey) -> None:
        self._key = key
        if isinstance(key, RSAPrivateKey):
            self.algorithm = "rsa-sha256"
            # The digest comes ready made, so what goes on here is the signature alone: 99 % of what signing costs.
            scheme, digested = padding.PKCS1v15(), Prehashed(SHA256())
            self.sign = lambda digest: key.sign(digest, scheme, digested)
        else:
            self.algorithm = "ed25519-sha256"
            self.sign = key.sign  # of the digest: RFC 8463 §3

    def dns_record(self) -> str:
        """The text of the TXT record at ``selector._domainkey.domain`` (RFC 6376 §3.6.1, RFC 8463 §4)."""
        public = self._key.public_key()
        if isinstance(self._key, RSAPrivateKey):
            octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return f"v=DKIM1; k=rsa; p={base64.b64encode(octets).decode('ascii')}"
        octets = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return f"v=DKIM1; k=ed25519; p={base64.b64encode(octets).decode('ascii')}"

    def __repr__(self) -> str:
        return f"<SigningKey {self.algorithm}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key is not to be written anywhere")


def load_key(pem: bytes, where: str, *, is_proven: bool = False) -> SigningKey:
    """The RSA (PKCS #1 or #8) or Ed25519 (PKCS #8) key that ``pem`` holds, not encrypted. Raises BadInput at ``where``.

    The key is tried out: its parts must belong together, and its public half verify what it signs, which takes a
    millisecond. ``is_proven``: it has
    been tried before, by whoever read it.
    """
    if len(pem) > PEM_OCTETS_MAX:
        raise BadInput(where, f"has {len(pem)} octets, which no private key has")
    if b"-----BEGIN " not in pem:
        raise BadInput(where, "is no PEM: no line starts with -----BEGIN")
    # None of the library's own words go on: they could hold some of the octets they are about.
    try:
        # The library's own check looks for primes, for some 30 ms a key; that the parts belong together is seen below.
        key = load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise BadInput(where, "is encrypted with a passphrase; keys for signing are kept without one") from None
    except UnsupportedAlgorithm:
        raise BadInput(where, "holds a key of an unknown kind; RSA and Ed25519 can sign") from None
    except ValueError:
        raise BadInput(
            where, "holds no private key that can be read (is it whole, and is it not the public one?)"
        ) from None
    if isinstance(key, Ed25519PrivateKey):
        return SigningKey(key)
    if not isinstance(key, RSAPrivateKey):
        raise BadInput(where, "holds a key that is neither RSA nor Ed25519; only those two can sign")
    if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        raise BadInput(where, f"holds an RSA key of {key.key_size} bits, {RSA_BITS_MIN} to {RSA_BITS_MAX} are allowed")
    signing_key = SigningKey(key)
    if not is_proven:
        _try_out(key, signing_key, where)
    return signing_key


def _try_out(key: RSAPrivateKey, signing_key: SigningKey, where: str) -> None:
    digest = bytes(32)
    try:
        # OpenSSL would make up for some of these, at four times the price of a signature.
        if not _is_consistent(key.private_numbers()):
            raise ValueError
        key.public_key().verify(signing_key.sign(digest), digest, padding.PKCS1v15(), Prehashed(SHA256()))
    except (InvalidSignature, ValueError):
        raise BadInput(where, "holds an RSA key whose parts do not belong together") from None


def _is_consistent(key: RSAPrivateNumbers) -> bool:
    """RFC 8017 §3.2, but for the primes being primes."""
    p, q, public = key.p, key.q, key.public_numbers
    return (
        p * q == public.n
        and (public.e * key.dmp1 % (p - 1), public.e * key.dmq1 % (q - 1), key.iqmp * q % p) == (1, 1, 1)
        and (key.d % (p - 1), key.d % (q - 1)) == (key.dmp1, key.dmq1)
    )


def parse_signer_name(domain: str, selector: str, where: str) -> tuple[str, str]:
    """``d=`` and ``s=``, canonical. Raises BadInput under ``where`` when they cannot make a name in DNS."""
    canonical = parse_domain(domain, f"{where}.domain")
    if canonical.startswith("["):
        raise BadInput(f"{where}.domain", f"{shown(domain)} is an address, not a domain")
    lower = selector.lower()
    if _SELECTOR.fullmatch(lower) is None:
        raise BadInput(f"{where}.selector", f"{shown(selector)} is no selector (letters, digits, - and dots)")
    if len(lower) + len("._domainkey.") + len(canonical) > DOMAIN_OCTETS_MAX - 2:
        raise BadInput(f"{where}.selector", "makes a name too long for DNS together with the domain")
    return canonical, lower


class Signer:
    """Who signs: ``d=``, ``s=`` and the key. Immutable; one serves any number of templates."""

    __slots__ = ("domain", "key", "selector")

    def __init__(self, domain: str, selector: str, key: SigningKey, *, where: str = "signer") -> None:
        """Raises BadInput under ``where`` when ``domain`` is no domain, or ``selector`` no name below it."""
        self.domain, self.selector = parse_signer_name(domain, selector, where)
        self.key = key

    def __repr__(self) -> str:
        return f"<Signer {self.selector}._domainkey.{self.domain} {self.key.algorithm}>"

    def signature(self, digest: bytes) -> str:
        """The value of ``b=`` for what hashes to ``digest``, folded."""
        text = base64.b64encode(self.key.sign(digest)).decode("ascii")
        return "\r\n ".join(
            [text[start : start + _SIGNATURE_LINE_OCTETS] for start in range(0, len(text), _SIGNATURE_LINE_OCTETS)]
        )


def relaxed_text(text: str) -> str:
    """A header's text in relaxed form (RFC 6376 §3.4.2): unfolded, runs of white space one space, none at the ends."""
    if "\r\n" not in text and "  " not in text and "\t" not in text:
        return text.strip(" ")
    return _WHITE_SPACE.sub(" ", text.replace("\r\n", "")).strip(" ")


def relaxed_lines(text: str) -> str:
    """A piece of a body whose lines end in no white space, in relaxed form (RFC 6376 §3.4.4), empty lines kept."""
    if "  " not in text and "\t" not in text:
        return text
    return _WHITE_SPACE.sub(" ", text)
