"""Recipients from files and pipes: CSV and NDJSON, read as a stream, cut into parts with stable keys.

CSV: UTF-8 (a byte order mark is tolerated) unless another encoding is named. The first line that is not empty is the
header (`mta.queue.csv_header`): a column for the address, optionally ``reference``; the others are merge fields.
NDJSON: one object a line with the same names, the first line's names being those of all. A bad row is reported as
``file:line: column: what``; rows beside it are kept or the whole part is refused, as asked.

The key of a part is ``name:000001`` and so on, counted over rows as they stand in the source, good and bad: the same
file with the same part size gives the same parts again, so an append cut short is simply run again.
"""

from __future__ import annotations

import codecs
import csv
import enum
import io
import itertools
import operator
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol, TypeAlias

import msgspec

from mta.model.errors import BadInput
from mta.model.limits import AUTO_PART_RECIPIENTS_MAX, PART_RECIPIENTS_MAX, automatic_part_recipients
from mta.queue.csv_header import REFERENCE_COLUMN, read_header
from mta.queue.part import PackedPart, Row, check_fields, check_rows, pack_checked

LINE_BYTES_MAX: Final = 4 * 1024 * 1024  # a file without line ends must not fill the memory
_ADDRESS_COLUMNS: Final = ("address", "email")
_BLOCK_BYTES: Final = 1 << 20
_DELIMITERS: Final = ",;\t|"  # that are looked for in the header, in this order
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # as spreadsheets write it
_WRITTEN: Final = {"\\t": "\t", "tab": "\t"}
_UNDECODED: Final = re.compile("[\udc80-\udcff]+")  # octets, as surrogateescape keeps them (PEP 383)


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
    notes: tuple[str, ...]  # what of the header was taken otherwise than it is written

    def __iter__(self) -> Iterator[Line]: ...


def open_rows(
    stream: BinaryIO,
    name: str,
    form: SourceFormat,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    wanted: Collection[str] = (),
) -> RowReader:
    """A reader of ``stream``; ``name`` stands for it in messages. Raises BadInput for a header that cannot be used.

    Of CSV: ``delimiter`` None is that of the header, ``encoding`` None is UTF-8; ``wanted`` are merge fields of the
    content.
    """
    if form is SourceFormat.CSV:
        return CsvRows(stream, name, _checked_delimiter(delimiter), _checked_encoding(encoding), wanted)
    if encoding is not None and codecs.lookup(_checked_encoding(encoding)).name not in ("utf-8", "utf-8-sig"):
        raise BadInput("encoding", f"{encoding!a} is for CSV: NDJSON is UTF-8 (RFC 8259 §8.1)")
    return NdjsonRows(stream, name)


def _checked_delimiter(delimiter: str | None) -> str | None:
    if delimiter is None:
        return None
    character = _WRITTEN.get(delimiter.lower(), delimiter)
    if len(character) != 1 or character in '\r\n"':
        raise BadInput("delimiter", f"{delimiter!a} is not one character that can separate columns")
    return character


