"""The tables of ``docs/interoperation.md``, made from what the runs found: ``python -m tests.interop.table``."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.interop import result
from tests.interop.servers import SERVERS

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "interoperation.md"
RUNS: Final = ("plain, one session", "plain, 8 sessions", "TLS, one session", "TLS, 8 sessions")
CASES: Final = ("unknown", "full", "later", "nowhere", "closed")
_RETURNED: Final = {
    "message/rfc822": "the whole message",
    "text/rfc822-headers": "its header",
    "message/rfc822-headers": "its header",
}
# Told by nearly all, or by none to whom it would matter.
_USUAL: Final = ("SIZE", "8BITMIME", "ENHANCEDSTATUSCODES", "STARTTLS", "HELP", "DSN", "SMTPUTF8", "AUTH")


def main() -> int:
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), result.load()))
    return 0


def filled(document: str, results: Mapping[str, Any]) -> str:
    """The document with its tables made anew; what stands around the marks is left as it is."""
    for name, make in _TABLES:
        begin, end = f"<!-- {name}: made by python -m tests.interop.table -->", f"<!-- end of {name} -->"
        found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        assert found.search(document), f"{begin} is not in the document"
        table = f"{begin}\n\n{make(results)}\n\n{end}"
        document = found.sub(lambda _, table=table: table, document)  # type: ignore[misc]
    return document


def deliveries_table(results: Mapping[str, Any]) -> str:
    """A row for each server: what its four deliveries found."""
    rows = []
    for server in SERVERS:
        if (entry := results.get(server.name)) and "runs" in entry:
            cells = [_run_cell(entry["runs"].get(name)) for name in RUNS]
            trace = sorted({header for run in entry["runs"].values() for header in run["prepended"]})
            rows.append([server.title, entry["version"], entry["date"], *cells, ", ".join(trace)])
    return _table(["server", "version", "date", *RUNS, "prepended"], rows)


def _run_cell(run: Mapping[str, Any] | None) -> str:
    """``40 + 40 + 1`` where all is as it should be: delivered, unknown, refused at the dot; else what was found."""
    if run is None:
        return "not run"
    refused = run["refused"] in ("failed", "deferred")
    counts = f"{run['delivered']} + {run['unknown']} + {int(refused)}, {run['seconds']:.0f} s"
    if not run["faults"]:
        return counts
    worse = "; ".join(
        f"{name} {run[name]} of {run['stored']}"
        for name in ("same octets", "DKIM verified")
        if run[name] != run["stored"]
    )
    return f"**{counts}; {worse or 'not all'}**"


def bounces_table(results: Mapping[str, Any]) -> str:
    """A row for each server: what it reports of three refusals, and how the product reads it."""
    rows = []
    for server in SERVERS:
        if (entry := results.get(server.name)) and (found := entry.get("bounces")):
            reports = found["reports"]
            cells = [_report_cell(reports.get(name)) for name in CASES]
            what = reports["unknown"]["form"].split("; ")
            shape = f"{what[2].removeprefix('message/')}, {_RETURNED[what[-1]]}"
            faults = f"**{'; '.join(found['faults'])}**" if found["faults"] else "as it should be"
            rows.append([server.title, entry["version"], entry["bounces date"], *cells, shape, faults])
    head = [
        "server",
        "version",
        "date",
        "unknown user",
        "full mailbox",
        "refused for now",
        "report, and what it returns",
    ]
    return _table([*head, "read"], rows)


def _report_cell(report: Mapping[str, Any] | None) -> str:
    """Action and status as written; and as read."""
    if report is None:
        return "not in the time of a run"
    return f"{report['action']} {report['status']}: {report['read'].removeprefix('bounce: ')}"


def habits_table(results: Mapping[str, Any]) -> str:
    """A row for each server: what it does where servers differ."""
    rows = []
    for server in SERVERS:
        if (entry := results.get(server.name)) and (habits := entry.get("habits")):
            words = [line[4:].split(" ")[0].partition("=")[0] for line in habits["EHLO"]]
            rows.append(
                [
                    server.title,
                    ", ".join(word for word in words if word.upper() not in _USUAL) or "none of these",
                    *(
                        _code(habits[name])
                        for name in ("behind the dot", "behind a refused dot", "after a refused dot")
                    ),
                    habits["RSET"],
                    _code(habits["unknown"]),
                    _code(habits["messages a session"]),
                ]
            )
    head = [
        "server",
        "EHLO, beyond the usual",
        "envelope in one write with the dot",
        "the same, the message refused",
        "refused at the dot, then MAIL",
        "RSET in a row",
        "unknown recipients in a row",
        "messages a session",
    ]
    return _table(head, rows)


_TABLES: Final = (("deliveries", deliveries_table), ("habits", habits_table), ("bounces", bounces_table))


def _code(text: str) -> str:
    return text.replace("|", "/").replace("<", "&lt;")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
