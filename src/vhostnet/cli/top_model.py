"""What `vhostnet top` shows: rates from two answers of the daemon, and a history to go back in.

No terminal here, and no clock: times are those of the daemon (`clock-ns`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vhostnet.control.client import ControlClient

#: Samples that are kept: an hour, at one a second.
HISTORY = 3600
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One ring in one interval; rates are a second's.

    Attributes:
        fill: chains that wait in the ring for the device, of its size; None for a packed ring.
        latency_ns: from a kick to the first used entry after it: no more than this in half of the
            cases; None if that was not measured, inf if it is beyond the histogram.
        busy: share of the interval that the worker had a processor, 0 to 1; of its queue pair.
    """

    device: str
    queue: str
    running: bool
    packets: float
    bytes: float
    kicks: float
    calls: float
    drops: float
    ring_errors: int
    fill: float | None
    latency_ns: float | None
    busy: float

    @property
    def key(self) -> tuple[str, str]:
        """What it is called in all samples."""
        return self.device, self.queue


@dataclass(frozen=True, slots=True)
class Sample:
    """All queues in one interval; `clock_ns` is its end."""

    clock_ns: int
    rows: tuple[QueueRow, ...]

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        rows = [
            {name.replace("_", "-"): getattr(row, name) for name in QueueRow.__slots__}
            for row in self.rows
        ]
        for row in rows:
            if row["latency-ns"] == float("inf"):  # which JSON cannot say
                row["latency-ns"] = None
        return {"clock-ns": self.clock_ns, "queues": rows}


class Top:
    """Asks a daemon, and remembers."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._before: dict[str, Mapping[str, Any]] = {}
        self.samples: deque[Sample] = deque(maxlen=HISTORY)

    def take(self) -> Sample:
        """Ask now; rates are since the last time, 0 for a device that was not there then."""
        stats = self._client.execute("query-stats")
        rings = {(r["device"], r["queue"]): r for r in self._client.execute("query-vrings")}
        rows: list[QueueRow] = []
        for device in stats:
            rows += _rows(device, self._before.get(device["name"]), rings)
        self._before = {device["name"]: device for device in stats}
        clock = max((int(device["clock-ns"]) for device in stats), default=0)
        sample = Sample(clock, tuple(rows))
        self.samples.append(sample)
        return sample

    def history(self, key: tuple[str, str], at: int, width: int) -> list[float]:
        """Packets a second of one queue, in the *width* samples up to number *at*; oldest first."""
        samples = list(self.samples)[max(0, at + 1 - width) : at + 1]
        return [row.packets for sample in samples for row in sample.rows if row.key == key]


def _rows(
    device: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    rings: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[QueueRow]:
    name = device["name"]
    elapsed = 0.0 if before is None else (device["clock-ns"] - before["clock-ns"]) / 1e9
    rows = []
    for number, pair in enumerate(device["pairs"]):
        old = pair if before is None else before["pairs"][number]
        busy_ns = pair["worker"].get("busy_ns", 0) - old["worker"].get("busy_ns", 0)
        for direction in ("rx", "tx"):
            queue = f"{direction}{number}"
            now, then = pair[direction]["counters"], old[direction]["counters"]
            ring = rings.get((name, queue), {})
            waiting = ring.get("waiting")

            def rate(*names: str, now: Any = now, then: Any = then) -> float:
                moved = sum(now[n] - then.get(n, 0) for n in names)
                return moved / elapsed if elapsed > 0 else 0.0

            rows.append(
                QueueRow(
                    name,
                    queue,
                    bool(ring.get("running")),
                    rate("packets"),
                    rate("bytes"),
                    rate("kicks"),
                    rate("calls"),
                    rate(*(n for n in now if n.startswith("drop"))),
                    int(now["ring_errors"]),
                    None if waiting is None else waiting / max(1, ring["num"]),
                    _median(
                        pair[direction].get("kick_to_used_ns"),
                        old[direction].get("kick_to_used_ns"),
                    ),
                    min(1.0, busy_ns / 1e9 / elapsed) if elapsed > 0 else 0.0,
                )
            )
    return rows


def _median(now: Mapping[str, Any] | None, then: Mapping[str, Any] | None) -> float | None:
    """The bound below which half of a histogram's new values lie; None if there are none."""
    if now is None or then is None:
        return None
    new = [
        (float("inf") if bound is None else float(bound), n - before)
        for (bound, n), (_, before) in zip(now["counts"], then["counts"], strict=True)
    ]
    left = sum(n for _, n in new) / 2
    if left <= 0:
        return None
    for bound, n in new:
        left -= n
        if left <= 0:
            return bound
    return None


def sparkline(values: Sequence[float]) -> str:
    """Eight heights, of the largest value; what moved at all is not drawn as nothing."""
    most = max(values, default=0.0)
    if most <= 0:
        return " " * len(values)
    return "".join(_BLOCKS[0 if v <= 0 else max(1, round(v / most * 8))] for v in values)


def human(number: float) -> str:
    """A rate in at most six characters: 999, 12.3k, 4.56M."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            digits = 0 if not unit else max(0, 2 - len(str(int(number))) + 1)
            return f"{number:.{digits}f}{unit}"
        number /= 1000
    return f"{number:.0f}T"


def _duration(ns: float | None) -> str:
    if ns is None:
        return "-"
    return "long" if ns == float("inf") else f"{ns / 1000:.4g}us"


def cells(row: QueueRow) -> dict[str, str]:
    """A row of the table, by heading."""
    return {
        "device": row.device,
        "queue": row.queue,
        "state": "run" if row.running else "stop",
        "pkt/s": human(row.packets),
        "bit/s": human(row.bytes * 8),
        "drop/s": human(row.drops),
        "kick/s": human(row.kicks),
        "call/s": human(row.calls),
        "fill": "-" if row.fill is None else f"{row.fill:.0%}",
        "kick-used": _duration(row.latency_ns),
        "busy": f"{row.busy:.0%}",
        "errors": str(row.ring_errors),
    }
