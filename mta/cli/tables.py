"""How commands show tables: the one place.

On a terminal a table fits the width: text is cut, which an ellipsis shows; numbers and times never are. Where whole
numbers leave no room for columns, each row becomes a block with one value a line. Without a terminal each row is one
line, uncut, its cells separated by tabs, so that grep, cut and awk work; titles and names of columns begin with "#".
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size

ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"
NOTHING: Final = "-"
TEXT_MIN: Final = 8  # of cut text so much is left, or it says nothing
HEAD_MIN: Final = 5  # the same of a word of a column's name
_GAPS: Final = (2, 1)
# What must be whole to be right: numbers with their unit, addresses of hosts, ISO times.
_WHOLE: Final = re.compile(r"[-+]?[\d.,:]*\d ?%?|\d{4}-\d\d-\d\d(?:[T ][\d:.]+(?:Z|[-+]\d\d:\d\d)?)?")


class _Column(NamedTuple):
    name: str
    cells: list[str]
    is_number: bool
    whole: int  # the width of the widest cell that may not be cut
    widest: int

    def head_width(self, word_max: int) -> int:
        return max((min(cell_len(word), word_max) for word in self.name.split()), default=0)


def plain(cell: object, *, grouped: bool = True) -> str:
    """A cell as text. None is a dash; control characters are escaped; ``grouped``: thousands are set apart."""
    if cell is None:
        return NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:,.1f}" if grouped else f"{cell:.1f}"
    if isinstance(cell, int):
        return f"{cell:,}" if grouped else str(cell)
    if isinstance(cell, datetime.datetime):
        return f"{cell.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S}Z"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(cell))


def lines_of_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """For programs: one line a row, uncut, separated by tabs; numbers without marks between thousands."""
    if title:
        yield f"# {plain(title)}"
    if any(columns):
        yield "# " + "\t".join(plain(name) for name in columns)
    for row in rows:
        yield "\t".join(plain(cell, grouped=False) or NOTHING for cell in row)


def fitted(columns: Sequence[str], rows: Iterable[Sequence[object]], width: int) -> tuple[list[str], list[str]]:
    """For people: the lines of the head and of the rows, none wider than ``width`` but for a number that is wider."""
    given = [list(row) for row in rows]
    measured = [_measured(name, [row[index] for row in given]) for index, name in enumerate(columns)]
    for gap in _GAPS:
        for text_min, word_max in ((TEXT_MIN, width), (TEXT_MIN, HEAD_MIN)):
            floors = [
                max(one.whole, one.head_width(word_max), min(one.widest, text_min), 1)
                if one.cells
                else max(one.head_width(word_max), 1)
                for one in measured
            ]
            room = width - gap * (len(measured) - 1)
            if sum(floors) <= room:
                return _laid_out(measured, _widths(measured, floors, room), gap)
    return [], _blocks(measured, width)


def _measured(name: str, values: Sequence[object]) -> _Column:
    cells = [plain(value) for value in values]
    whole = [
        isinstance(v, int | float | datetime.date) or bool(_WHOLE.fullmatch(c))
        for v, c in zip(values, cells, strict=True)
    ]
    return _Column(
        plain(name),
        cells,
        any(isinstance(value, int | float) and not isinstance(value, bool) for value in values),
        max((cell_len(cell) for cell, is_whole in zip(cells, whole, strict=True) if is_whole), default=0),
        max((cell_len(cell) for cell in cells), default=0),
    )


def _widths(columns: Sequence[_Column], floors: Sequence[int], room: int) -> list[int]:
    """As wide as the cells want, the widest made narrower until all fit; names of columns break into lines first."""
    widths = [max(floor, one.widest) for floor, one in zip(floors, columns, strict=True)]
    while sum(widths) > room:
        spare = [width - floor for width, floor in zip(widths, floors, strict=True)]
        index = max((i for i, left in enumerate(spare) if left), key=lambda i: widths[i])
        widths[index] -= 1
    return widths


def _laid_out(columns: Sequence[_Column], widths: Sequence[int], gap: int) -> tuple[list[str], list[str]]:
    heads = [_wrapped(one.name, width) for one, width in zip(columns, widths, strict=True)]
    height = max(map(len, heads), default=0)
    # The last line of each name stands right above its cells.
    padded = [[""] * (height - len(head)) + head for head in heads]
    head = [_line(columns, [lines[index] for lines in padded], widths, gap) for index in range(height)]
    count = len(columns[0].cells) if columns else 0
    body = [_line(columns, [one.cells[index] for one in columns], widths, gap) for index in range(count)]
    return [line for line in head if line], body


def _line(columns: Sequence[_Column], cells: Sequence[str], widths: Sequence[int], gap: int) -> str:
    placed = []
    for one, cell, width in zip(columns, cells, widths, strict=True):
        text = cut(cell, width)
        padding = " " * (width - cell_len(text))
        placed.append(padding + text if one.is_number else text + padding)
    return (" " * gap).join(placed).rstrip()


def _wrapped(name: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in name.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(cut(word, width))
    return lines


def _blocks(columns: Sequence[_Column], width: int) -> list[str]:
    names = max(cell_len(one.name) for one in columns)
    lines: list[str] = []
    for index in range(len(columns[0].cells)):
        if index:
            lines.append("")
        for one in columns:
            cell = one.cells[index]
            room = width - names - 2
            is_whole = cell_len(cell) <= one.whole
            lines.append(f"{set_cell_size(one.name, names)}  {cell if is_whole else cut(cell, room)}".rstrip())
    return lines


def cut(text: str, width: int) -> str:
    """``text`` in ``width`` columns of a terminal; what is left out is shown by an ellipsis."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + ELLIPSIS if width > 1 else ELLIPSIS[:width]
