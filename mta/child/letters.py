"""Recipients in a child: a batch as it is worked off, and the one letter made from a recipient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NoReturn, Protocol

import msgspec

from mta.message import Rendered, Renderer, RenderError
from mta.model.address import parse_mailbox
from mta.model.errors import BadInput
from mta.outcomes.journal import Segment
from mta.smtp.envelope import Envelope, Probe
from mta.wire import Batch, BatchPart, Open

Row = tuple[str, str | None, list[str] | None]
_rows_decoder: Final = msgspec.json.Decoder(list[tuple[str, str | None, list[str]]])
_raw_rows_decoder: Final = msgspec.json.Decoder(list[tuple[str, str | None, msgspec.Raw]])
_values_decoder: Final = msgspec.json.Decoder(list[str])


class CarriedBy(Protocol):
    """What a letter and its outcome need to know of the session that carries it."""

    order: Open
    columns: str  # of the log, the same for all of the session


class Letter:
    """One recipient under way: from the offer to its verdict."""

    __slots__ = (
        "address",
        "batch",
        "carrier",
        "envelope",
        "number",
        "part",
        "position",
        "reference",
        "segment",
        "segments",
    )

    def __init__(
        self,
        carrier: CarriedBy,
        batch: Batch,
        part: BatchPart,
        position: int,
        number: int,
        address: str,
        reference: str | None,
    ) -> None:
        self.carrier = carrier
        self.batch = batch
        self.part = part
        self.position = position
        self.number = number
        self.address = address
        self.reference = reference
        self.segments: list[bytes] | None = None
        self.envelope: Envelope | None = None
        self.segment: Segment | None = None  # of the journal, where its intent stands


class NoRenderer:
    """Stands in for a renderer that cannot be made; each recipient it is asked for fails with the reason."""

    def __init__(self, error: RenderError | BadInput) -> None:
        self._error = error

    def render(
        self, address: str, reference: str | None, values: Sequence[str], number: int, date_unix_s: int
    ) -> NoReturn:
        raise self._error


def _rows(packed: bytes) -> Sequence[Row]:
    """The rows of a batch; values that are no list of texts (nobody appends such, but SQL can) are None."""
    try:
        return _rows_decoder.decode(packed)
    except msgspec.DecodeError:
        return [
            (address, reference, _values(values)) for address, reference, values in _raw_rows_decoder.decode(packed)
        ]


def _values(raw: msgspec.Raw) -> list[str] | None:
    try:
        return _values_decoder.decode(raw)
    except msgspec.DecodeError:
        return None


class BatchCursor:
    """A batch and how far it is worked off; letters are made one at a time, when they are about to be sent."""

    __slots__ = ("_at", "_end", "_envelope", "_rows", "_walk", "batch", "is_simulated", "renderer")

    def __init__(self, batch: Batch, renderer: Renderer | NoRenderer, *, is_simulated: bool = False) -> None:
        self.batch = batch
        self.renderer = renderer
        self.is_simulated = is_simulated
        self._envelope = Probe if is_simulated else Envelope
        self._rows = _rows(batch.rows)
        self._at = 0
        self._end = len(self._rows)
        self._walk = self._recipients()
        assert self._end == sum(len(part.positions) for part in batch.parts), "rows and positions are parallel"

    def __len__(self) -> int:
        return self._end - self._at

    def _recipients(self) -> Iterator[tuple[BatchPart, int, int]]:
        for part in self.batch.parts:
            for position, number in zip(part.positions, part.numbers, strict=True):
                yield part, position, number

    def next_letter(self, carrier: CarriedBy, token: int) -> Letter:
        """The next recipient's letter, rendered; its envelope bears ``token``.

        Raises LetterFailed when it cannot be made: that recipient has failed, the batch goes on. An exception of
        our own code is no fault of the recipient, and ends nobody's session: ``LetterFailed.is_fault``.
        """
        part, position, number = next(self._walk)
        address, reference, values = self._rows[self._at]
        self._at += 1
        letter = Letter(carrier, self.batch, part, position, number, address, reference)
        try:
            if values is None:
                raise BadInput("values", "are not a list of texts")
            try:
                mailbox = address
                rendered: Rendered = self.renderer.render(mailbox, reference, values, number, part.dated_unix_s)
            except RenderError as refused:
                if refused.field != "address":
                    raise
                # Addresses were brought into their canonical form when they were appended; those that an
                # application inserted by SQL may need it now.
                mailbox = parse_mailbox(address, "address").text
                rendered = self.renderer.render(mailbox, reference, values, number, part.dated_unix_s)
        except Exception as error:
            is_fault = not isinstance(error, RenderError | BadInput)
            raise LetterFailed(letter, str(error) or type(error).__name__, is_fault=is_fault) from error
        letter.segments = rendered.segments
        letter.envelope = self._envelope(
            token,
            rendered.return_path,
            (mailbox.encode(),),
            rendered.size_bytes,
            needs_smtputf8=rendered.needs_smtputf8,
        )
        return letter

    def rest(self) -> Iterator[tuple[BatchPart, int]]:
        """Recipients not begun, for giving them back; the cursor is at its end afterwards."""
        self._at = self._end
        for part, position, _ in self._walk:
            yield part, position


class LetterFailed(Exception):  # noqa: N818 - reads as what happened
    """A recipient whose message cannot be made."""

    def __init__(self, letter: Letter, why: str, *, is_fault: bool = False) -> None:
        super().__init__(why)
        self.letter = letter
        self.why = why
        self.is_fault = is_fault  # of our own code; another try, or another version, may do better
