"""The demo's result: as a table to read and as JSON to keep.

Not here: measuring.  Rates are in Mbit/s; a ratio above 1 means vhostnet is the faster one.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from vhostnet.demo.measure import DIRECTIONS, Direction, PingResult

_TITLES: dict[Direction, str] = {
    "to_host": "TCP, guest to host",
    "to_guest": "TCP, host to guest",
}


@dataclass
class Report:
    """All that was measured; `vhostnet_mbps` and `qemu_mbps` hold one number a run."""

    ping: PingResult
    accel: str
    versions: dict[str, str]
    seconds_per_run: float
    vhostnet_mbps: dict[Direction, list[float]] = field(default_factory=dict)
    qemu_mbps: dict[Direction, list[float]] = field(default_factory=dict)

    def add(self, card: str, direction: Direction, mbps: float) -> None:
        """Add one run of `card` ("vhostnet" or "qemu")."""
        runs = self.vhostnet_mbps if card == "vhostnet" else self.qemu_mbps
        runs.setdefault(direction, []).append(mbps)

    def as_json(self) -> dict[str, Any]:
        """Return the result as plain data, medians first, with every single run."""
        tcp = {}
        for direction in DIRECTIONS:
            ours, theirs = self._medians(direction)
            tcp[direction] = {
                "vhostnet_mbps": round(ours, 1),
                "qemu_mbps": round(theirs, 1),
                "ratio": round(ours / theirs, 3) if theirs else 0.0,
                "runs": {
                    "vhostnet_mbps": [round(run, 1) for run in self.vhostnet_mbps[direction]],
                    "qemu_mbps": [round(run, 1) for run in self.qemu_mbps[direction]],
                },
            }
        return {
            "ping": {
                "sent": self.ping.sent,
                "lost": self.ping.lost,
                "average_ms": self.ping.average_ms,
            },
            "tcp": tcp,
            "accel": self.accel,
            "seconds_per_run": self.seconds_per_run,
            "versions": self.versions,
        }

    def as_table(self) -> str:
        """Return the result as a table of at most 80 columns."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        loss = f"{self.ping.sent} sent, {self.ping.lost} lost, {self.ping.average_ms:.2f} ms"
        rows = [f"{'':20}{'vhostnet':>14}{'QEMU alone':>14}{'ratio':>8}"]
        for direction in DIRECTIONS:
            ours, theirs = self._medians(direction)
            ratio = f"{ours / theirs:.2f}" if theirs else "-"
            rows.append(f"{_TITLES[direction]:20}{ours:7.0f} Mbit/s{theirs:7.0f} Mbit/s{ratio:>8}")
        runs = len(self.vhostnet_mbps[DIRECTIONS[0]])
        how = "one run" if runs == 1 else f"median of {runs} runs"
        rows.append(f"{'ping, guest to host':20}{loss}")
        rows.append("")
        rows.append(f"{how} of {self.seconds_per_run:g} s each, in turns, accelerator {self.accel}")
        rows.append(versions)
        return "\n".join(rows)

    def _medians(self, direction: Direction) -> tuple[float, float]:
        ours, theirs = self.vhostnet_mbps[direction], self.qemu_mbps[direction]
        return statistics.median(ours), statistics.median(theirs)
