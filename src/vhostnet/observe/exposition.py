"""The statistics of all devices as Prometheus reads them.

A name says what is counted, labels say of which: `device`, `queue` (the pair's number) and, of a
ring, `direction` as the guest sees it: rx is to the guest, tx from it.  Names are a contract with
whoever has made a dashboard or an alert of them; tests/unit/observe freezes them.

Source: https://prometheus.io/docs/practices/naming/ (base units, `_total`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from vhostnet import __version__
from vhostnet.datapath.layout import BACKEND_COUNTERS, COUNTERS, WORKER_COUNTERS

from .statistics import Observed, device_statistics

CONTENT_TYPE = CONTENT_TYPE_LATEST
_NS = 1e9

#: Ring counters that have a metric of their own; the others are the values of a label below.
_RING = {
    "packets": "packets",
    "bytes": "bytes",
    "gso_packets": "gso_packets",
    "chains": "chains",
    "kicks": "kicks",
    "kicks_avoided": "kicks_avoided",
    "calls": "calls",
    "calls_suppressed": "calls_suppressed",
    "iotlb_misses": "iotlb_misses",
}
_WAITS = {"waits_no_buffers": "no_buffers", "waits_backend_full": "backend_full"}
_DROPS = {name: name.removeprefix("drop_") for name in COUNTERS if name.startswith("drop_")}
_WORKER = {
    "polls": "polls",
    "wakeups": "wakeups",
    "runs": "handler_runs",
    "spins": "busy_polls",
    "spin_hits": "busy_poll_hits",
}
_BACKEND = {
    "thrown_away": "thrown_away_packets",
    "read_errors": "read_errors",
    "write_errors": "write_errors",
    "merged_frames": "merged_frames",
    "merged_segments": "merged_segments",
    "stashed_segments": "stashed_segments",
}


def render(devices: Iterable[Observed]) -> bytes:
    """The text format of all of it, now."""
    registry = CollectorRegistry()
    registry.register(_Collector(devices))
    return generate_latest(registry)


class _Collector:
    """What prometheus_client asks for metrics."""

    def __init__(self, devices: Iterable[Observed]) -> None:
        self._devices = devices

    def describe(self) -> list[Metric]:
        """Nothing beforehand."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, each with its samples of all devices."""
        trees = [device_statistics(device) for device in self._devices]
        families = _families()
        families["build_info"].add_metric([__version__], 1)
        families["devices"].add_metric([], len(trees))
        for tree in trees:
            for direction, count in tree["interface_drops"].items():
                at = [str(tree["name"]), direction]
                families["interface_dropped_packets"].add_metric(at, count)
            for number, pair in enumerate(tree["pairs"]):
                at = [str(tree["name"]), str(number)]
                for direction in ("rx", "tx"):
                    _add_ring(families, [*at, direction], pair[direction])
                _add_worker(families, at, pair["worker"])
                for key, count in pair["backend"].items():
                    families[f"backend_{_BACKEND[key]}"].add_metric(at, count)
        yield from families.values()


def _families() -> dict[str, Any]:
    """Every metric there is, empty, by name without its prefix."""
    ring = ["device", "queue", "direction"]
    pair = ["device", "queue"]
    found: dict[str, Any] = {}

    def counter(name: str, text: str, labels: list[str]) -> None:
        found[name] = CounterMetricFamily(f"vhostnet_{name}", text, labels=labels)

    def gauge(name: str, text: str, labels: list[str]) -> None:
        found[name] = GaugeMetricFamily(f"vhostnet_{name}", text, labels=labels)

    def histogram(name: str, text: str) -> None:
        found[name] = HistogramMetricFamily(f"vhostnet_{name}", text, labels=ring)

    gauge("build_info", "always 1; the label says the version of vhostnet", ["version"])
    gauge("devices", "network cards, or open files of the character device", [])
    gauge("queue_active", "1 while the ring has a backend", ring)
    gauge("queue_size", "entries of the ring", ring)
    for key, name in _RING.items():
        counter(f"queue_{name}", COUNTERS[key], ring)
    counter("queue_waits", "times that a packet had to wait, by reason", [*ring, "reason"])
    counter("queue_dropped_packets", "packets thrown away, by cause", [*ring, "cause"])
    counter("queue_ring_errors", "times that the ring was found broken, by rule", [*ring, "rule"])
    histogram("queue_batch_packets", "packets moved in one run of a handler")
    histogram(
        "queue_kick_to_used_seconds", "from a kick's arrival to the first used entry that it brings"
    )
    for key, name in _WORKER.items():
        counter(f"worker_{name}", f"worker: {WORKER_COUNTERS[key]}", pair)
    counter("worker_busy_seconds", "time that the worker thread had a processor", pair)
    counter("worker_idle_seconds", "time of the worker thread's life without a processor", pair)
    for key, name in _BACKEND.items():
        counter(f"backend_{name}", f"backend: {BACKEND_COUNTERS[key]}", pair)
    counter(
        "interface_dropped_packets",
        "packets that the kernel dropped at the TAP, by the guest's direction",
        ["device", "direction"],
    )
    return found


def _add_ring(families: Mapping[str, Any], at: list[str], ring: Mapping[str, Any]) -> None:
    families["queue_active"].add_metric(at, int(ring["active"]))
    families["queue_size"].add_metric(at, ring["size"])
    counters = ring["counters"]
    for key, name in _RING.items():
        families[f"queue_{name}"].add_metric(at, counters[key])
    for key, reason in _WAITS.items():
        families["queue_waits"].add_metric([*at, reason], counters[key])
    for key, cause in _DROPS.items():
        families["queue_dropped_packets"].add_metric([*at, cause], counters[key])
    for rule, count in ring["errors"].items():
        families["queue_ring_errors"].add_metric([*at, rule], count)
    _add_histogram(families["queue_batch_packets"], at, ring["batch_packets"], 1)
    _add_histogram(families["queue_kick_to_used_seconds"], at, ring["kick_to_used_ns"], _NS)


def _add_histogram(family: Any, at: list[str], reading: Mapping[str, Any], unit: float) -> None:
    buckets = []
    n = 0
    for bound, count in reading["counts"]:
        n += count
        buckets.append(("+Inf" if bound is None else str(bound / unit), n))
    family.add_metric(at, buckets, reading["total"] / unit)


def _add_worker(families: Mapping[str, Any], at: list[str], worker: Mapping[str, int]) -> None:
    if not worker:  # there was none yet
        return
    for key, name in _WORKER.items():
        families[f"worker_{name}"].add_metric(at, worker[key])
    for name in ("busy", "idle"):
        families[f"worker_{name}_seconds"].add_metric(at, worker[f"{name}_ns"] / _NS)
