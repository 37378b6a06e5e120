"""Runs the cases of a workload in turns: ours, peer, ours, peer, ...

A side that fails gets no number for that turn, and its reason goes into the results; after
`PATIENCE` failures it is left alone.  What may not be published is found out here, too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vhostnet.bench import environment
from vhostnet.bench.model import Case, Run, Workload
from vhostnet.bench.results import CaseResult, SideResult, WorkloadResult
from vhostnet.demo.progress import Progress
from vhostnet.errors import HostError

#: Fewer runs or shorter ones are for trying out.
MIN_RUNS, MIN_SECONDS = 5, 2.0
PATIENCE = 2
# How often to look whether others have come to rest, before numbers count as disturbed.
_LOOKS = 12


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        runs: turns of each case.
        seconds: of one measurement.
        quick: only the cases that are marked so.
        only: only cases whose name contains all of these words.
        hugepages: DPDK may have 2 MiB pages (they must be reserved).
    """

    runs: int = MIN_RUNS
    seconds: float = 3.0
    quick: bool = False
    only: tuple[str, ...] = ()
    hugepages: bool = False

    def chosen(self, workload: Workload) -> list[Case]:
        """The cases of a workload that these settings ask for."""
        return [
            case
            for case in workload.cases()
            if (case.quick or not self.quick) and all(word in case.name for word in self.only)
        ]


def expected_s(workloads: Sequence[Workload], settings: Settings) -> dict[str, float]:
    """Every step of a run by name, with a guess of its seconds, for `Progress`."""
    return {
        _step(workload, case, side, turn): case.parts * settings.seconds + case.start_s
        for workload in workloads
        for case in settings.chosen(workload)
        for turn in range(settings.runs)
        for side in case.sides
    }


def _step(workload: Workload, case: Case, side: str, turn: int) -> str:
    return f"{workload.name} {case.name}: {side}, run {turn + 1}"


def run_workload(
    workload: Workload,
    settings: Settings,
    progress: Progress,
    keep: Callable[[WorkloadResult], None] = lambda _: None,
    *,
    busy: Callable[[], float] = environment.busy_cores,
) -> WorkloadResult:
    """Measure a workload.

    Args:
        keep: called with what there is after each case, so that a long run is not lost.
        busy: how many cores others use, asked before every run.
    """
    cpus = sorted(os.sched_getaffinity(0))
    result = WorkloadResult(
        workload.name,
        workload.title,
        workload.how,
        settings={**asdict(settings), "only": list(settings.only), "cpus": [cpus[0], cpus[-1]]},
        environment=environment.describe(),
    )
    others = 0.0
    for case in settings.chosen(workload):
        measured = CaseResult(
            case.name,
            dict(case.parameters),
            list(case.metrics),
            case.busy_threads,
            {side: SideResult() for side in case.sides},
        )
        result.cases.append(measured)
        for turn in range(settings.runs):
            for side in case.sides:
                if others <= environment.QUIET:
                    others = max(others, _wait_for_quiet(busy))
                with progress.step(_step(workload, case, side, turn)):
                    failure = _run_side(case, side, measured.sides[side], settings, cpus)
                if failure:
                    progress.say(f"    failed: {failure}")
        result.disturbances = disturbances(result, others)
        keep(result)
    return result


def _wait_for_quiet(busy: Callable[[], float]) -> float:
    """Give others (and what we have just ended) a moment; returns the least that was seen."""
    least = busy()
    for _ in range(_LOOKS - 1):
        if least <= environment.QUIET:
            break
        least = min(least, busy())
    return least


def _run_side(
    case: Case, name: str, into: SideResult, settings: Settings, cpus: Sequence[int]
) -> str:
    """Measure one side once; returns why it failed, or nothing."""
    values: dict[str, float] = {}
    failure = ""
    if len(into.failures) < PATIENCE:
        with tempfile.TemporaryDirectory(prefix="vhostnet-bench-") as folder:
            run = Run(settings.seconds, cpus[0], cpus[-1], settings.hugepages, Path(folder))
            try:
                values = dict(case.sides[name](run))
            except HostError as err:
                failure = " ".join(str(err).split())[-400:].replace(folder, "DIR")
                into.failures.append(failure)
            into.commands = into.commands or run.commands
    for metric in case.metrics:
        into.runs.setdefault(metric.key, []).append(values.get(metric.key))
    return failure


def disturbances(result: WorkloadResult, others: float) -> list[str]:
    """Why the numbers must not be published; empty if they may."""
    found = []
    runs, seconds = result.settings["runs"], result.settings["seconds"]
    if runs < MIN_RUNS:
        found.append(f"only {runs} of {MIN_RUNS} runs")
    if seconds < MIN_SECONDS:
        found.append(f"{seconds:g} s a run instead of {MIN_SECONDS:g} s or more")
    if result.environment["uncommitted_changes"]:
        found.append("the sources differ from the git revision")
    if others > environment.QUIET:
        found.append(f"other programs used up to {others:.2f} cores before a run")
    return found
