"""A bundle's octets from where the settings say: a file, or HTTPS from a server that proves who it is."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

import httpx

from mta.bundle.form import BUNDLE_BYTES_MAX
from mta.model.errors import BadInput
from mta.settings.deliverability import check_source
from mta.settings.toml_source import read_whole

FETCH_S_MAX: Final = 60.0  # with redirects
REDIRECTS_MAX: Final = 5
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "mta"}


class FetchFailed(Exception):  # noqa: N818 - why, in the words of the history
    """The bundle was not to be had; it may be later."""


async def fetch(source: str, *, ca_file: str = "") -> bytes:
    """The octets of a bundle, at most ``BUNDLE_BYTES_MAX``, within ``FETCH_S_MAX``.

    ``ca_file``: whom to trust; empty: the system. Proxies of the environment are used. Raises FetchFailed, or BadInput
    for a source that cannot be one.
    """
    if not check_source(source, "deliverability.source"):
        return await asyncio.to_thread(_read, Path(source))
    try:
        async with asyncio.timeout(FETCH_S_MAX):
            return await _get(source, _trust(ca_file))
    except TimeoutError:
        raise FetchFailed(f"{source}: no whole answer within {FETCH_S_MAX:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        raise FetchFailed(f"{source}: {type(error).__name__}: {error}"[:500]) from error


def _read(path: Path) -> bytes:
    try:
        return read_whole(path, BUNDLE_BYTES_MAX)[0]
    except BadInput as error:
        raise FetchFailed(str(error)) from error


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # ssl.SSLError, of what is no certificate, is one
        raise BadInput("deliverability.ca_file", f"{ca_file} cannot be used: {error.strerror or error}") from None


async def _get(source: str, trust: ssl.SSLContext) -> bytes:
    async with httpx.AsyncClient(verify=trust, follow_redirects=False, timeout=FETCH_S_MAX, headers=_HEADERS) as client:
        url = httpx.URL(source)
        for _ in range(REDIRECTS_MAX + 1):
            async with client.stream("GET", url) as response:
                if not response.has_redirect_location:
                    return await _body(response)
                assert response.next_request is not None, "it has a location"
                url = response.next_request.url
            if url.scheme != "https":
                raise FetchFailed(f"{source}: leads on to {url}, which is not https")
    raise FetchFailed(f"{source}: more than {REDIRECTS_MAX} redirects")


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != httpx.codes.OK:
        raise FetchFailed(f"{response.url}: answered with status {response.status_code}")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > BUNDLE_BYTES_MAX:
            raise FetchFailed(f"{response.url}: is larger than {BUNDLE_BYTES_MAX:,} bytes")
    return bytes(body)
