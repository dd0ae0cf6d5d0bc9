"""The figures of ``python -m bench all`` as bars, in an SVG that any browser shows."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from mta.model.errors import BadInput

WIDTH: Final = 860
LABELS: Final = 250  # pixels left of the bars
FIGURES: Final = 120  # and right of them
BAR: Final = 16
LINE: Final = 22
COLOURS: Final = {
    "mta": "#2b6cb0",
    "smtp-source": "#a0aec0",
    "Postfix": "#d69e2e",
    **{"master": "#2b6cb0", "children": "#63b3ed", "postgres": "#38a169", "sink": "#a0aec0", "nameserver": "#e2e8f0"},
}


class Bar(NamedTuple):
    """``pieces``: (name, length) one after the other; ``text`` stands at the end."""

    label: str
    pieces: Sequence[tuple[str, float]]
    text: str


def picture(figures: bytes, where: str) -> str:
    """The SVG. BadInput at ``where`` when it is not what ``all`` has written, or holds nothing to draw."""
    try:
        told = msgspec.json.decode(figures)
        scenarios = {
            name: found for name, found in told["scenarios"].items() if not isinstance(found.get("failed"), str)
        }
        charts = [
            ("Drain of a durable queue, messages a second, same far end", _drain_bars(scenarios)),
            ("Size × STARTTLS × DKIM, messages a second", _matrix_bars(scenarios)),
            ("CPU time a message, µs, by part", _cpu_bars(scenarios)),
        ]
        below = (
            f"{told['machine']['processor']}, {told['machine']['cores']} cores, sender, database and far end on them"
        )
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(where, f"is not what `all` writes: {type(error).__name__} {error}") from None
    charts = [(title, bars) for title, bars in charts if bars]
    if not charts:
        raise BadInput(where, "holds nothing that could be drawn")
    return _svg(charts, below)


def _drain_bars(scenarios: dict[str, Any]) -> list[Bar]:
    bars = []
    for name, found in scenarios.items():
        if not name.startswith("drain"):
            continue
        peer = found["postfix"]
        is_signed = found["dkim"] != "none"  # the others sign nothing
        for who, rate in (
            ("mta", found["messages_per_second"]),
            ("smtp-source", None if is_signed else found["smtp_source_messages_per_second"]),
            ("Postfix", peer and peer["drain_messages_per_second"]),
        ):
            if rate:
                bars.append(Bar(f"{name}: {who}", [(who, rate)], f"{rate:,.0f}"))
    return bars


def _matrix_bars(scenarios: dict[str, Any]) -> list[Bar]:
    return [
        Bar(
            f"{cell['size_kbytes']} KB{', STARTTLS' if cell['tls'] else ''}{_signed(cell)}",
            [("mta", cell["messages_per_second"])],
            f"{cell['messages_per_second']:,.0f} ({cell['mbytes_per_second']:,.0f} MB/s)",
        )
        for cell in scenarios.get("matrix", {}).get("cells", [])
    ]


def _signed(cell: dict[str, Any]) -> str:
    return "" if cell["dkim"] == "none" else f", DKIM {cell['dkim']}"


def _cpu_bars(scenarios: dict[str, Any]) -> list[Bar]:
    found = [(name, one["cpu_us_per_message"]) for name, one in scenarios.items() if "cpu_us_per_message" in one]
    return [Bar(name, list(cpu.items()), f"{sum(cpu.values()):,.0f}") for name, cpu in found]


def _svg(charts: list[tuple[str, list[Bar]]], below: str) -> str:
    drawn: list[str] = []
    y = 10
    for title, bars in charts:
        drawn.append(f'<text x="10" y="{y + 16}" font-weight="bold">{html.escape(title)}</text>')
        y += 28
        longest = max(sum(length for _, length in bar.pieces) for bar in bars) or 1.0
        names = list(dict.fromkeys(name for bar in bars for name, _ in bar.pieces))
        for at, name in enumerate(names):
            drawn.append(f'<rect x="{10 + at * 110}" y="{y}" width="12" height="12" fill="{COLOURS[name]}"/>')
            drawn.append(f'<text x="{26 + at * 110}" y="{y + 11}">{html.escape(name)}</text>')
        y += LINE
        for bar in bars:
            drawn.append(f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{html.escape(bar.label)}</text>')
            x = float(LABELS)
            for name, length in bar.pieces:
                wide = length / longest * (WIDTH - LABELS - FIGURES)
                drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{BAR}" fill="{COLOURS[name]}"/>')
                x += wide
            drawn.append(f'<text x="{x + 6:.1f}" y="{y + 12}">{html.escape(bar.text)}</text>')
            y += LINE
        y += LINE
    drawn.append(f'<text x="10" y="{y + 4}" fill="#718096">{html.escape(below)}</text>')
    size = f'width="{WIDTH}" height="{y + 20}" viewBox="0 0 {WIDTH} {y + 20}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y + 20}" fill="#fff"/>', *drawn, "</svg>\n"])
