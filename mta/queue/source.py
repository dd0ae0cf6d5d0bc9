"""Recipients from files and pipes: CSV and NDJSON, read as a stream, cut into parts with stable keys.

CSV: UTF-8 (a byte order mark is tolerated), first line the header: a column ``address`` or ``email``, optionally
``reference``; every other column is a merge field. NDJSON: one object a line with the same names, the first line's
names being those of all. A bad row is reported as ``file:line: column: what``; rows beside it are kept or the whole
part is refused, as asked.

The key of a part is ``name:000001`` and so on, counted over rows as they stand in the source, good and bad: the same
file with the same part size gives the same parts again, so an append cut short is simply run again.
"""

from __future__ import annotations

import csv
import enum
import io
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol, TypeAlias

import msgspec

from mta.model.errors import BadInput
from mta.model.limits import AUTO_PART_RECIPIENTS_MAX, PART_RECIPIENTS_MAX, automatic_part_recipients
from mta.queue.part import PackedPart, Row, check_fields, check_rows, pack_checked

LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # a file without line ends must not fill the memory
_ADDRESS_COLUMNS: Final = ("address", "email")
_REFERENCE_COLUMN: Final = "reference"
_BLOCK_BYTES: Final = 1 << 20


class SourceFormat(enum.StrEnum):
    CSV = "csv"
    NDJSON = "ndjson"


class OnBadRow(enum.StrEnum):
    SKIP = "skip"  # leave it out, keep the rows beside it
    REFUSE = "refuse"  # append nothing of its part


class BadRow(msgspec.Struct, frozen=True):
    """A row that was not appended because of what stands in it."""

    where: str  # file:line
    column: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.column}: {self.what}"


class SourcePart(msgspec.Struct, frozen=True):
    """One part's worth of a source. ``part`` is None when no row is left of it, or it is refused."""

    key: str
    part: PackedPart | None
    bad_rows: list[BadRow]
    rows_read: int


Line: TypeAlias = tuple[int, Row | BadRow]  # its number in the file, from 1


class RowReader(Protocol):
    """Rows of one source, once."""

    name: str
    fields: tuple[str, ...]

    def __iter__(self) -> Iterator[Line]: ...


def open_rows(stream: BinaryIO, name: str, form: SourceFormat, *, delimiter: str = ",") -> RowReader:
    """A reader of ``stream``; ``name`` stands for it in messages. Raises BadInput for a header that cannot be used."""
    if form is SourceFormat.CSV:
        if len(delimiter) != 1 or delimiter in '\r\n"':
            raise BadInput("delimiter", f"{delimiter!a} is not one character that can separate columns")
        return CsvRows(stream, name, delimiter)
    return NdjsonRows(stream, name)


def read_parts(
    rows: RowReader, key_prefix: str, part_recipients: int, on_bad_row: OnBadRow = OnBadRow.SKIP
) -> Iterator[SourcePart]:
    """Cut into parts of ``part_recipients`` rows (1 to 10,000), checked and packed; holds one part in memory."""
    if not 1 <= part_recipients <= PART_RECIPIENTS_MAX:
        raise BadInput("part_recipients", f"is {part_recipients}, allowed are 1 to {PART_RECIPIENTS_MAX}")
    number = 0
    pending: list[Line] = []
    for line in rows:
        pending.append(line)
        if len(pending) == part_recipients:
            number += 1
            yield _make_part(f"{key_prefix}:{number:06}", rows, pending, on_bad_row)
            pending = []
    if pending:
        yield _make_part(f"{key_prefix}:{number + 1:06}", rows, pending, on_bad_row)


def part_recipients_for(asked: int, total: int | None) -> int:
    """The part size: what was asked; or, for 0, by the total where it is known."""
    if asked:
        return asked
    return AUTO_PART_RECIPIENTS_MAX if total is None else automatic_part_recipients(total)


def count_lines(path: Path) -> int:
    """Line ends of a file, by blocks: some 2 GB a second, so worth it before a part size is chosen."""
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(_BLOCK_BYTES), b""))


class CsvRows:
    """RFC 4180, with a header line."""

    def __init__(self, stream: BinaryIO, name: str, delimiter: str = ",") -> None:
        # A byte that is not UTF-8 becomes a lone surrogate, which the row's check refuses by line and column.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.name = name
        self._reader = csv.reader(_bounded_lines(text, name), delimiter=delimiter, strict=True)
        header = self._header(delimiter)
        self._width = len(header)
        self._address, self._reference, values = _columns(header, f"{name}:1")
        self.fields = tuple(header[i] for i in values)
        self._values: Callable[[Sequence[str]], Sequence[str]] = _getter(values)

    def _header(self, delimiter: str) -> list[str]:
        try:
            header = [column.strip() for column in next(self._reader, [])]
        except csv.Error as error:
            raise BadInput(f"{self.name}:1", f"the header line cannot be read: {error}") from error
        if not header:
            raise BadInput(f"{self.name}:1", "has no header line")
        if len(header) == 1 and delimiter == "," and ";" in header[0]:
            raise BadInput(f"{self.name}:1", "its columns are separated by semicolons: say so with the delimiter ;")
        return header

    def __iter__(self) -> Iterator[Line]:
        while True:
            line = self._reader.line_num + 1
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, self._unreadable(line, error)
                continue
            if not cells:
                continue  # an empty line
            if len(cells) != self._width:
                what = f"has {len(cells)} columns, the header has {self._width}"
                yield line, BadRow(f"{self.name}:{line}", "row", what)
                continue
            reference = (cells[self._reference] or None) if self._reference is not None else None
            yield line, (cells[self._address].strip(), reference, list(self._values(cells)))

    def _unreadable(self, line: int, error: csv.Error) -> BadRow:
        last = self._reader.line_num
        # A quote that is not closed swallows lines: they are lost to us, so their range is named.
        swallowed = f"; lines {line} to {last} were taken for one row" if last > line else ""
        return BadRow(f"{self.name}:{line}", "row", f"{error}{swallowed}")


