"""`vhostnet bench`: measure vhostnet beside what one would use instead.

Not here: the measuring (see `vhostnet.bench`), which is loaded only when it is run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vhostnet.cli.parser import number_within, seconds_within
from vhostnet.errors import UsageError

QUICK_RUNS, QUICK_SECONDS = 1, 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet bench`."""
    parser.description = (
        "Measure vhostnet and its peers in turns, on this machine, and show medians, spreads and\n"
        "ratios.  Peers are programs of Debian's; script/bench installs them.  Needs root."
    )
    parser.epilog = (
        "examples:\n"
        "  vhostnet bench --list\n"
        "  vhostnet bench --quick\n"
        '  vhostnet bench g2d d2g --only "split" --only "64 B"\n'
        "  vhostnet bench --hugepages --publish\n"
        "  vhostnet bench --report results/g2d.json\n"
        "\n"
        "exit status:\n"
        "  0  everything was measured   1  some side gave no number (the table says why)\n"
        "  2  the options make no sense, or --publish was refused   4  this host cannot do it"
    )
    parser.add_argument(
        "names", metavar="WORKLOAD", nargs="*", help="what to measure (default: everything)"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list workloads and cases (with their names: how they are measured), then end",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a few cases, one run of {QUICK_SECONDS:g} s each: to see that it works",
    )
    parser.add_argument(
        "--only",
        metavar="WORDS",
        action="append",
        default=[],
        help="only cases with WORDS in their name; as often as you like",
    )
    parser.add_argument(
        "--runs", metavar="N", type=number_within(1, 1000), help="turns of each case (default: 5)"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=seconds_within(0.1, 600),
        help="length of a measurement (default: 3)",
    )
    parser.add_argument(
        "--hugepages",
        action="store_true",
        help="reserve 2 MiB pages for DPDK as long as it runs (1.1 GB)",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="keep JSON, tables and plots in DIR"
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="keep them in benchmarks/results and docs/benchmarks.md, unless the runs were few, "
        "short or disturbed",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="show the results in FILE (with --publish: publish them) and measure nothing; as "
        "often as you like: parts of one workload become one table",
    )


def main(args: argparse.Namespace) -> int:
    """Measure, list or show; returns the exit status."""
    from vhostnet.bench import run_bench as bench
    from vhostnet.bench.catalogue import chosen
    from vhostnet.bench.runner import Settings

    if args.report:
        if args.names or args.list or args.quick:
            raise UsageError("--report measures nothing: leave out workloads, --list and --quick")
        return bench.publish_files(args.report) if args.publish else bench.report(args.report)
    if args.quick and args.publish:
        raise UsageError("--quick is not for publication")
    workloads = chosen(args.names)
    defaults = (QUICK_RUNS, QUICK_SECONDS) if args.quick else (Settings.runs, Settings.seconds)
    settings = Settings(
        runs=args.runs or defaults[0],
        seconds=args.seconds or defaults[1],
        quick=args.quick,
        only=tuple(args.only),
        hugepages=args.hugepages,
    )
    if args.list:
        print(bench.list_workloads(workloads, settings, explain=bool(args.names)))
        return 0
    try:
        return bench.run_bench(
            bench.BenchOptions(workloads, settings, args.output, publish=args.publish)
        )
    except KeyboardInterrupt:
        return 130
