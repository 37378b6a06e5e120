"""Results as a bar chart in SVG: no library, so that anyone can make it again.

One panel for each metric; in it a group of bars for each case, a bar for each side: the median,
with a line from the lowest run to the highest.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from vhostnet.bench.model import OURS, Metric
from vhostnet.bench.results import CaseResult, WorkloadResult
from vhostnet.bench.tables import number, side_summary

WIDTH, LABELS, NUMBERS = 860, 300, 150
BAR, GAP, PANEL = 14, 12, 46
_COLOURS = ("#2a6fbb", "#c7782b", "#6a9a3a", "#8a5aa8", "#888888")


def as_svg(result: WorkloadResult) -> str:
    """Draw every metric of every case."""
    sides = list(dict.fromkeys(side for case in result.cases for side in case.sides))
    sides.sort(key=lambda side: side != OURS)
    colours = {side: _COLOURS[k % len(_COLOURS)] for k, side in enumerate(sides)}
    body: list[str] = []
    y = 30.0
    body.append(_text(10, y, result.title, size=15, weight="bold"))
    if result.disturbances:
        y += 20
        body.append(_text(10, y, "not for publication", colour="#b00020"))
    y += 24
    x = 10.0
    for side in sides:
        body.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colours[side]}"/>')
        body.append(_text(x + 16, y, side))
        x += 36 + 7.0 * len(side)
    for title, cases in _panels(result):
        y += PANEL
        body.append(_text(10, y, title, weight="bold"))
        y += 10
        high = max((top for case, metric in cases for top in _highs(case, metric)), default=0.0)
        for case, metric in cases:
            y = _group(body, y + GAP, case, metric, high, colours)
    height = y + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif">',
            f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _panels(result: WorkloadResult) -> Iterator[tuple[str, list[tuple[CaseResult, Metric]]]]:
    """Metrics of the same name stand on one scale."""
    panels: dict[str, list[tuple[CaseResult, Metric]]] = {}
    for case in result.cases:
        for metric in case.metrics:
            title = f"{metric.title}, {metric.unit} ({metric.better} is better)"
            panels.setdefault(title, []).append((case, metric))
    yield from panels.items()


def _highs(case: CaseResult, metric: Metric) -> Iterator[float]:
    for side in case.sides:
        summary = side_summary(case, side, metric)
        if summary is not None:
            yield summary.high


def _group(
    body: list[str],
    y: float,
    case: CaseResult,
    metric: Metric,
    high: float,
    colours: dict[str, str],
) -> float:
    """Draw one case; returns where the next one may begin."""
    room = WIDTH - LABELS - NUMBERS
    scale = room / high if high > 0 else 0.0
    body.append(_text(10, y + BAR * len(case.sides) / 2 + 4, case.name))
    for side in case.sides:
        summary = side_summary(case, side, metric)
        if summary is None:
            body.append(_text(LABELS + 4, y + BAR - 3, f"{side}: no result", colour="#b00020"))
        else:
            width, middle = summary.median * scale, y + (BAR - 3) / 2
            low, top = LABELS + summary.low * scale, LABELS + summary.high * scale
            body.append(
                f'<rect x="{LABELS}" y="{y:g}" width="{width:.1f}" height="{BAR - 3}" '
                f'fill="{colours[side]}"/>'
            )
            body.append(
                f'<line x1="{low:.1f}" y1="{middle:g}" x2="{top:.1f}" y2="{middle:g}" '
                'stroke="#222222" stroke-width="1.5"/>'
            )
            body.append(_text(max(top, LABELS + width) + 5, y + BAR - 4, number(summary.median)))
        y += BAR
    return y


def _text(
    x: float, y: float, text: str, *, size: int = 12, weight: str = "", colour: str = "#222222"
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}"{bold} fill="{colour}">{escape(text)}</text>'
    )
