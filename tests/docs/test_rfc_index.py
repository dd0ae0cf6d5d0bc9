"""docs/rfc.md lists every RFC that the code cites, with where, and no other."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "rfc.md").read_text()
STATES = {"implemented", "partly", "deviates", "sink"}
_CITATION = re.compile(r"\bRFC (\d{3,5})\b")
_SLOPPY = re.compile(
    r"\bRFC ?-?\d+,? (?:section|sec\.?|chapter) |\bRFC(?:-|_)?(?!822[;.\\])\d{3,5}\b|\brfc ?(?!822)\d{3,5}\b"
)  # rfc822 is a word of MIME, RFC822.SIZE one of IMAP


def citations() -> dict[str, set[str]]:
    """RFC number -> packages whose files cite it."""
    cited: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "mta").rglob("*")):
        if path.suffix in {".py", ".sql"}:
            for number in _CITATION.findall(path.read_text()):
                cited[number].add("/".join(path.relative_to(ROOT).parts[:2]))
    return cited


def listed() -> dict[str, list[str]]:
    """RFC number -> the cells of its row: about, state, what, where."""
    rows = re.findall(r"^\| (\d{3,5}) \|(.*)\|$", TEXT, re.MULTILINE)
    assert len(rows) == len({number for number, _ in rows}), "an RFC stands in the table twice"
    return {number: [cell.strip() for cell in cells.split("|")] for number, cells in rows}


def test_every_rfc_that_is_cited_is_listed_and_the_reverse() -> None:
    cited, in_table = set(citations()), set(listed())
    assert cited - in_table == set(), "add a row to docs/rfc.md: implemented, partly or deviates, what and where"
    assert in_table - cited == set(), "nothing cites it any more: take the row out, or cite it where it is kept"


@pytest.mark.parametrize(("number", "cells"), listed().items())
def test_each_row_says_how_far_it_is_kept(number: str, cells: list[str]) -> None:
    about, state, what, _ = cells
    assert about
    assert state in STATES
    assert what or state == "implemented", f"RFC {number}: say what is missing, or why it is done otherwise"


def test_each_row_says_where() -> None:
    named = {number: set(re.findall(r"`(mta/\w+)`", cells[3])) for number, cells in listed().items()}
    assert named == {number: places for number, places in citations().items() if number in named}


def test_citations_have_one_form() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sorted((ROOT / "mta").rglob("*"))
        if path.suffix in {".py", ".sql"}
        for match in _SLOPPY.finditer(path.read_text())
    ]
    assert found == [], "write RFC 5321 §4.5.3.2, so that it can be found"
