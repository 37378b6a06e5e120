"""Results as Markdown tables: to read in a terminal and to stand in the docs.

Every number is computed here from the runs in the results; nothing is typed.
"""

from __future__ import annotations

from vhostnet.bench.model import OURS, Metric
from vhostnet.bench.results import CaseResult, WorkloadResult
from vhostnet.bench.statistics import Summary, ratios, summarise

NONE = "–"


def verdict(result: WorkloadResult, case: CaseResult, metric: Metric) -> str:
    """Whether the bars were reached, and the limit kept."""
    if not metric.bars and metric.limit is None:
        return ""
    if too_many_threads(result, case):
        return "no bar: more busy threads than cores"
    found = peer_ratios(case, metric)
    parts = []
    if metric.limit is not None:
        mine = side_summary(case, OURS, metric)
        kept = mine is not None and mine.median <= metric.limit
        answer = "not measured" if mine is None else "kept" if kept else "**not kept**"
        parts.append(f"≤ {metric.limit:g}: {answer}")
    for peer, bar in metric.bars.items():
        ratio = found.get(peer)
        if ratio is None:
            answer = "not measured"
        else:
            answer = "reached" if ratio.median >= bar else "**not reached**"
        whose = f" to {peer}" if len(found) > 1 else ""
        parts.append(f"≥ {bar:g}{whose}: {answer}")
    return "; ".join(parts)


def too_many_threads(result: WorkloadResult, case: CaseResult) -> bool:
    """Tell whether more threads were busy than there are cores to run them."""
    return case.busy_threads > int(result.environment.get("cores", 0))


def peer_ratios(case: CaseResult, metric: Metric) -> dict[str, Summary | None]:
    """Our ratio to every peer (above 1: we are better), None where one did not answer."""
    mine = side_runs(case, OURS, metric)
    found: dict[str, Summary | None] = {}
    for name in case.sides:
        if name != OURS:
            each = ratios(
                [run or 0.0 for run in mine],
                [run or 0.0 for run in side_runs(case, name, metric)],
                metric.better,
            )
            found[name] = summarise(each) if each else None
    return found


def side_runs(case: CaseResult, side: str, metric: Metric) -> list[float | None]:
    """All runs of a side, None for those that failed."""
    return case.sides[side].runs.get(metric.key, []) if side in case.sides else []


def side_summary(case: CaseResult, side: str, metric: Metric) -> Summary | None:
    """The summary of a side's runs, None if it has none."""
    values = [run for run in side_runs(case, side, metric) if run is not None]
    return summarise(values) if values else None


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    while digits >= 3 and digits < 9 and round(size, digits) < 100 * 10**-digits:
        digits += 1
    return f"{value:.{digits}f}"


def count(n: int, what: str) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def as_markdown(result: WorkloadResult) -> str:
    """Return one workload's table and what has to be said about it."""
    sides = list(dict.fromkeys(side for case in result.cases for side in case.sides))
    peers = [side for side in sides if side != OURS]
    head = ["case", "", *sides, *(f"ratio to {peer}" for peer in peers)]
    has_bars = any(verdict(result, case, m) for case in result.cases for m in case.metrics)
    if has_bars:
        head.append("bar")
    rows = [head, ["---"] * 2 + ["---:"] * (len(sides) + len(peers)) + ["---"] * has_bars]
    for case in result.cases:
        for metric in case.metrics:
            found = peer_ratios(case, metric)
            row = [case.name, f"{metric.title}, {metric.unit}"]
            row += [_cell(side_summary(case, side, metric)) for side in sides]
            row += [_cell(found.get(peer)) for peer in peers]
            if has_bars:
                row.append(verdict(result, case, metric))
            rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *notes(result)])


def notes(result: WorkloadResult) -> list[str]:
    """What a reader has to know about the table."""
    settings, environment = result.settings, result.environment
    versions = ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items())
    lines = [
        f"Median (lowest–highest) of {count(settings['runs'], 'run')} of "
        f"{settings['seconds']:g} s, in turns; "
        "ratios are taken within a turn, above 1 vhostnet is the better one.",
        f"{environment.get('cpu')}, {environment.get('cores')} cores; Linux "
        f"{environment.get('kernel')}; {versions}; revision "
        f"{str(environment.get('revision'))[:12]}, {str(environment.get('date'))[:10]}; "
        f"2 MiB pages {'on' if settings.get('hugepages') else 'off'}.",
    ]
    crowded = [case.name for case in result.cases if too_many_threads(result, case)]
    if crowded:
        lines.append(f"More busy threads than cores: {'; '.join(crowded)}.")
    for case in result.cases:
        for name, side in case.sides.items():
            if side.failures:
                lines.append(
                    f"Failed: {case.name}, {name}, {count(len(side.failures), 'time')}: "
                    f"{side.failures[0]}"
                )
    if result.disturbances:
        lines.insert(0, f"**Not for publication**: {'; '.join(result.disturbances)}.")
    return lines


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return NONE
    if summary.n == 1:
        return number(summary.median)
    return f"{number(summary.median)} ({number(summary.low)}–{number(summary.high)})"
