"""Files of addresses: one a line, CSV with a header, or NDJSON; read and written a line at a time."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TextIO

import msgspec

from mta.model.errors import BadInput

_COLUMNS: Final = (
    *("address", "status", "errors", "counted_at", "reason", "category", "text"),
    *("delivery_id", "created_at", "changed_at", "changed_by"),
)


class Row(NamedTuple):
    where: str  # file and line, for errors
    address: str
    status: str  # empty: the row has none


class _Object(msgspec.Struct):
    address: str
    status: str = ""


_decode: Final = msgspec.json.Decoder(_Object).decode


def rows(file: Path) -> Iterator[Row]:
    """What it holds, by its first line: NDJSON, CSV with a column ``address``, or an address a line.

    ``-`` is stdin. Raises BadInput with file and line.
    """
    try:
        with sys.stdin if str(file) == "-" else file.open(encoding="utf-8-sig", newline="") as lines:
            first = next(lines, "")
            all_lines = itertools.chain([first], lines)
            if first.lstrip().startswith("{"):
                yield from _ndjson(all_lines, file)
            elif "address" in _header(first):
                yield from _csv(all_lines, file)
            else:
                yield from _plain(all_lines, file)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(str(file), f"cannot be read: {error}") from None


def csv_writer(to: TextIO) -> Callable[[Mapping[str, object]], object]:
    """Writes the header; what it answers writes a row."""
    writer = csv.DictWriter(to, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    return writer.writerow


def _header(line: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([line]), [])]


def _plain(lines: Iterable[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Row(f"{file}:{number}", line.strip(), "")


def _csv(lines: Iterable[str], file: Path) -> Iterator[Row]:
    reader = csv.DictReader(lines, strict=True)
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    try:
        for row in reader:
            where = f"{file}:{reader.line_num}"
            if not row["address"]:
                raise BadInput(where, "has no address")
            yield Row(where, row["address"], (row.get("status") or "").strip())
    except csv.Error as error:
        raise BadInput(f"{file}:{reader.line_num}", f"is no CSV: {error}") from None


def _ndjson(lines: Iterable[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = _decode(line)
        except msgspec.MsgspecError as error:
            raise BadInput(f"{file}:{number}", f"is no object with an address: {error}") from None
        yield Row(f"{file}:{number}", one.address, one.status)
