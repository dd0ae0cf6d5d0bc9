"""What a stream asks of where it leads to."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import asyncpg
import msgspec

from mta.model.errors import BadInput
from mta.model.event import Event, make_event
from mta.queue.streams import Place, Slice, place_of
from mta.settings.toml_source import only_owner_and_group, read_whole

SECRET_FILE_BYTES_MAX: Final = 8 * 1024
encoded = msgspec.json.Encoder().encode  # an event as one line of JSON


class Away(Exception):  # noqa: N818 - why, in the words that an operator reads
    """The sink does not take anything now; it may later. ``after_s``: not before, as it says itself."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Refused(Exception):  # noqa: N818
    """The sink will not take this batch, however often it is asked."""


class Batch(NamedTuple):
    """``lines``: each event as JSON. ``id`` is made of the events' ids. ``upto``: what is told once it is taken."""

    id: str
    events: list[Event]
    lines: list[bytes]
    upto: Place


class Sink(Protocol):
    """One at a time calls it. Made without I/O but for the files that its settings name, which raise BadInput."""

    async def send(self, batch: Batch) -> None:
        """Returns when all of it is safe at the other end. Raises Away or Refused; part of it may be there then."""

    async def idle(self) -> None:
        """There is nothing to send; called about once a second. Raises Away."""

    async def test(self, batch: Batch) -> str:
        """Sends one made-up event, or tries what comes nearest to it; says what was done. Raises Away or Refused."""

    async def close(self) -> None:
        """Gives connections and files back."""


def make_batch(events: list[Event], lines: list[bytes], upto: Place) -> Batch:
    digest = hashlib.sha256("\n".join(event.id for event in events).encode())
    return Batch(digest.hexdigest()[:32], events, lines, upto)


def batches(lines: Slice, names: dict[int, str], events_max: int, bytes_max: int) -> Iterator[Batch]:
    """The lines of a slice as batches within both bounds; an event that is larger than ``bytes_max`` goes alone."""
    events: list[Event] = []
    texts: list[bytes] = []
    size = 0
    last: Place | None = None
    for line in lines.lines:
        event = event_of(line, names)
        text = encoded(event)
        if events and last is not None and (len(events) >= events_max or size + len(text) + 1 > bytes_max):
            yield make_batch(events, texts, last)
            events, texts, size = [], [], 0
        events.append(event)
        texts.append(text)
        size += len(text) + 1
        last = place_of(line)
    if events:
        yield make_batch(events, texts, lines.upto)


def event_of(line: asyncpg.Record, names: dict[int, str]) -> Event:
    """``names``: of deliveries, as far as they are known."""
    return make_event(
        at=line["at"],
        delivery=line["delivery_id"],
        delivery_name=names.get(line["delivery_id"]),
        number=line["number"],
        attempt=line["attempt"],
        status=line["status"],
        reason=line["reason"],
        type=line["type"],
        category=line["category"],
        code=line["code"],
        enhanced=line["enhanced"],
        address=line["address"],
        reference=line["reference"],
        site=line["site"],
        mx_host=line["mx_host"],
        egress=line["egress"],
        reply=line["reply"],
        bytes=line["bytes"],
    )


def read_secret(path: str, where: str, key: str) -> str:
    """The text of a file that only its owner and group can read, without space around it. Raises BadInput."""
    try:
        content, _ = read_whole(Path(path), SECRET_FILE_BYTES_MAX, only_owner_and_group("a secret"))
        text = content.decode("ascii").strip()
    except BadInput as error:
        raise BadInput(where, f"stream.{key}: {error.where} {error.what}") from None
    except UnicodeDecodeError:
        raise BadInput(where, f"stream.{key}: {path} holds what is not ASCII") from None
    if not text:
        raise BadInput(where, f"stream.{key}: {path} is empty")
    return text


def extra(modules: Iterable[str], name: str, where: str) -> list[Any]:
    """Modules of a library that only some installations have. Raises BadInput with what to install."""
    try:
        return [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise BadInput(where, f"stream.sink: needs the extra {name!r}: install mta[{name}] ({error})") from None


def one_line(error: BaseException) -> str:
    """For the log and for `mta stream lag`: one line, bounded."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
