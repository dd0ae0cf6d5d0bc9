"""``mta simulate``: a scenario played by the real traffic code against modelled providers, under a clock that jumps."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mta.cli.terminal import AsJson, out, print_json, print_table
from mta.model.errors import BadInput
from mta.settings.scenario_file import NODES_MAX, load_scenario
from mta.simulation.engine import simulate
from mta.simulation.picture import duration, picture
from mta.simulation.report import Report, report

VIOLATED_EXIT = 1


def command(
    scenarios: Annotated[
        list[Path], typer.Argument(help="Scenario files, such as config/scenarios/day-5m.toml.", show_default=False)
    ],
    svg: Annotated[
        Path | None, typer.Option(help="Draw rate and queue by site over time (one scenario).", show_default=False)
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="So many nodes, else as the scenario says.", min=1, show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Another seed than the scenario's.", min=0, show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play scenarios; exit 1 when a limit of the rules was exceeded. With --json one line each, then the totals."""
    if svg is not None and len(scenarios) != 1:
        raise BadInput("--svg", "draws one scenario; give one file")
    if nodes is not None and nodes > NODES_MAX:
        raise BadInput("--nodes", f"is {nodes}, allowed are 1 to {NODES_MAX}")
    loaded = [load_scenario(path) for path in scenarios]
    # What a simulation makes is no longer needed by the batch, and holds few cycles.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    violations, simulated_s, took_s = 0, 0.0, 0.0
    for scenario in loaded:
        changes: dict[str, int] = {}
        if nodes is not None:
            changes["nodes"] = nodes
        if seed is not None:
            changes["seed"] = seed
        began_s = time.perf_counter()
        told = report(simulate(msgspec.structs.replace(scenario, **changes)))
        spent_s = time.perf_counter() - began_s
        violations += told.violations
        simulated_s += told.ended_s
        took_s += spent_s
        if svg is not None:
            svg.write_text(picture(told), encoding="utf-8")
        if as_json:
            print_json(
                {**msgspec.to_builtins(told), "took_s": round(spent_s, 3), "speedup": _times(told.ended_s, spent_s)}
            )
        else:
            print_report(told)
            out.print(f"played in {spent_s:.1f} s, {_times(told.ended_s, spent_s):,.0f} times as fast as real time\n")
    if as_json:
        print_json(
            {
                "scenarios": len(loaded),
                "simulated_s": round(simulated_s, 3),
                "took_s": round(took_s, 3),
                "violations": violations,
                "speedup": _times(simulated_s, took_s),
            }
        )
    if violations:
        raise typer.Exit(VIOLATED_EXIT)


def _times(simulated_s: float, took_s: float) -> float:
    return round(simulated_s / max(took_s, 1e-9), 1)


def print_report(told: Report) -> None:
    """The table of sites, what held them back, events, violations."""
    print_table(
        f"{told.scenario} (seed {told.seed})",
        ("site", "sent", "deferred", "failed", "peak/s", "mean/s", "queue", "done"),
        [
            (
                site.site if site.sites == 1 else f"{site.site} ({site.sites:,} sites)",
                site.sent,
                site.deferred,
                site.failed,
                site.peak_per_s,
                site.mean_per_s,
                site.queue_max,
                duration(site.done_s) if not site.waiting else f"{site.waiting:,} wait",
            )
            for site in told.sites
        ],
    )
    print_table(
        "What held them back",
        ("site", "limit", "value", "for", "where"),
        [
            (
                site.site,
                f"{held.rule}: {held.limit}" if held.rule else held.limit,
                held.value or None,
                duration(held.seconds),
                held.origin or held.event or None,
            )
            for site in told.sites
            for held in site.held[:3]
        ],
    )
    for event in told.events[:20]:
        typer.echo(f"{duration(event.at_s):>10}  {event.what}")
    if told.events_count > 20:
        typer.echo(f"... {told.events_count - 20:,} more events")
    typer.echo(
        f"{told.recipients:,} recipients: {told.delivered:,} delivered, {told.failed:,} failed, "
        f"{told.expired:,} expired, {told.waiting:,} wait; {told.deferred:,} deferrals; ended after "
        f"{duration(told.ended_s)}; {told.violations} violations of the rules"
    )
    for violation in told.violation_details:
        typer.echo(
            f"VIOLATION at {violation.at_s:g} s: {violation.key}: {violation.found:,} {violation.limit}, "
            f"allowed are {violation.allowed:,}",
            err=True,
        )