def _checked_encoding(encoding: str | None) -> str:
    """The name of a codec; UTF-8 with a byte order mark or without one, unless another is named."""
    if encoding is None:
        return "utf-8-sig"
    try:
        known = codecs.lookup(encoding)
        "".encode(encoding)  # refuses codecs that do not make text
    except (LookupError, TypeError, ValueError):
        what = f"{encoding!a} is not known; such are utf-8, iso-8859-1, windows-1252, utf-16"
        raise BadInput("encoding", what) from None
    return "utf-8-sig" if known.name == "utf-8" else known.name


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

    def __init__(
        self,
        stream: BinaryIO,
        name: str,
        delimiter: str | None = None,
        encoding: str = "utf-8-sig",
        wanted: Collection[str] = (),
    ) -> None:
        self.name = name
        self._undecoded = ""  # octets of the row being read that are not of the encoding
        self._encoding = encoding
        lines = self._lines(stream)
        first, delimiter = self._skip_to_header(lines, delimiter)
        delimiter = delimiter or _delimiter_of(first)
        self._reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        names = self._header()
        self._where = f"{name}:{self._skipped + 1}"
        self._width = len(names)
        header = read_header(names, self._where, wanted)
        self._address, self._reference = header.address, header.reference
        self.fields, self.notes = header.fields, header.notes
        self._values: Callable[[Sequence[str]], Sequence[str]] = _getter(header.values)

    def _lines(self, stream: BinaryIO) -> Iterator[str]:
        """Lines as text. An octet that is not of the encoding becomes a lone surrogate, and spoils its row only."""
        buffered = io.BufferedReader(stream)  # type: ignore[type-var]  # it asks for readinto, which all of them have
        begin = buffered.peek(4)[:4]
        if self._encoding == "utf-8-sig" and (begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or 0 in begin):
            what = "is UTF-16, as spreadsheets save it: use --encoding utf-16, or save it as UTF-8"
            raise BadInput(f"{self.name}:1", what)
        is_wide = self._encoding.startswith(("utf-16", "utf-32"))
        errors = "strict" if is_wide else "surrogateescape"  # what keeps single octets has no meaning there
        text = io.TextIOWrapper(buffered, encoding=self._encoding, errors=errors, newline="")
        number = 1
        try:
            for line in _bounded_lines(text, self.name):
                number += 1
                if not line.isascii() and (found := _UNDECODED.search(line)) is not None:
                    self._undecoded = found[0]
                yield line
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.name}:{number}", f"is not {self._encoding}: {error.reason}") from None

    def _skip_to_header(self, lines: Iterator[str], delimiter: str | None) -> tuple[str, str | None]:
        """The first line that says something, and the delimiter that a line before it names."""
        self._skipped = 0
        for line in lines:
            separator = _SEPARATOR_LINE.fullmatch(line)
            if separator is None and line.strip():
                return line, delimiter
            if separator is not None:
                delimiter = delimiter or separator[1]
            self._skipped += 1
        raise BadInput(f"{self.name}:1", "has no header line")

    def _header(self) -> list[str]:
        where = f"{self.name}:{self._skipped + 1}"
        try:
            header = [column.strip() for column in next(self._reader, [])]
        except csv.Error as error:
            raise BadInput(where, f"the header line cannot be read: {error}") from error
        if self._undecoded:
            raise BadInput(where, self._not_decoded())
        return header

    def __iter__(self) -> Iterator[Line]:
        while True:
            line = self._skipped + self._reader.line_num + 1
            self._undecoded = ""
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, self._unreadable(line, error)
                continue
            if not cells:
                continue  # an empty line
            if self._undecoded:
                yield line, BadRow(f"{self.name}:{line}", "row", self._not_decoded())
                continue
            if len(cells) > self._width and not any(cells[self._width :]):
                del cells[self._width :]  # delimiters at the end of a line, with nothing between
            if len(cells) != self._width:
                what = f"has {len(cells)} columns, the header has {self._width}"
                yield line, BadRow(f"{self.name}:{line}", "row", what)
                continue
            reference = (cells[self._reference] or None) if self._reference is not None else None
            yield line, (cells[self._address].strip(), reference, list(self._values(cells)))

    def _not_decoded(self) -> str:
        octets = self._undecoded.encode("utf-8", "surrogateescape")
        shown = " ".join(f"{octet:02X}" for octet in octets[:4])
        if self._encoding != "utf-8-sig":
            return f"holds the octets {shown}, which are not {self._encoding}"
        # What lies between 80 and 9F is nothing in ISO-8859-1, and quotes, dashes and the euro sign in its twin.
        guess = "windows-1252" if any(octet < 0xA0 for octet in octets) else "iso-8859-1"
        return f"holds the octets {shown}, which are not UTF-8; it looks like {guess}: use --encoding {guess}"

    def _unreadable(self, line: int, error: csv.Error) -> BadRow:
        last = self._skipped + self._reader.line_num
        # A quote that is not closed swallows lines: they are lost to us, so their range is named.
        swallowed = f"; lines {line} to {last} were taken for one row" if last > line else ""
        return BadRow(f"{self.name}:{line}", "row", f"{error}{swallowed}")


class NdjsonRows:
    """One JSON object a line. Values are texts; whole numbers are taken as written, null as an empty text."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self.notes: tuple[str, ...] = ()
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
        self._known = {self._address, *self.fields, REFERENCE_COLUMN}
        self._reference = REFERENCE_COLUMN if reference is None else names[reference]
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
    """Positions of the address, the reference and the merge fields; BadInput when they cannot be told.

    Of NDJSON, which programs write: names are taken as they are.
    """
    lower = [name.lower() for name in names]
    addresses = [i for i, name in enumerate(lower) if name in _ADDRESS_COLUMNS]
    references = [i for i, name in enumerate(lower) if name == REFERENCE_COLUMN]
    if len(addresses) != 1:
        raise BadInput(where, f"must have one column address or email, has {len(addresses)}: {', '.join(names)!a}")
    if len(references) > 1:
        raise BadInput(where, "has more than one column reference")
    values = [i for i in range(len(names)) if i not in addresses and i not in references]
    check_fields([names[i] for i in values], where)
    return addresses[0], references[0] if references else None, values


def _delimiter_of(header: str) -> str:
    """The first of the usual ones that separates anything outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    return next((delimiter for delimiter in _DELIMITERS if delimiter in bare), ",")


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
