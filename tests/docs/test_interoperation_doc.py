"""The tables of docs/interoperation.md are those of the recorded runs, and every server is spoken of."""

from __future__ import annotations

import re

from tests.interop import result, table
from tests.interop.servers import SERVERS


def test_the_tables_are_made_from_what_was_found() -> None:
    document = table.DOCUMENT.read_text()
    assert table.filled(document, result.load()) == document, "run: python -m tests.interop.table"


def test_each_server_has_its_words_and_its_results() -> None:
    headings = re.findall(r"^### (.*)$", table.DOCUMENT.read_text(), re.MULTILINE)
    results = result.load()
    assert [server.title for server in SERVERS] == [one for one in headings if one in {s.title for s in SERVERS}]
    for server in SERVERS:
        assert set(results[server.name]["runs"]) == set(table.RUNS), f"{server.name} was not run in each manner"
        assert results[server.name]["habits"]["EHLO"]


def test_what_each_server_reports_was_read_as_it_should_be() -> None:
    for server in SERVERS:
        if not server.no_bounces:
            bounces = result.load()[server.name]["bounces"]
            assert not bounces["faults"], server.name
            assert {"unknown", "full"} <= set(bounces["reports"]), server.name
