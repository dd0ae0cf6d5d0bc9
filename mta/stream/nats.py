"""Events as messages of a NATS JetStream, by nats-py: the stream has stored a batch before it counts as taken.

The subject is that of the settings, a dot, and the kind. Each message has its event's id as ``Nats-Msg-Id``, so within
the stream's duplicate window the server drops repeats itself.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from mta.model.errors import BadInput
from mta.settings.streams import NatsSettings
from mta.stream.sink import Away, Batch, Refused, extra, one_line, read_secret

_TOO_LARGE = 10054  # the server's error code: message size exceeds maximum allowed


class NatsSink:
    """A connection is made anew after each failure. Raises BadInput at construction."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._nats, self._errors, self._js_errors = extra(
            ("nats", "nats.errors", "nats.js.errors"), "nats", settings.where
        )
        self._options()
        self._connection: Any = None
        self._stream: Any = None
        self._fault: asyncio.Future[Exception] | None = None

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {}
        if settings.ca_file or any(server.startswith("tls:") for server in settings.servers):
            try:
                options["tls"] = ssl.create_default_context(cafile=settings.ca_file or None)
            except OSError as error:
                raise BadInput(settings.where, f"stream.ca_file: {settings.ca_file} cannot be used: {error}") from None
        if settings.credentials_file:
            read_secret(settings.credentials_file, settings.where, "credentials_file")
            options["user_credentials"] = settings.credentials_file
        return options

    async def send(self, batch: Batch) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                stream = await self._connected()
                sent = [
                    await stream.publish_async(
                        f"{self._settings.subject}.{event.kind}", line, headers={"Nats-Msg-Id": event.id}
                    )
                    for event, line in zip(batch.events, batch.lines, strict=True)
                ]
                await self._acknowledged(sent)
        except self._errors.MaxPayloadError as error:
            await self.close()
            raise Refused(one_line(error)) from error
        except (self._errors.Error, OSError, TimeoutError, BadInput) as error:
            await self.close()
            if isinstance(error, self._js_errors.APIError) and error.err_code == _TOO_LARGE:
                raise Refused(one_line(error)) from error
            if isinstance(error, self._js_errors.NoStreamResponseError):
                raise Away(f"no JetStream takes the subject {self._settings.subject}.>") from error
            raise Away(one_line(error)) from error

    async def _acknowledged(self, sent: list[asyncio.Future[Any]]) -> None:
        """The library tells of some refusals by its callback only, and then leaves the message's future open."""
        assert self._fault is not None, "it is made with the connection"
        all_sent: asyncio.Future[Any] = asyncio.gather(*sent, return_exceptions=True)
        all_sent.add_done_callback(lambda ended: ended.exception())  # looked at, even where nobody waits any more
        first: set[asyncio.Future[Any]] = {all_sent, self._fault}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if self._fault.done():
                raise self._fault.result()
            for outcome in all_sent.result():
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            all_sent.cancel()

    async def _heard(self, error: Exception) -> None:
        if self._fault is not None and not self._fault.done():
            self._fault.set_result(error)

    async def _connected(self) -> Any:
        if self._connection is None:
            settings = self._settings
            self._fault = asyncio.get_running_loop().create_future()
            self._connection = await self._nats.connect(
                list(settings.servers),
                name=f"mta {settings.name}",
                allow_reconnect=False,
                connect_timeout=max(1, int(settings.timeout_s)),
                error_cb=self._heard,
                **self._options(),
            )
            self._stream = self._connection.jetstream(timeout=settings.timeout_s)
        return self._stream

    async def idle(self) -> None:
        """The library answers the server's pings itself."""

    async def test(self, batch: Batch) -> str:
        await self.send(batch)
        return f"one event of the kind 'test' is stored under {self._settings.subject}.test"

    async def close(self) -> None:
        connection, self._connection, self._stream = self._connection, None, None
        if connection is not None:
            try:
                async with asyncio.timeout(10):
                    await connection.close()
            except (self._errors.Error, OSError, TimeoutError):
                return  # what it still held comes again
