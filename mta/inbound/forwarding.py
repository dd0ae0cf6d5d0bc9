"""Mail that nobody can place, sent on to a person: with a null sender, marked, and only once it is taken removed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

import aiosmtplib
import msgspec
import structlog

from mta.inbound.spool import Spool, read_stored
from mta.settings.inbound import InboundSettings
from mta.telemetry.waits import event_or_timeout

LOOK_S: Final = 1.0
AGAIN_S: Final = 60.0
BATCH: Final = 50
MARK: Final = b"X-Mta-Forwarded"
_TIMEOUT_S: Final = 60.0
_HEAD_OCTETS: Final = 256 << 10
_MARKED: Final = re.compile(rb"^" + MARK + rb":", re.IGNORECASE | re.MULTILINE)
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
log = structlog.get_logger()


class Forwarder:
    """``run`` is its only task. What was taken and not removed yet is sent again after a death."""

    def __init__(self, settings: InboundSettings, spool: Spool) -> None:
        assert settings.forward_address is not None
        self._host, self._port = settings.forward_address
        self._to = settings.forward_to
        self._name = settings.name or None
        self._spool = spool

    async def run(self, stop_wanted: asyncio.Event) -> None:
        """Until told to stop."""
        is_away = False
        while not stop_wanted.is_set():
            paths = await asyncio.to_thread(self._waiting)
            try:
                if paths:
                    await self._send(paths)
                is_away = False
            except (aiosmtplib.SMTPException, OSError) as error:
                if not is_away:
                    log.warning(
                        "mail cannot be forwarded now", host=self._host, error=f"{type(error).__name__}: {error}"
                    )
                is_away = True
            await event_or_timeout(stop_wanted, AGAIN_S if is_away else LOOK_S)

    def _waiting(self) -> list[Path]:
        return sorted(self._spool.forward.iterdir())[:BATCH]

    async def _send(self, paths: list[Path]) -> None:
        async with aiosmtplib.SMTP(
            hostname=self._host, port=self._port, local_hostname=self._name, timeout=_TIMEOUT_S, use_tls=False
        ) as client:
            for path in paths:
                mail = await asyncio.to_thread(_prepared, path)
                if mail is None:
                    self._spool.set_aside(path, "loop")
                    continue
                try:
                    await client.sendmail("", [self._to], mail)
                except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPResponseException) as error:
                    code = (
                        error.recipients[0].code if isinstance(error, aiosmtplib.SMTPRecipientsRefused) else error.code
                    )
                    if not 500 <= code < 600:
                        raise
                    log.warning("a mail that was forwarded is refused", file=path.name, error=str(error)[:300])
                    self._spool.set_aside(path, "refused")
                    await client.rset()
                else:
                    await asyncio.to_thread(path.unlink, missing_ok=True)


def _prepared(path: Path) -> bytes | None:
    """None: it went through here before, or is nothing that we wrote. Lone CR and LF become line ends, so that no
    other server sees the end of the mail where we saw none."""
    try:
        ((stored, mail),) = read_stored(path)
    except (msgspec.DecodeError, OSError, ValueError):
        return None
    if _MARKED.search(mail[:_HEAD_OCTETS]) is not None:
        return None
    why = path.name.rpartition(".")[2]
    about = f"{why}; to {', '.join(stored.recipients)[:500]}".encode("ascii", "replace").decode("ascii")
    mark = MARK + b": " + re.sub(r"[^\x20-\x7e]", "?", about).encode("ascii")
    return mark + b"\r\n" + _LINE_END.sub(b"\r\n", mail)
