"""CSV and NDJSON from files and pipes: streamed, every bad row named, keys that stay the same."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from mta.model.errors import BadInput
from mta.queue import source
from mta.queue.source import OnBadRow, SourceFormat, SourcePart

CSV, NDJSON = SourceFormat.CSV, SourceFormat.NDJSON


def _read(text: str | bytes, form: SourceFormat = CSV, size: int = 100, **options: object) -> list[SourcePart]:
    stream = io.BytesIO(text.encode() if isinstance(text, str) else text)
    delimiter = str(options.pop("delimiter", ","))
    rows = source.open_rows(stream, "f", form, delimiter=delimiter)
    return list(source.read_parts(rows, "f", size, **options))  # type: ignore[arg-type]


def _recipients(parts: list[SourcePart]) -> list[list[object]]:
    return [row for one in parts if one.part is not None for row in json.loads(one.part.recipients)]


def _bad(parts: list[SourcePart]) -> list[str]:
    return [str(bad) for one in parts for bad in one.bad_rows]


@pytest.mark.parametrize(
    "text",
    [
        "email,reference,first,city\nann@example.com,r1,Ann,Bern\nbob@example.com,,Bob,\n",
        "\ufefffirst,EMAIL,city,Reference\r\nAnn, ann@example.com ,Bern,r1\r\n\r\nBob,bob@example.com,,\r\n",
        'first,address,city,reference\n"Ann","ann@example.com","Bern","r1"\nBob,bob@example.com,,',
    ],
)
def test_csv_columns_may_stand_in_any_order(text: str) -> None:
    parts = _read(text)
    assert parts[0].part is not None
    assert parts[0].part.fields == ("first", "city")
    assert _recipients(parts) == [
        ["ann@example.com", "r1", ["Ann", "Bern"]],
        ["bob@example.com", None, ["Bob", ""]],
    ]


@pytest.mark.parametrize("columns", ["email", "email,a", "email,a,b"])
def test_any_number_of_merge_fields_will_do(columns: str) -> None:
    values = ["v"] * columns.count(",")
    assert _recipients(_read(f"{columns}\n{','.join(['a@example.com', *values])}\n")) == [
        ["a@example.com", None, values]
    ]


def test_ndjson_takes_texts_whole_numbers_and_nulls() -> None:
    lines = [
        '\ufeff{"email": "ann@example.com", "points": 12, "city": "Bern", "reference": "r"}',
        "",
        '{"city": null, "email": "bob@example.com", "points": "7"}',
    ]
    parts = _read("\n".join(lines), NDJSON)
    assert _recipients(parts) == [["ann@example.com", "r", ["12", "Bern"]], ["bob@example.com", None, ["7", ""]]]


def test_each_bad_csv_row_is_named_by_line_and_column_and_the_others_kept() -> None:
    text = b"""email,first
ann@example.com,Ann
ann@,x
bob@example.com
c@example.com,"two
lines"
d@example.com,\xff
e@example.com,"q"x
f@example.com,ok
"""
    parts = _read(text)
    assert [row[0] for row in _recipients(parts)] == ["ann@example.com", "f@example.com"]
    assert _bad(parts) == [
        "f:3: address: 'ann@' has no domain",
        "f:4: row: has 1 columns, the header has 2",
        "f:5: first: a line feed is not allowed in a value (at 3)",
        "f:7: first: half of a surrogate pair U+DCFF is not allowed in a value (at 0)",
        "f:8: row: ',' expected after '\"'",
    ]
    assert parts[0].rows_read == 7


def test_a_quote_that_is_never_closed_names_the_lines_it_swallowed() -> None:
    parts = _read('email,first\na@example.com,"Ann\nb@example.com,Bob\nc@example.com,Cid\n')
    assert _bad(parts) == ["f:2: row: unexpected end of data; lines 2 to 4 were taken for one row"]


def test_each_bad_ndjson_line_is_named_and_the_others_kept() -> None:
    lines = [
        b'{"email": "ann@example.com", "x": "1"}',
        b'{"email": "b@example.com", "x": 1.5}',
        b'{"email": "c@example.com"}',
        b'{"email": "d@example.com", "x": "", "y": ""}',
        b"{",
        b'{"email": "e@example.com", "x": ["1"]}',
        b'{"email": "\xff", "x": ""}',
        b'{"email": "g@example.com", "x": "a\\u0000"}',
        b'{"email": "h@example.com", "x": "1"}',
    ]
    parts = _read(b"\n".join(lines), NDJSON)
    assert [row[0] for row in _recipients(parts)] == ["ann@example.com", "h@example.com"]
    places = [bad.split(": ")[:2] for bad in _bad(parts)]
    assert places == [
        ["f:2", "x"],
        ["f:3", "x"],
        ["f:4", "y"],
        ["f:5", "row"],
        ["f:6", "row"],
        ["f:7", "row"],
        ["f:8", "x"],
    ]


def test_refusing_a_bad_row_refuses_its_part_only() -> None:
    text = "email\na@example.com\nb@example.com\nbad\nc@example.com\nd@example.com\n"
    parts = _read(text, size=2, on_bad_row=OnBadRow.REFUSE)
    assert [(one.key, one.part is not None, len(one.bad_rows)) for one in parts] == [
        ("f:000001", True, 0),
        ("f:000002", False, 1),
        ("f:000003", True, 0),
    ]


def test_keys_and_parts_do_not_depend_on_what_is_done_with_bad_rows() -> None:
    rows = [f"user{i}@example.com" if i % 5 else "bad" for i in range(50)]
    skipped = _read("email\n" + "\n".join(rows), size=8)
    refused = _read("email\n" + "\n".join(rows), size=8, on_bad_row=OnBadRow.REFUSE)
    assert [one.key for one in skipped] == [one.key for one in refused] == [f"f:{n:06}" for n in range(1, 8)]


@pytest.mark.parametrize(
    ("text", "form", "what"),
    [
        ("", CSV, "f:1: has no header line"),
        ("first,last\n", CSV, "must have one column address or email, has 0"),
        ("email,address\n", CSV, "must have one column address or email, has 2"),
        ("email,a,a\n", CSV, "names the merge field a twice"),
        ("email,First name\n", CSV, "'First name' is no name for a merge field"),
        ("email,\n", CSV, "'' is no name for a merge field"),
        ("email;first\n", CSV, "separated by semicolons"),
        ('{"mail": "x"}', NDJSON, "f:1: must have one column address or email"),
        ("[]", NDJSON, "f:1: the first line names the fields, and cannot be read"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_at_once(text: str, form: SourceFormat, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        _read(text, form)


def test_other_delimiters_are_asked_for() -> None:
    assert _recipients(_read("email;x\na@example.com;1,5\n", delimiter=";")) == [["a@example.com", None, ["1,5"]]]
    with pytest.raises(BadInput, match="delimiter"):
        _read("email\n", delimiter="ab")


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LINE_BYTES_MAX", 100)
    for form in SourceFormat:
        head = "email\n" if form is CSV else '{"email": "a@example.com"}\n'
        with pytest.raises(BadInput, match="f:2: the line is longer than 100"):
            _read(head + "x" * 101, form)


def test_empty_ndjson_has_no_parts() -> None:
    assert _read("", NDJSON) == []


def test_part_sizes_follow_the_total_where_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("x\n" * 50_000)
    assert source.count_lines(path) == 50_000
    assert source.part_recipients_for(0, 50_000) == 48
    assert source.part_recipients_for(0, None) == 256
    assert source.part_recipients_for(77, None) == 77
    with pytest.raises(BadInput, match="part_recipients"):
        _read("email\n", size=0)