class NdjsonRows:
    """One JSON object a line. Values are texts; whole numbers are taken as written, null as an empty text."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self._lines = _numbered_lines(stream, name)
        self._decoder = msgspec.json.Decoder(dict[str, str | int | float | bool | None])
        self._first = next(self._lines, None)
        self.fields: tuple[str, ...] = ()
        if self._first is None:
            return
        line, text = self._first
        try:
            names = list(self._decoder.decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{name}:{line}", f"the first line names the fields, and cannot be read: {error}") from error
        address, reference, values = _columns(names, f"{name}:{line}")
        self.fields = tuple(names[i] for i in values)
        self._address = names[address]
        self._known = {self._address, *self.fields, _REFERENCE_COLUMN}
        self._reference = _REFERENCE_COLUMN if reference is None else names[reference]
        self._known.add(self._reference)

    def __iter__(self) -> Iterator[Line]:
        if self._first is None:
            return
        yield self._row(*self._first)
        for line, text in self._lines:
            yield self._row(line, text)

    def _row(self, line: int, text: bytes) -> Line:
        where = f"{self.name}:{line}"
        try:
            found = self._decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return line, BadRow(where, "row", str(error))
        unknown = found.keys() - self._known
        if unknown:
            return line, BadRow(where, min(unknown), "is not a field of the first line")
        try:
            address = _as_text(found, self._address)
            reference = _as_text(found, self._reference) if self._reference in found else None
            return line, (address.strip(), reference or None, [_as_text(found, name) for name in self.fields])
        except BadInput as fault:
            return line, BadRow(where, fault.where, fault.what)


def _as_text(found: dict[str, str | int | float | bool | None], name: str) -> str:
    try:
        value = found[name]
    except KeyError:
        raise BadInput(name, "is missing") from None
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | float):
        raise BadInput(name, "must be a text or a whole number: how to write this one is yours to say")
    return str(value)


def _make_part(key: str, rows: RowReader, lines: Sequence[Line], on_bad_row: OnBadRow) -> SourcePart:
    numbers = [line for line, row in lines if not isinstance(row, BadRow)]
    readable = [row for _, row in lines if not isinstance(row, BadRow)]
    bad_lines = [(line, row) for line, row in lines if isinstance(row, BadRow)]
    good, faults = check_rows(rows.fields, readable)
    for fault in faults:
        line = numbers[fault.row]
        bad_lines.append((line, BadRow(f"{rows.name}:{line}", fault.column, fault.what)))
    bad = [row for _, row in sorted(bad_lines, key=operator.itemgetter(0))]
    is_refused = not good or (bool(bad) and on_bad_row is OnBadRow.REFUSE)
    return SourcePart(key, None if is_refused else pack_checked(key, rows.fields, good), bad, len(lines))


def _columns(names: Sequence[str], where: str) -> tuple[int, int | None, list[int]]:
    """Positions of the address, the reference and the merge fields; BadInput when they cannot be told."""
    lower = [name.lower() for name in names]
    addresses = [i for i, name in enumerate(lower) if name in _ADDRESS_COLUMNS]
    references = [i for i, name in enumerate(lower) if name == _REFERENCE_COLUMN]
    if len(addresses) != 1:
        raise BadInput(where, f"must have one column address or email, has {len(addresses)}: {', '.join(names)!a}")
    if len(references) > 1:
        raise BadInput(where, "has more than one column reference")
    values = [i for i in range(len(names)) if i not in addresses and i not in references]
    check_fields([names[i] for i in values], where)
    return addresses[0], references[0] if references else None, values


def _getter(positions: Sequence[int]) -> Callable[[Sequence[str]], Sequence[str]]:
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return lambda cells: [cells[i] for i in positions]


def _bounded_lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: text.readline(LINE_BYTES_MAX), ""), start=1):
        if len(line) >= LINE_BYTES_MAX:
            raise BadInput(f"{name}:{number}", f"the line is longer than {LINE_BYTES_MAX} characters")
        yield line


def _numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES_MAX), b""), start=1):
        if len(line) >= LINE_BYTES_MAX:
            raise BadInput(f"{name}:{number}", f"the line is longer than {LINE_BYTES_MAX} bytes")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.strip()
        if line:
            yield number, line
