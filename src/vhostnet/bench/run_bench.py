"""`vhostnet bench`: choose, measure, show, keep."""

from __future__ import annotations

import signal
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from vhostnet.bench import hugepages, publish
from vhostnet.bench.catalogue import WORKLOADS
from vhostnet.bench.joining import joined
from vhostnet.bench.model import Workload
from vhostnet.bench.results import WorkloadResult, load
from vhostnet.bench.runner import Settings, expected_s, run_workload
from vhostnet.bench.tables import as_markdown
from vhostnet.demo.progress import Progress
from vhostnet.demo.tools import output_of, require
from vhostnet.errors import UsageError

#: Below the current folder, which is the checkout for script/bench.
_COMPILING, _COMPILE_S = "compiling the data path", 900.0
PUBLISHED, DOCS = Path("benchmarks/results"), Path("docs/benchmarks.md")
#: What is measured for publication is kept here case by case, so that hours are not lost.
KEPT = Path("build/bench")


@dataclass(frozen=True)
class BenchOptions:
    """What the user asked for.

    Attributes:
        output: where results go; None: only to standard output.
        publish: into `PUBLISHED` and `DOCS`, if nothing disturbed them.
    """

    workloads: Sequence[Workload]
    settings: Settings
    output: Path | None = None
    publish: bool = False


def list_workloads(
    workloads: Sequence[Workload], settings: Settings, *, explain: bool = False
) -> str:
    """Return what would be run, a line a workload and a case; perhaps with how it is done."""
    lines = []
    for workload in workloads:
        lines.append(f"{workload.name}: {workload.title}")
        if explain:
            lines.append(textwrap.fill(workload.how, 96, break_long_words=False))
        for case in settings.chosen(workload):
            mark = "  [quick]" if case.quick else ""
            lines.append(f"  {case.name}  ({', '.join(case.sides)}){mark}")
    return "\n".join(lines)


def run_bench(options: BenchOptions) -> int:
    """Measure all workloads; returns 0, or 1 if some side gave no number at all.

    Raises:
        UsageError: nothing is to be done, or nothing may be published.
        HostError: a program is missing.
    """
    plan = expected_s(options.workloads, options.settings)
    if not plan:
        raise UsageError("no case has all of these words in its name (see --list)")
    for workload in options.workloads:
        for program in workload.needs:
            require(program)
    if options.publish and not DOCS.exists():
        raise UsageError(f"--publish: there is no {DOCS} here; run it in the checkout")
    before = signal.signal(signal.SIGTERM, _interrupt)
    results = []
    try:
        with ExitStack() as stack:
            if options.settings.hugepages:
                stack.enter_context(hugepages.reserved())
            folder = options.output or (KEPT if options.publish else _temporary(stack))
            progress = Progress({_COMPILING: 10.0, **plan})
            with progress.step(_COMPILING):
                # Else the first runs would be compiling, beside a peer that waits.
                output_of([sys.executable, "-m", "vhostnet", "warm"], timeout=_COMPILE_S)
            for workload in options.workloads:
                if not options.settings.chosen(workload):
                    continue
                result = run_workload(
                    workload,
                    options.settings,
                    progress,
                    lambda result: publish.write_all(result, folder),
                )
                results.append(result)
                print(f"\n{result.title}\n\n{as_markdown(result)}", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.publish:
        _publish(results)
    return 0 if all(_answered(result) for result in results) else 1


def report(files: Sequence[Path]) -> int:
    """Show results that were kept, parts of a workload as one; returns the exit status."""
    for result in joined([load(place) for place in files]):
        print(f"{result.title}\n\n{as_markdown(result)}\n")
    return 0


def publish_files(files: Sequence[Path]) -> int:
    """Publish results that were kept, parts of a workload as one; returns the exit status."""
    _publish(joined([load(place) for place in files]))
    return 0


def _publish(results: Sequence[WorkloadResult]) -> None:
    """Publish what nothing disturbed; complain about the rest afterwards."""
    good = [result for result in results if not result.disturbances]
    for result in good:
        publish.write_all(result, PUBLISHED)
    if good:
        publish.write_docs(PUBLISHED, DOCS)
        names = ", ".join(result.workload for result in good)
        print(f"published in {PUBLISHED} and {DOCS}: {names}", file=sys.stderr)
    for result in results:
        publish.check_publishable(result)


def _temporary(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vhostnet-bench-")))


def _answered(result: WorkloadResult) -> bool:
    return all(
        any(run is not None for run in runs)
        for case in result.cases
        for side in case.sides.values()
        for runs in side.runs.values()
    )


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    """Leave on SIGTERM as on Ctrl-C: through all the clean-up."""
    raise KeyboardInterrupt


__all__ = ["WORKLOADS", "BenchOptions", "list_workloads", "publish_files", "report", "run_bench"]
