"""Batches by HTTP POST, signed as Standard Webhooks has it: a consumer has a library for it in most languages.

Headers ``webhook-id`` (the batch's id, the same when it is sent again), ``webhook-timestamp`` (Unix seconds of this
try) and ``webhook-signature``: for each secret ``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import email.utils
import hashlib
import hmac
import ssl
import time
from collections.abc import Sequence
from typing import Final

import httpx

from mta.model.errors import BadInput
from mta.settings.streams import BodyFormat, WebhookSettings
from mta.stream.sink import Away, Batch, Refused, one_line, read_secret

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - and what comes behind it is the secret
SECRETS_MAX: Final = 3  # an old and a new one while they are exchanged
SECRET_OCTETS_MIN, SECRET_OCTETS_MAX = 24, 64
RETRY_AFTER_S_MAX: Final = 3_600.0
_ANSWER_BYTES_MAX: Final = 64 * 1024  # a longer one is not read to its end, and costs the connection
_ANSWER_S_MAX: Final = 5.0  # of the body of an answer whose status says that all is well
_SAID_CHARS: Final = 200
_LATER: Final = frozenset({408, 425, 429})
_TYPES: Final = {BodyFormat.JSON: "application/json", BodyFormat.NDJSON: "application/x-ndjson"}


def parse_secrets(text: str, where: str) -> list[bytes]:
    """One a line: ``whsec_`` and the base64 of 24 to 64 octets. Raises BadInput, which does not quote them."""
    form = f"expected {SECRET_PREFIX} and the base64 of {SECRET_OCTETS_MIN} to {SECRET_OCTETS_MAX} octets a line"
    lines = text.split()
    if not 0 < len(lines) <= SECRETS_MAX:
        raise BadInput(where, f"stream.secret_file: has {len(lines)} secrets; expected 1 to {SECRETS_MAX}")
    secrets = []
    for i, line in enumerate(lines, start=1):
        try:
            secret = base64.b64decode(line.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not line.startswith(SECRET_PREFIX) or not SECRET_OCTETS_MIN <= len(secret) <= SECRET_OCTETS_MAX:
            raise BadInput(where, f"stream.secret_file: secret {i} cannot be used; {form}")
        secrets.append(secret)
    return secrets


def signature(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``; one entry for each secret."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode() for secret in secrets
    )


def retry_after_s(value: str | None, now: datetime.datetime) -> float:
    """Of the header Retry-After (RFC 9110 §10.2.3), seconds or a date; 0 for what cannot be read; an hour at most."""
    if not value:
        return 0.0
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), RETRY_AFTER_S_MAX)
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    return min(max((at - now).total_seconds(), 0.0), RETRY_AFTER_S_MAX)


class WebhookSink:
    """Secrets are read for each batch, so an exchanged file holds at once. Raises BadInput at construction."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self._secrets()
        self._authorization()
        try:
            trust = ssl.create_default_context(cafile=settings.ca_file or None)
        except OSError as error:  # ssl.SSLError, of what is no certificate, is one
            why = error.strerror or str(error)
            raise BadInput(settings.where, f"stream.ca_file: {settings.ca_file} cannot be used: {why}") from None
        self._client = httpx.AsyncClient(
            verify=trust,
            follow_redirects=False,
            timeout=settings.timeout_s,
            headers={"User-Agent": "mta", "Accept-Encoding": "identity", "Content-Type": _TYPES[settings.format]},
        )

    def _secrets(self) -> list[bytes]:
        where = self._settings.where
        return parse_secrets(read_secret(self._settings.secret_file, where, "secret_file"), where)

    def _authorization(self) -> dict[str, str]:
        path = self._settings.authorization_file
        if not path:
            return {}
        value = read_secret(path, self._settings.where, "authorization_file")
        if not value.isprintable():
            raise BadInput(self._settings.where, f"stream.authorization_file: {path} holds more than one line")
        return {"Authorization": value}

    async def send(self, batch: Batch) -> None:
        """Taken is what is answered with 2xx; 408, 425, 429, 5xx, redirects and silence come again."""
        try:
            headers, body = self._made(batch)
        except BadInput as error:
            raise Away(str(error)) from error
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                async with self._client.stream("POST", self._settings.url, content=body, headers=headers) as response:
                    said = await _said(response)
        except TimeoutError:
            raise Away(f"no whole answer within {self._settings.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise Away(one_line(error)) from error
        _judge(response, said)

    def _made(self, batch: Batch) -> tuple[dict[str, str], bytes]:
        if self._settings.format is BodyFormat.JSON:
            body = b"[" + b",".join(batch.lines) + b"]"
        else:
            body = b"\n".join(batch.lines) + b"\n"
        now = int(time.time())
        headers = {
            "webhook-id": batch.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(self._secrets(), batch.id, now, body),
            **self._authorization(),
        }
        return headers, body

    async def idle(self) -> None:
        """Nothing waits here."""

    async def test(self, batch: Batch) -> str:
        await self.send(batch)
        return "one event of the kind 'test' was taken"

    async def close(self) -> None:
        await self._client.aclose()


async def _said(response: httpx.Response) -> str:
    """The beginning of the body. What is wrong with it does not undo a status that was good."""
    body = bytearray()
    try:
        async with asyncio.timeout(_ANSWER_S_MAX if response.is_success else None):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > _ANSWER_BYTES_MAX:
                    break
    except (TimeoutError, httpx.HTTPError):
        if not response.is_success:
            raise
    return " ".join(bytes(body).decode("utf-8", "replace").split())[:_SAID_CHARS]


def _judge(response: httpx.Response, said: str) -> None:
    """Raises Away or Refused, unless the batch was taken."""
    status = response.status_code
    told = f"answered with status {status}" + (f": {said}" if said else "")
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        to = response.headers.get("location", "nowhere")[:_SAID_CHARS]
        raise Away(f"answered with status {status} and leads to {to}, where nothing is sent: mend the url")
    if status in _LATER or status >= 500:
        raise Away(told, retry_after_s(response.headers.get("retry-after"), datetime.datetime.now(datetime.UTC)))
    raise Refused(told)
