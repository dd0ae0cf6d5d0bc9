"""A policy over HTTPS (RFC 8461 §3.3), from a server that must prove that it is ``mta-sts.DOMAIN``."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, Protocol

import httpx

from mta.dns.mx import HostAddresses
from mta.model.sts import POLICY_BYTES_MAX, BadPolicy, Policy, parse_policy

FETCH_S_MAX: Final = 30.0  # with its connection; RFC 8461 §3.3 suggests a minute, in which recipients wait
FETCHES_MAX: Final = 50  # at once
_PATH: Final = "/.well-known/mta-sts.txt"
_ADDRESSES_MAX: Final = 3  # that are tried
_HEADERS: Final = {"Accept": "text/plain", "Accept-Encoding": "identity", "User-Agent": "mta"}


class FetchFailed(Exception):  # noqa: N818 - why, in the words of the log
    """No policy could be had."""


class Addresses(Protocol):
    """Who knows the addresses of a host that may be dialled; `mta.dns.resolver.Resolver` does."""

    async def addresses(self, name: str) -> HostAddresses: ...


class Fetcher:
    """Fetches policies, few at a time. ``ca_file``: whom to trust; empty: the system. ``port``: 443, but in tests.

    No redirects, no cache, no proxy (RFC 8461 §3.3). Raises OSError at construction when the file cannot be used.
    """

    def __init__(self, addresses: Addresses, *, ca_file: str = "", port: int = 443) -> None:
        self._addresses = addresses
        self._port = port
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.hostname_checks_common_name = False  # RFC 8461 §3.3: a DNS-ID
        if ca_file:
            context.load_verify_locations(ca_file)
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        self._client = httpx.AsyncClient(
            verify=context,
            trust_env=False,
            follow_redirects=False,
            timeout=FETCH_S_MAX,
            # A connection serves one policy; a year may pass until the next.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self._slots = asyncio.Semaphore(FETCHES_MAX)

    async def close(self) -> None:
        await self._client.aclose()

    async def fetch(self, domain: str) -> Policy:
        """The policy of a domain (A-labels). Raises FetchFailed, in any case within ``FETCH_S_MAX``."""
        try:
            async with asyncio.timeout(FETCH_S_MAX), self._slots:
                return await self._fetch(f"mta-sts.{domain}")
        except TimeoutError as error:
            raise FetchFailed(f"mta-sts.{domain} did not answer in {FETCH_S_MAX:.0f} s") from error
        except BadPolicy as error:
            raise FetchFailed(str(error)) from error

    async def _fetch(self, host: str) -> Policy:
        found = await self._addresses.addresses(host)
        if not found.usable:
            raise FetchFailed(found.text)
        why = ""
        for address in found.usable[:_ADDRESSES_MAX]:
            try:
                return parse_policy(await self._get(host, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # the next address may be better
                why = why or f"{host} [{address}]: {_text(error)}"
            except (httpx.HTTPError, httpx.StreamError, OSError, ValueError) as error:
                raise FetchFailed(f"{host} [{address}]: {_text(error)}") from error
        raise FetchFailed(why)

    async def _get(self, host: str, address: str) -> bytes:
        """The body of the one answer that is good. The address is dialled as given; the certificate is for the name."""
        literal = f"[{address}]" if ":" in address else address
        async with self._client.stream(
            "GET",
            f"https://{literal}:{self._port}{_PATH}",
            headers={**_HEADERS, "Host": host},
            extensions={"sni_hostname": host},
        ) as response:
            if response.status_code != httpx.codes.OK:
                raise FetchFailed(f"{host} answered with status {response.status_code}")
            kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind != "text/plain":  # RFC 8461 §3.2: else whoever may put files there could make policies
                raise FetchFailed(f"{host} answered with {kind[:60] or 'no media type'!a}, not text/plain")
            body = b""
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > POLICY_BYTES_MAX:
                    raise BadPolicy(f"the policy is larger than {POLICY_BYTES_MAX:,} bytes")
            return body


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
