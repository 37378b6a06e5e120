"""The results of one workload, as JSON: every single run, where and how it was made.

Nothing derived is stored; medians, ratios and verdicts are computed by who shows them.  Reading
checks everything: the files are committed and edited by people.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vhostnet.bench.model import OURS, Metric
from vhostnet.errors import UsageError

SCHEMA = 1


@dataclass
class SideResult:
    """All runs of one side.

    Attributes:
        runs: metric's key -> one number a turn; None where the run failed.
        commands: what its first run started.
        failures: what went wrong, one line each.
    """

    runs: dict[str, list[float | None]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass
class CaseResult:
    """One case with all its sides; `sides` has ours, if it ran at all."""

    name: str
    parameters: dict[str, str | int]
    metrics: list[Metric]
    busy_threads: int
    sides: dict[str, SideResult] = field(default_factory=dict)


@dataclass
class WorkloadResult:
    """What a results file holds.

    Attributes:
        workload, title, how: as in `model.Workload`.
        settings: runs, seconds a run, cores, options.
        environment: see `environment.describe`.
        disturbances: why these numbers must not be published; empty: they may.
    """

    workload: str
    title: str
    how: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    cases: list[CaseResult] = field(default_factory=list)
    disturbances: list[str] = field(default_factory=list)

    def save(self, place: Path) -> None:
        """Write the file in one step."""
        text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        temporary.replace(place)


def load(place: Path) -> WorkloadResult:
    """Read and check a results file.

    Raises:
        UsageError: it cannot be read or is not one; the message says where.
    """
    try:
        data = json.loads(place.read_text())
    except OSError as err:
        raise UsageError(f"{place}: {err.strerror}") from None
    except ValueError as err:
        raise UsageError(f"{place}: {err}") from None
    return from_json(data, str(place))


def from_json(data: Any, where: str) -> WorkloadResult:
    """Turn a parsed file into results, or raise UsageError."""
    check = _Checker(where)
    top = check.mapping(data, "")
    if top.get("schema") != SCHEMA:
        raise UsageError(f"{where}: schema {top.get('schema')!r}, this program reads {SCHEMA}")
    return WorkloadResult(
        workload=check.text(top, "workload"),
        title=check.text(top, "title"),
        how=check.text(top, "how"),
        settings=check.mapping(top.get("settings"), "settings"),
        environment=check.mapping(top.get("environment"), "environment"),
        disturbances=check.texts(top, "disturbances"),
        cases=[_case(check, case, k) for k, case in enumerate(check.items(top, "cases"))],
    )


def _case(check: _Checker, data: Any, number: int) -> CaseResult:
    at = f"cases[{number}]"
    case = check.mapping(data, at)
    metrics = [_metric(check, metric, at) for metric in check.items(case, "metrics")]
    sides = {
        name: _side(check, side, f"{at}.sides.{name}", metrics)
        for name, side in check.mapping(case.get("sides"), f"{at}.sides").items()
    }
    if OURS not in sides:
        raise UsageError(f"{check.where}: {at}: there is no side {OURS!r}")
    parameters = check.mapping(case.get("parameters"), f"{at}.parameters")
    threads = check.number(case.get("busy_threads"), f"{at}.busy_threads")
    return CaseResult(check.text(case, "name"), parameters, metrics, int(threads), sides)


def _metric(check: _Checker, data: Any, at: str) -> Metric:
    metric = check.mapping(data, f"{at}.metrics")
    better: Literal["higher", "lower"]
    if metric.get("better") == "higher":
        better = "higher"
    elif metric.get("better") == "lower":
        better = "lower"
    else:
        raise UsageError(f"{check.where}: {at}.metrics: better is {metric.get('better')!r}")
    bars = check.mapping(metric.get("bars"), f"{at}.metrics.bars")
    limit = metric.get("limit")
    return Metric(
        check.text(metric, "key"),
        check.text(metric, "title"),
        check.text(metric, "unit"),
        better,
        {peer: check.number(bar, f"{at}.metrics.bars.{peer}") for peer, bar in bars.items()},
        None if limit is None else check.number(limit, f"{at}.metrics.limit"),
    )


def _side(check: _Checker, data: Any, at: str, metrics: list[Metric]) -> SideResult:
    side = check.mapping(data, at)
    runs = {
        key: [None if v is None else check.number(v, f"{at}.runs.{key}") for v in values]
        for key, values in check.mapping(side.get("runs"), f"{at}.runs").items()
    }
    unknown = runs.keys() - {metric.key for metric in metrics}
    if unknown:
        raise UsageError(f"{check.where}: {at}.runs: {sorted(unknown)[0]!r} is no metric")
    return SideResult(runs, check.texts(side, "commands"), check.texts(side, "failures"))


class _Checker:
    """Takes values apart; a wrong type is a UsageError that names the file and the place."""

    def __init__(self, where: str) -> None:
        self.where = where

    def _refuse(self, at: str, value: object, wanted: str) -> UsageError:
        return UsageError(f"{self.where}: {at or 'the file'} is {value!r:.40}, not {wanted}")

    def mapping(self, value: object, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._refuse(at, value, "an object")
        return value

    def items(self, of: Mapping[str, Any], key: str) -> list[Any]:
        value = of.get(key)
        if not isinstance(value, list):
            raise self._refuse(key, value, "a list")
        return value

    def text(self, of: Mapping[str, Any], key: str) -> str:
        value = of.get(key)
        if not isinstance(value, str):
            raise self._refuse(key, value, "a text")
        return value

    def texts(self, of: Mapping[str, Any], key: str) -> list[str]:
        return [self.text({key: item}, key) for item in self.items(of, key)]

    def number(self, value: object, at: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refuse(at, value, "a number")
        return float(value)
