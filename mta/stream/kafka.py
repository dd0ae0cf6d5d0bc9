"""Events as records of a Kafka topic, by aiokafka: all in-sync replicas have a batch before it counts as taken."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from mta.model.errors import BadInput
from mta.model.event import Event
from mta.settings.streams import KafkaKey, KafkaSettings
from mta.stream.sink import Away, Batch, Refused, extra, one_line, read_secret


class KafkaSink:
    """A producer is made anew after each failure. Raises BadInput at construction."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._kafka, self._errors = extra(("aiokafka", "aiokafka.errors"), "kafka", settings.where)
        self._options()
        self._producer: Any = None

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        protocol = ("SASL_" if settings.user else "") + ("SSL" if settings.tls else "PLAINTEXT")
        options: dict[str, Any] = {"security_protocol": protocol}
        if settings.tls:
            try:
                options["ssl_context"] = ssl.create_default_context(cafile=settings.ca_file or None)
            except OSError as error:
                raise BadInput(settings.where, f"stream.ca_file: {settings.ca_file} cannot be used: {error}") from None
        if settings.user:
            options["sasl_mechanism"] = settings.mechanism
            options["sasl_plain_username"] = settings.user
            options["sasl_plain_password"] = read_secret(settings.password_file, settings.where, "password_file")
        return options

    async def send(self, batch: Batch) -> None:
        """Order is kept by the one connection to a partition's leader and the producer's own sequence numbers."""
        try:
            # The library bounds its own tries by request_timeout_ms; this is for what it forgets to bound.
            async with asyncio.timeout(2 * self._settings.timeout_s):
                producer = await self._started()
                sent = [
                    await producer.send(
                        self._settings.topic,
                        line,
                        key=self._key(event),
                        headers=[("id", event.id.encode()), ("kind", event.kind.encode())],
                    )
                    for event, line in zip(batch.events, batch.lines, strict=True)
                ]
                outcomes = await asyncio.gather(*sent, return_exceptions=True)
                for outcome in outcomes:
                    if isinstance(outcome, BaseException):
                        raise outcome
        except self._errors.MessageSizeTooLargeError as error:
            await self.close()
            raise Refused(one_line(error)) from error
        except (self._errors.KafkaError, OSError, TimeoutError, BadInput) as error:
            await self.close()
            raise Away(one_line(error)) from error

    def _key(self, event: Event) -> bytes:
        return str(event.delivery if self._settings.key is KafkaKey.DELIVERY else event.number).encode()

    async def _started(self) -> Any:
        if self._producer is None:
            settings = self._settings
            self._producer = self._kafka.AIOKafkaProducer(
                bootstrap_servers=list(settings.servers),
                client_id=f"mta-{settings.name}",
                acks="all",
                enable_idempotence=True,
                request_timeout_ms=int(settings.timeout_s * 1_000),
                **self._options(),
            )
            await self._producer.start()
        return self._producer

    async def idle(self) -> None:
        """The library keeps its connections itself."""

    async def test(self, batch: Batch) -> str:
        await self.send(batch)
        return f"one event of the kind 'test' is in the topic {self._settings.topic}"

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                async with asyncio.timeout(10):
                    await producer.stop()
            except (self._errors.KafkaError, OSError, TimeoutError):
                return  # what it still held comes again
