"""``[deliverability]`` of the settings: where updates of what is shipped come from, who signs them, and when."""

from __future__ import annotations

import base64
import binascii
import datetime
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from mta.model.errors import BadInput
from mta.settings.toml_source import TomlSource, shown

KEYS_MAX: Final = 10
PUBLIC_KEY_PREFIX: Final = "ed25519:"
_KEY_OCTETS: Final = 32
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


class DeliverabilitySettings(msgspec.Struct, frozen=True):
    """The keys of ``[deliverability]``. A path in ``source`` or ``ca_file`` is absolute once it is checked."""

    enabled: bool = False  # the keeper takes updates by itself, daily
    source: str = ""  # https URL or file
    public_keys: tuple[str, ...] = ()  # "ed25519:" and base64; one of them must have signed
    daily_at: str = "04:30"  # UTC
    ca_file: str = ""  # PEM: who is trusted over HTTPS; empty: the system

    @property
    def at(self) -> datetime.time:
        hour, minute = map(int, self.daily_at.split(":"))
        return datetime.time(hour, minute, tzinfo=datetime.UTC)


def public_key_octets(text: str, where: str) -> bytes:
    """The 32 octets of ``ed25519:`` and base64. Raises BadInput."""
    form = f"expected {PUBLIC_KEY_PREFIX!r} and base64, as mta deliverability keygen prints it"
    if not text.startswith(PUBLIC_KEY_PREFIX):
        raise BadInput(where, f"{shown(text)} is no public key; {form}")
    try:
        octets = base64.b64decode(text.removeprefix(PUBLIC_KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(where, f"{shown(text)} is no public key; {form}") from None
    if len(octets) != _KEY_OCTETS:
        raise BadInput(where, f"{shown(text)} has {len(octets)} octets, and such a key {_KEY_OCTETS}; {form}")
    return octets


def check_source(source: str, where: str) -> bool:
    """Whether it is a URL; else it is a file. Raises BadInput for a URL that is not https."""
    scheme, colon, _ = source.partition("://")
    if not colon:
        return False
    url = urlsplit(source)
    if scheme.lower() != "https" or not url.hostname:
        raise BadInput(where, f"{shown(source)} is not allowed; expected https://host/path, or a file")
    if url.username or url.password:
        raise BadInput(where, "may hold no user and password: it is shown in the history")
    return True


def deliverability_settings(source: TomlSource, table: DeliverabilitySettings, base: Path) -> DeliverabilitySettings:
    """Raises BadInput with file, line and key."""
    at = "deliverability"
    if not _TIME.fullmatch(table.daily_at):
        raise source.fault((at, "daily_at"), f"{shown(table.daily_at)} is no time of the day; write it as '04:30', UTC")
    if len(table.public_keys) > KEYS_MAX:
        raise source.fault((at, "public_keys"), f"more than {KEYS_MAX}")
    for i, key in enumerate(table.public_keys):
        try:
            public_key_octets(key, "")
        except BadInput as error:
            raise source.fault((at, "public_keys", i), error.what) from None
    try:
        is_url = bool(table.source) and check_source(table.source, "")
    except BadInput as error:
        raise source.fault((at, "source"), error.what) from None
    if "\0" in table.source + table.ca_file:
        raise source.fault((at,), "a path holds a NUL character")
    for key in ("source", "public_keys"):
        if table.enabled and not getattr(table, key):
            raise source.fault((at, "enabled"), f"needs {key}: an update comes from somewhere, and is signed")
    paths = {"ca_file": table.ca_file, **({} if is_url else {"source": table.source})}
    absolute = {key: str(base / Path(text).expanduser()) for key, text in paths.items() if text}
    return msgspec.structs.replace(table, **absolute)
