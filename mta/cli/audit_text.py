"""What an audit of a delivery says, in words."""

from __future__ import annotations

from mta.cli.terminal import out, print_table
from mta.queue import audit as audits


def print_audit(found: audits.Audit) -> None:
    out.print(
        f"delivery {found.delivery_id}: {found.appended:,} appended = {found.final:,} final + {found.open:,} open "
        f"({found.leased:,} leased, {found.held:,} held)"
    )
    faults = {
        "lost": found.lost,
        "more than one final outcome": found.duplicates,
        "final, and still in the queue": found.both,
        "twice in the queue": found.open_twice,
        "never appended": found.invented,
    }
    for name, findings in faults.items():
        if findings.count:
            rows = [(one.number, one.key, one.index) for one in findings.examples]
            print_table(f"{name}: {findings.count:,}", ("number", "part", "index in it"), rows)
    if found.wrong_counters:
        rows_wrong = [(one.name, one.counted, one.logged) for one in found.wrong_counters]
        print_table("Counters that are wrong", ("counter", "counted", "in the log"), rows_wrong)
    out.print("[green]clean[/]" if found.is_clean else "[red]not clean[/]")
