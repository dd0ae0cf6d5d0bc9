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
    rows = _rows(stream, form, **{key: options.pop(key) for key in ("delimiter", "encoding") if key in options})
    return list(source.read_parts(rows, "f", size, **options))  # type: ignore[arg-type]


def _rows(stream: io.BytesIO, form: SourceFormat = CSV, **options: object) -> source.RowReader:
    return source.open_rows(stream, "f", form, **options)  # type: ignore[arg-type]


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
        "f:7: row: holds the octets FF, which are not UTF-8; it looks like iso-8859-1: use --encoding iso-8859-1",
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
        ("first\n", CSV, "must have one column address or email, has 0"),
        ("e.mail\n", CSV, "must have one column address or email, has 0"),
        ("\n\n  \n", CSV, "f:1: has no header line"),
        ('{"mail": "x"}', NDJSON, "f:1: must have one column address or email"),
        ("[]", NDJSON, "f:1: the first line names the fields, and cannot be read"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_at_once(text: str, form: SourceFormat, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        _read(text, form)


@pytest.mark.parametrize("encoding", ["iso-8859-1", "windows-1252", "utf-16", "utf-16-le", "UTF-8", "shift_jis"])
def test_a_file_is_read_by_the_encoding_that_is_named(encoding: str) -> None:
    name = "中村" if encoding == "shift_jis" else "Jürgen"
    parts = _read(f"email,first\na@example.com,{name}\n".encode(encoding), encoding=encoding)
    assert _recipients(parts) == [["a@example.com", None, [name]]]


def test_what_is_not_utf_8_is_named_with_a_guess_and_costs_its_row_only() -> None:
    parts = _read("email,first\na@example.com,Jürgen\nb@example.com,10 € “x”\nc@example.com,Ann\n".encode("cp1252"))
    assert [row[0] for row in _recipients(parts)] == ["c@example.com"]
    assert [bad.partition("; ")[2] for bad in _bad(parts)] == [
        "it looks like iso-8859-1: use --encoding iso-8859-1",
        "it looks like windows-1252: use --encoding windows-1252",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(encoding: str) -> None:
    with pytest.raises(BadInput, match=r"f:1: is UTF-16.*--encoding utf-16"):
        _read("email,first\na@example.com,Ann\n".encode(encoding))


@pytest.mark.parametrize(
    ("encoding", "form", "what"),
    [
        ("utf-99", CSV, "'utf-99' is not known"),
        ("base64", CSV, "'base64' is not known"),
        ("iso-8859-1", NDJSON, "NDJSON is UTF-8"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(encoding: str, form: SourceFormat, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        _read("email\n", form, encoding=encoding)


def test_half_a_character_at_the_end_of_a_wide_file_is_named_by_its_line() -> None:
    with pytest.raises(BadInput, match="f:3: is not utf-16"):
        _read("email\na@example.com\nb".encode("utf-16")[:-1], encoding="utf-16")


@pytest.mark.parametrize(
    "text",
    [
        "E-Mail;Vorname\na@example.com;Ann\n",
        "\n\nE-Mail\tVorname\na@example.com\tAnn\n",
        "sep=;\r\nVorname;e-mail address\r\nAnn;a@example.com\r\n",
        '"sep=|"\nVorname|MAIL\nAnn|a@example.com\n',
        "Vorname,Email,\nAnn,a@example.com,\n",
        "Vorname,Email\nAnn,a@example.com,,\n",
        "Vorname;Email;;\nAnn;a@example.com;x;\n",
        '"Vor,name",Email,Vorname\n,a@example.com,Ann\n',
        "  Vorname  , EMAIL \nAnn,a@example.com\n",
    ],
)
def test_headers_and_delimiters_are_taken_as_people_have_them(text: str) -> None:
    found = _recipients(_read(text))
    assert [(row[0], "Ann" in row[2]) for row in found] == [("a@example.com", True)]


def test_a_column_is_the_merge_field_that_the_content_uses_whatever_its_case_and_accents() -> None:
    text = "Email,First name,GRÖSSE,Straße,Prénom,first-name,?\na@example.com,Ann,2,Weg,x,y,z\n"
    rows = _rows(io.BytesIO(text.encode()), wanted={"first_name", "groesse", "Prenom"})
    assert rows.fields == ("first_name", "groesse", "Strasse", "Prenom", "first-name")
    assert list(rows) == [(2, ("a@example.com", None, ["Ann", "2", "Weg", "x", "y"]))]
    assert rows.notes[0] == "f:1: column 2, 'First name', is the merge field first_name"
    assert any("column 7, '?', is left out" in note for note in rows.notes)


def test_two_columns_for_one_field_that_the_content_uses_are_refused() -> None:
    with pytest.raises(BadInput, match="f:1: names the merge field first twice"):
        _rows(io.BytesIO(b"email,First,first\n"), wanted={"first"})
    notes = _rows(io.BytesIO(b"email,a,a\n")).notes
    assert notes == ("f:1: column 3, 'a', is left out: column 2 is the merge field a already",)


def test_lines_are_numbered_as_the_file_has_them() -> None:
    parts = _read("\nsep=;\nemail;x\n\nbad;1\na@example.com;1\n")
    assert _bad(parts) == ["f:5: address: 'bad' has no @"]


def test_other_delimiters_are_asked_for() -> None:
    assert _recipients(_read("email\tx;y\na@example.com\t1\n", delimiter="\\t")) == [["a@example.com", None, ["1"]]]
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
