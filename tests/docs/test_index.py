"""Every document can be found, and every link in one leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
LINKS = [
    (path, target)
    for path in DOCUMENTS
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    if not target.startswith(("http://", "https://"))
]


def anchors(text: str) -> set[str]:
    """Headings as a forge makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_names_every_document() -> None:
    listed = set(re.findall(r"^\| \[(\S+)\]\(\1\) \|", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE))
    assert listed == {path.name for path in DOCUMENTS} - {"README.md"}


@pytest.mark.parametrize(("path", "target"), LINKS, ids=[f"{path.name}: {target}" for path, target in LINKS])
def test_each_link_leads_somewhere(path: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    found = (path.parent / name).resolve() if name else path
    assert found.is_file() or (not anchor and found.is_dir())
    if anchor:
        assert anchor in anchors(found.read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_is_longer_than_can_be_read_in_a_diff(path: Path) -> None:
    """Tables and links apart."""
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 135 and not line.startswith(("|", "#"))]
    assert long == []
