"""What the benchmark is made of: workloads, their cases, the sides that are compared.

A *workload* is one question ("how many packets a second does the device take?"), a *case* is one
setting of it (ring format, features, size), a *side* is one of those who answer: ours or a peer.
A side is a function that starts everything, measures for some seconds, ends everything and
returns numbers; whoever calls it decides on turns and repetitions.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

#: The name of our side, in every case.
OURS = "vhostnet"


@dataclass(frozen=True)
class Metric:
    """One number that every side of a case returns.

    Attributes:
        key: in the results.
        title: for readers.
        unit: likewise.
        better: what is good.
        limit: what ours must not exceed (`better` is "lower"); None: nothing.
        bars: peer -> the ratio to reach, where above 1 means that we are the better one.
    """

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    bars: Mapping[str, float] = field(default_factory=dict)
    limit: float | None = None


@dataclass
class Run:
    """What a side is given for one run.

    Attributes:
        seconds: how long to measure.
        device_cpu, driver_cpu: the cores for the two ends.
        hugepages: DPDK may have 2 MiB pages.
        folder: of this run's own, removed afterwards.
        commands: what was started, to be filled by `note`; goes into the results.
    """

    seconds: float
    device_cpu: int
    driver_cpu: int
    hugepages: bool
    folder: Path
    commands: list[str] = field(default_factory=list)

    def note(self, argv: Sequence[str]) -> None:
        """Remember a command line, for readers of the results."""
        self.commands.append(shlex.join(argv).replace(str(self.folder), "DIR"))


Side = Callable[[Run], Mapping[str, float]]


@dataclass(frozen=True)
class Case:
    """One setting of a workload.

    Attributes:
        name: unique in its workload.
        parameters: what the name says, for machines.
        metrics: what every side returns; the first is the one that matters most.
        sides: name -> side; ours is `OURS`, the others are peers.
        busy_threads: that are never idle meanwhile; with more of them than cores there is no bar.
        quick: part of `--quick`.
        start_s, parts: a guess of how long a run takes beside measuring, and how often it
            measures.
    """

    name: str
    parameters: Mapping[str, str | int]
    metrics: tuple[Metric, ...]
    sides: Mapping[str, Side]
    busy_threads: int = 2
    quick: bool = False
    start_s: float = 3.0
    parts: int = 1


@dataclass(frozen=True)
class Workload:
    """One question.

    Attributes:
        name: on the command line.
        title: one line.
        how: how the numbers are made, for the docs.
        needs: programs, as `demo.tools.require` knows them.
        cases: makes the cases; nothing is started by it.
    """

    name: str
    title: str
    how: str
    needs: tuple[str, ...]
    cases: Callable[[], Sequence[Case]]
