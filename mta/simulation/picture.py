"""Rate and queue by site over time, as an SVG that any browser shows, on a dark page as on a light one."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Final

from mta.simulation.report import Report, Series, SiteReport

WIDTH: Final = 900
LABELS: Final = 170  # pixels left of the strips
FIGURES: Final = 110  # and right of them
STRIP: Final = 58
GAP: Final = 18
STRIPS_MAX: Final = 14
POINTS: Final = 300
RATE: Final = "#4a90d9"
QUEUE: Final = "#d6862e"
TICKS: Final = 6

_STYLE: Final = """<style>
text { fill: #4a5568; } .faint { fill: #718096; } .axis { stroke: #a0aec0; stroke-width: 1; }
@media (prefers-color-scheme: dark) { text { fill: #cbd5e0; } .faint { fill: #a0aec0; } .axis { stroke: #4a5568; } }
</style>"""


def picture(report: Report) -> str:
    """The SVG: a strip for each provider, those with the most recipients first."""
    by_name = {site.site: site for site in report.sites}
    ordered = sorted(
        (series for series in report.series if by_name[series.site].recipients),
        key=lambda series: -by_name[series.site].recipients,
    )[:STRIPS_MAX]
    steps = max((_used(series) for series in ordered), default=1)
    drawn = [
        f'<text x="10" y="20" font-weight="bold">{html.escape(report.scenario)}: {report.sent:,} attempts in '
        f"{duration(report.ended_s)}, {report.violations} violations</text>",
        f'<rect x="{LABELS}" y="30" width="12" height="12" fill="{RATE}"/>'
        f'<text x="{LABELS + 18}" y="40">rate</text>'
        f'<rect x="{LABELS + 70}" y="30" width="12" height="12" fill="{QUEUE}"/>'
        f'<text x="{LABELS + 88}" y="40">without an outcome yet</text>',
    ]
    y = 56
    for series in ordered:
        drawn += _strip(series, by_name[series.site], steps, report.step_s, y)
        y += STRIP + GAP
    drawn += _axis(steps * report.step_s, y)
    height = y + 30
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, _STYLE, *drawn, "</svg>\n"])


def _used(series: Series) -> int:
    """Steps until nothing was left."""
    steps = len(series.attempts)
    while steps > 1 and not series.attempts[steps - 1] and not series.queue[steps - 1]:
        steps -= 1
    return steps


def _strip(series: Series, site: SiteReport, steps: int, step_s: float, y: int) -> list[str]:
    rates = _thinned([count / step_s for count in series.attempts[:steps]], is_mean=True)
    queue = _thinned([float(count) for count in series.queue[:steps]], is_mean=False)
    below = y + STRIP
    peak, most = max(rates, default=0.0) or 1.0, max(queue, default=0.0) or 1.0
    area = " ".join(_points(rates, peak, y))
    right = LABELS + _plot_width() * max(0, len(rates) - 1) / max(1, len(rates) - 1)
    return [
        f'<text x="{LABELS - 10}" y="{y + 14}" text-anchor="end" font-weight="bold">'
        f"{html.escape(site.site[:24])}</text>",
        f'<text class="faint" x="{LABELS - 10}" y="{y + 30}" text-anchor="end">{site.recipients:,} recipients</text>',
        f'<text class="faint" x="{LABELS - 10}" y="{y + 46}" text-anchor="end">{html.escape(_main_cause(site))}</text>',
        f'<polygon fill="{RATE}" fill-opacity="0.55" points="{LABELS},{below} {area} {right:.1f},{below}"/>',
        f'<polyline fill="none" stroke="{QUEUE}" stroke-width="1.5" points="{" ".join(_points(queue, most, y))}"/>',
        f'<line class="axis" x1="{LABELS}" y1="{below}" x2="{LABELS + _plot_width()}" y2="{below}"/>',
        f'<text x="{WIDTH - FIGURES + 8}" y="{y + 14}" fill="{RATE}">peak {peak:,.1f}/s</text>',
        f'<text class="faint" x="{WIDTH - FIGURES + 8}" y="{y + 30}">mean {site.mean_per_s:,.1f}/s</text>',
        f'<text class="faint" x="{WIDTH - FIGURES + 8}" y="{y + 46}">done {duration(site.done_s)}</text>',
    ]


def _main_cause(site: SiteReport) -> str:
    held = next((one for one in site.held if one.limit != "not due yet"), None)
    return "" if held is None else held.limit.removesuffix("_max").replace("_", " ")[:26]


def _plot_width() -> int:
    return WIDTH - LABELS - FIGURES


def _points(values: Sequence[float], most: float, y: int) -> list[str]:
    across = _plot_width() / max(1, len(values) - 1)
    return [f"{LABELS + at * across:.1f},{y + STRIP * (1 - value / most):.1f}" for at, value in enumerate(values)]


def _thinned(values: list[float], *, is_mean: bool) -> list[float]:
    """At most `POINTS` of them: means, or the last of each stretch."""
    if len(values) <= POINTS:
        return values
    borders = [len(values) * at // POINTS for at in range(POINTS + 1)]
    stretches = [values[a:b] for a, b in itertools.pairwise(borders)]
    return [sum(one) / len(one) if is_mean else one[-1] for one in stretches]


def _axis(span_s: float, y: int) -> list[str]:
    drawn = []
    for tick in range(TICKS + 1):
        x = LABELS + _plot_width() * tick / TICKS
        drawn.append(
            f'<text class="faint" x="{x:.1f}" y="{y + 8}" text-anchor="middle">{duration(span_s * tick / TICKS)}</text>'
        )
    return drawn


def duration(seconds: float) -> str:
    """``12.5 s``, ``3:20 min``, ``7:05 h``, ``2.5 d``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3_600:
        return f"{int(seconds // 60)}:{int(seconds % 60):02} min"
    if seconds < 2 * 86_400:
        return f"{int(seconds // 3_600)}:{int(seconds % 3_600 // 60):02} h"
    return f"{seconds / 86_400:.1f} d"
