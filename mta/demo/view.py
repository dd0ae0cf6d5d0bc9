"""The demo as people see it: a picture that moves on a terminal, a line now and then elsewhere, and the last page."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mta.demo.account import Account
from mta.demo.scene import STRICT_CONNECTIONS_MAX, STRICT_MESSAGES_PER_CONNECTION_MAX, DemoOptions, Scene
from mta.demo.watch import FarEnd, Process
from mta.queue.deliveries import Delivery

LINE_EVERY_S: Final = 2.0
EVENTS_SHOWN: Final = 4


class ConsoleView:
    """A `View` on a console; use as a context manager. What it shows is of the moment, except for the events."""

    def __init__(self, console: Console, options: DemoOptions) -> None:
        self._console = console
        self._scene = Scene(options)
        self._events: list[str] = []
        self._live: Live | None = None
        self._line_at_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    # --- View -----------------------------------------------------------------------------------

    def step(self, what: str) -> None:
        self._console.print(f"[cyan]•[/] {what}", highlight=False, soft_wrap=True)
        if self._live is not None:
            self._live.update(Text())

    def appended(self, recipients: int) -> None:
        if self._live is not None:
            bar = Padding(ProgressBar(total=self._scene.options.recipients, completed=recipients), 0)
            self._live.update(Group(bar, Text(f"{recipients:,} recipients in the queue")))

    def event(self, what: str) -> None:
        self._events.append(what)
        if self._live is None:
            self._console.print(f"[yellow]![/] {what}", highlight=False, soft_wrap=True)

    def look(self, delivery: Delivery, far_end: FarEnd, processes: list[Process]) -> None:
        if self._live is not None:
            self._live.update(self._picture(delivery, far_end, processes))
        elif time.monotonic() - self._line_at_s >= LINE_EVERY_S:
            self._line_at_s = time.monotonic()
            self._console.print(
                f"  {_outcomes(delivery)}; {far_end.per_second:,.0f} messages a second", highlight=False
            )

    # --- the picture ----------------------------------------------------------------------------

    def _picture(self, delivery: Delivery, far_end: FarEnd, processes: list[Process]) -> Panel:
        bar = Padding(ProgressBar(total=max(1, delivery.appended), completed=delivery.final), 0)  # ends its line
        rate = Text.assemble(
            (f"{far_end.per_second:,.0f}", "bold green"), " messages a second    ", _outcomes(delivery)
        )
        events = [Text("! " + event, style="yellow") for event in self._events[-EVENTS_SHOWN:]]
        picture = Group(bar, rate, self._sites(far_end), _processes_table(processes), *events)
        return Panel(picture, title="mta demo: PostgreSQL → master → children → SMTP → sink", padding=(0, 1))

    def _sites(self, far_end: FarEnd) -> Table:
        table = Table(
            *("site (MX host)", "rule", "domains", "received", "try later", "refused", "connections"),
            expand=True,
            box=None,
            header_style="dim",
        )
        for column in table.columns[2:]:
            column.justify = "right"
        for host in self._scene.hosts:
            at = host.address
            table.add_row(
                host.name,
                host.rule,
                f"{len(host.domains):,}",
                *(f"{count[at]:,}" for count in (far_end.accepted, far_end.later, far_end.never, far_end.open)),
            )
        return table


def _outcomes(delivery: Delivery) -> str:
    return (
        f"{delivery.delivered:,} delivered, {delivery.failed:,} failed, {delivery.deferrals:,} put off, "
        f"{delivery.waiting:,} in the queue"
    )


def _processes_table(processes: list[Process]) -> Table:
    table = Table("process", "pid", "processor", "memory", expand=True, box=None, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in processes:
        table.add_row(one.name, str(one.pid), f"{one.cpu_percent:.0f} %", f"{one.rss_mb:.0f} MB")
    return table


# --- the last page -----------------------------------------------------------------------------


def print_summary(console: Console, options: DemoOptions, account: Account, program: str = "mta") -> None:
    """What happened, in words, and what to try next with ``program``, as it has to be typed here."""
    scene = Scene(options)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _rows(options, scene, account):
        table.add_row(name, text)
    verdict = (
        Text("Every recipient is accounted for.", style="bold green")
        if account.is_accounted
        else Text("NOT every recipient is accounted for: see the lines marked with !", style="bold red")
    )
    console.print(Panel(Group(table, Text(), verdict), title="What happened", padding=(1, 2), highlight=False))
    console.print("Try next:", style="bold")
    for command, what in _NEXT:
        console.print(f"  [cyan]{escape(program)} {command}[/]  {what}", highlight=False, soft_wrap=True)


_NEXT: Final = (
    ("demo --kill", "the same, with a child and the master killed on the way"),
    ("demo --recipients 100000 --domains 1000", "more of it"),
    ("rules check config/mx-rules.toml", "the rules that are shipped for the large providers"),
    ("delivery --help", "make, fill, steer and audit deliveries on a database of your own"),
)


def _rows(options: DemoOptions, scene: Scene, account: Account) -> list[tuple[str, str]]:
    rows = [
        (
            "Queue",
            f"{account.recipients:,} recipients of {options.domains:,} domains, one personalised message each "
            f"(text and HTML), from a durable PostgreSQL queue",
        ),
        ("Sites", f"the domains were grouped into {len(scene.hosts)} sites by their MX hosts"),
        (
            "Delivered",
            f"{account.delivered:,}, by {options.children} child processes in {account.seconds:,.1f} s: "
            f"{account.messages_per_second:,.0f} a second, {account.messages_per_second_max:,} in the best second",
        ),
        (
            "Put off",
            f"{account.deferrals:,} times a server said “not now”, {account.full:,} of them that a mailbox is full "
            "(552); each was tried again a second later",
        ),
        (
            "Failed",
            f"{account.failed:,}: {account.gone:,} unknown to their server (550), {account.nowhere:,} in a domain "
            "that does not exist",
        ),
        (
            "Came back",
            f"{account.bounced:,} bounces of messages that had been taken, {account.complaints:,} complaints; "
            f"{account.not_mailed:,} addresses are not mailed any more",
        ),
        *_doubts(options, account),
        (
            "Counted at the far end",
            f"{account.received:,} messages received; {_marked(account.lost)} lost, "
            f"{_marked(account.unexplained)} unexplained, {account.duplicates:,} received twice",
        ),
    ]
    if scene.strict is not None:
        mark = "" if account.are_limits_held else "! "
        rows.append(
            (
                "Limits",
                f"{mark}{scene.strict.name} allows {STRICT_CONNECTIONS_MAX} connections and "
                f"{STRICT_MESSAGES_PER_CONNECTION_MAX} messages on each; it saw at most "
                f"{account.strict_connections} and {account.strict_messages_per_connection}, and held up nobody else",
            )
        )
    books = "clean: queue and log agree on each recipient" if account.is_audit_clean else "! not clean"
    rows.append(("Audit of our books", books))
    rows += [("! Differs", difference) for difference in account.differences]
    if account.pending or account.wrongly_failed:
        rows.append(("! Open", f"{account.pending:,} still waiting, {account.wrongly_failed:,} failed without cause"))
    return rows


def _doubts(options: DemoOptions, account: Account) -> list[tuple[str, str]]:
    if not options.kill:
        return []
    return [
        (
            "After the kills",
            f"{account.in_doubt:,} messages were in doubt: sent, their reply never seen. They are known by name and "
            f"were sent again; {account.duplicates:,} of them had arrived before",
        )
    ]


def _marked(count: int) -> str:
    return f"! {count:,}" if count else "0"
