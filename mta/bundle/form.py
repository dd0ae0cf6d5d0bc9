"""The form of a bundle: one JSON document, whose manifest is signed as it stands and names the digest of each file.

::

    {"form": "mta-deliverability-1",
     "manifest": "{\"version\": 12, ...}",        a string: these very octets are signed
     "signatures": [{"key": "ed25519:...", "signature": "base64"}],
     "files": {"bounce-rules.toml": "...", "providers.toml": "..."}}

Names of files are those of `mta.settings.shipped.NAMES` and no others; nothing is ever unpacked.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import mta
from mta.bundle.keys import parse_public_key, public_key_text
from mta.model.errors import BadInput
from mta.queue.updates import Candidate
from mta.settings.shipped import NAMES
from mta.settings.toml_source import FILE_BYTES_MAX, shown

BUNDLE_BYTES_MAX: Final = 4 << 20
VERSION_MAX: Final = 2**53 - 1  # what every reader of JSON keeps exactly
NOTE_CHARS_MAX: Final = 500
FORM: Final = "mta-deliverability-1"
# Signed before the manifest, so that no signature made for something else ever fits.
_CONTEXT: Final = b"mta-deliverability-1\n"
_PROGRAM: Final = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed. ``files``: name -> SHA-256 of its UTF-8 text, hexadecimal."""

    version: Annotated[int, msgspec.Meta(ge=1, le=VERSION_MAX)]  # of each bundle that is made, above the last
    created: datetime.datetime
    program_min: str  # the oldest mta that can read its files
    files: dict[str, str]
    note: Annotated[str, msgspec.Meta(max_length=NOTE_CHARS_MAX)] = ""


class _Signature(msgspec.Struct, frozen=True):
    key: str
    signature: str


class _Document(msgspec.Struct, frozen=True):
    form: str
    manifest: str
    signatures: Annotated[list[_Signature], msgspec.Meta(max_length=20)]
    files: dict[str, str]


class Opened(msgspec.Struct, frozen=True):
    """A bundle whose signature fits. ``digest``: SHA-256 of the manifest, hexadecimal; ``signed_by``: the key."""

    manifest: Manifest
    digest: str
    signed_by: str
    texts: dict[str, str]

    @property
    def candidate(self) -> Candidate:
        made = self.manifest
        return Candidate(made.version, made.created, self.digest, self.signed_by, made.note, self.texts)


def open_bundle(content: bytes, trusted: Iterable[str], where: str) -> Opened:
    """The bundle, if a trusted key (``ed25519:...``) has signed it, and it is whole. Raises BadInput at ``where``.

    Nothing but its form is looked at before the signature.
    """
    keys = {key: parse_public_key(key, "public_keys") for key in trusted}
    if not keys:
        raise BadInput(
            "deliverability.public_keys", "is empty: no signature can be checked, and none is taken unchecked"
        )
    if len(content) > BUNDLE_BYTES_MAX:
        raise BadInput(where, f"is larger than {BUNDLE_BYTES_MAX:,} bytes")
    document = _document(content, where)
    signed = document.manifest.encode()
    for one in document.signatures:
        if one.key in keys and _fits(one, signed):
            manifest = _manifest(signed, where)
            _check_files(document.files, manifest, where)
            return Opened(manifest, hashlib.sha256(signed).hexdigest(), one.key, document.files)
    raise BadInput(where, _unsigned(document.signatures, keys))


def _document(content: bytes, where: str) -> _Document:
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(where, f"is no bundle, or not all of one: {error}") from None
    if document.form != FORM:
        raise BadInput(where, f"has the form {shown(document.form)}; this program reads {FORM!r}")
    return document


def _fits(one: _Signature, signed: bytes) -> bool:
    try:
        signature = base64.b64decode(one.signature, validate=True)
        parse_public_key(one.key, "").verify(signature, _CONTEXT + signed)
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return True


def _unsigned(signatures: list[_Signature], keys: Mapping[str, object]) -> str:
    if not signatures:
        return "is not signed"
    if any(one.key in keys for one in signatures):
        return "has a signature that does not fit: it was changed after it was signed, or is forged"
    by = ", ".join(shown(one.key) for one in signatures[:3])
    return f"is signed by {by}, whom deliverability.public_keys does not name"


def _manifest(signed: bytes, where: str) -> Manifest:
    try:
        manifest = msgspec.json.decode(signed, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(where, f"manifest: {error}") from None
    if manifest.created.tzinfo is None:
        raise BadInput(where, "manifest: created has no time zone")
    if "\0" in manifest.note or not manifest.note.isprintable():
        raise BadInput(where, "manifest: note must be printable")
    needed, have = _program(manifest.program_min, where), _program(mta.__version__, "mta")
    if needed > have:
        what = f"needs mta {manifest.program_min} or newer, this is {mta.__version__}"
        raise BadInput(f"bundle {manifest.version}", what)
    return manifest


def _program(text: str, where: str) -> tuple[int, ...]:
    found = _PROGRAM.match(text)
    if found is None:
        raise BadInput(where, f"manifest: program_min: {shown(text)} is no version; expected such as '0.1.0'")
    return tuple(map(int, found.groups()))


def _check_files(files: Mapping[str, str], manifest: Manifest, where: str) -> None:
    if set(manifest.files) != NAMES or set(files) != NAMES:
        given = ", ".join(shown(name) for name in sorted({*manifest.files, *files})[:5])
        raise BadInput(where, f"holds other files than {' and '.join(sorted(NAMES))}: {given or 'none'}")
    for name, text in files.items():
        octets = text.encode()
        if len(octets) > FILE_BYTES_MAX:
            raise BadInput(where, f"{name} is larger than {FILE_BYTES_MAX:,} bytes")
        if "\0" in text or not text.strip():
            raise BadInput(where, f"{name} is empty, or holds a NUL character")
        if hashlib.sha256(octets).hexdigest() != manifest.files[name].lower():
            raise BadInput(where, f"{name} is not the file that was signed: its digest differs")


def seal_bundle(manifest: Manifest, texts: Mapping[str, str], key: Ed25519PrivateKey) -> bytes:
    """The octets of a bundle. ``manifest.files`` is made here. Raises BadInput for what could not be opened again."""
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(texts.items())}
    signed = msgspec.json.encode(msgspec.structs.replace(manifest, files=digests))
    public = public_key_text(key.public_key())
    signature = base64.b64encode(key.sign(_CONTEXT + signed)).decode()
    document = _Document(FORM, signed.decode(), [_Signature(public, signature)], dict(texts))
    content = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
    open_bundle(content, [public], "bundle")
    return content
