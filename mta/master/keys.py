"""The node's signing keys: read from their files here and nowhere else, and handed to the children.

What works goes on: a sender domain whose keys were all read keeps them until all of its keys can be read again,
whatever becomes of the files meanwhile. One that never had them is held. Nothing here makes a message go unsigned, but
for an operator who takes an entry out of the settings.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from mta.message.keyring import KeyRing, RingEntry
from mta.model.errors import BadInput
from mta.settings.dkim import DkimEntry, KeyFile, SigningSettings, read_key, stamp_of
from mta.wire import SigningKey, SigningKeys

log = structlog.get_logger()

_Keys = list[tuple[DkimEntry, KeyFile | None]]  # None: it cannot be used


class KeyStore:
    """Owned by the master's loop. ``ring`` and ``frame`` say the same, to the master and to the children."""

    def __init__(self, settings: SigningSettings) -> None:
        """Reads the files. One that cannot be used is logged, and holds its sender domain."""
        self.settings = settings
        self._in_use: dict[str, _Keys] = {}  # by sender domain
        self._files: dict[Path, KeyFile] = {}
        self._faults: dict[DkimEntry, str] = {}  # what was logged and still holds
        self.ring = KeyRing()
        self.frame = SigningKeys(False, [])
        self.reload(settings)

    def check(self) -> bool:
        """Looks whether a key file was exchanged. True: something has changed."""
        return self.reload(self.settings)

    def reload(self, settings: SigningSettings) -> bool:
        """Takes over new settings, and reads the files that were exchanged. True: something has changed."""
        wanted: dict[str, list[DkimEntry]] = {}
        for entry in settings.entries:
            wanted.setdefault(entry.domain, []).append(entry)
        files: dict[Path, KeyFile] = {}
        faults: dict[DkimEntry, str] = {}
        in_use: dict[str, _Keys] = {}
        for domain, entries in wanted.items():
            found: _Keys = [(entry, self._read(entry, files, faults)) for entry in entries]
            before = self._in_use.get(domain, [])
            is_kept = not _is_whole(found) and bool(before) and _is_whole(before)
            in_use[domain] = before if is_kept else found
            for entry, _ in found:
                error = faults.get(entry)
                if error is not None and error != self._faults.get(entry):
                    log.error(
                        "signing key cannot be used", error=error, sender_domain=domain, earlier_keys_hold=is_kept
                    )
        self.settings, self._in_use, self._files, self._faults = settings, in_use, files, faults
        return self._publish()

    def _read(self, entry: DkimEntry, files: dict[Path, KeyFile], faults: dict[DkimEntry, str]) -> KeyFile | None:
        file = files.get(entry.key) or self._files.get(entry.key)
        if file is None or file.stamp != stamp_of(entry.key):
            try:
                file = read_key(entry)
            except BadInput as error:
                faults[entry] = str(error)
                return None
        files[entry.key] = file
        return file

    def _publish(self) -> bool:
        keys = [pair for domain_keys in self._in_use.values() for pair in domain_keys]
        required = self.settings.required
        frame = SigningKeys(
            required,
            [
                SigningKey(entry.domain, entry.subdomains, entry.d, entry.selector, file.pem if file else b"")
                for entry, file in keys
            ],
        )
        if frame == self.frame:
            return False
        self.frame = frame
        self.ring = KeyRing(
            [RingEntry(entry.domain, entry.subdomains, file.signer(entry) if file else None) for entry, file in keys],
            is_required=required,
        )
        held = [domain for domain, domain_keys in self._in_use.items() if not _is_whole(domain_keys)]
        log.info("signing keys changed", keys=len(keys), sender_domains=len(self._in_use), held=held)
        return True


def _is_whole(keys: _Keys) -> bool:
    return all(file is not None for _, file in keys)
