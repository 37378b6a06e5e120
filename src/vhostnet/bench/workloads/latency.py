"""latency: one packet there and back, alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from vhostnet.bench import bare
from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import dpdk_device, our_device, our_driver
from vhostnet.bench.statistics import percentile
from vhostnet.bench.workloads.rings import NEEDS
from vhostnet.errors import HostError

DPDK, EVENTFD = "DPDK net_vhost", "bare eventfd"
#: Microseconds between two packets: a worker that sleeps has gone to sleep by then.
REST_US = 100
BUSY_POLL_US = 10_000
_PARTS = {"median_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}


def ours(run: Run, size: int, asleep: bool) -> Mapping[str, float]:
    """Our loop backend sends each packet back."""
    options = [] if asleep else ["--busy-poll-us", str(BUSY_POLL_US)]
    with our_device(run, "loop", *options):
        return our_driver(run, "echo", size=size, asleep=asleep, rest_us=REST_US)


def dpdk(run: Run, size: int) -> Mapping[str, float]:
    """testpmd sends each packet back."""
    with dpdk_device(run, options=["--port-topology=loop"]) as device:
        device.start("io")
        return our_driver(run, "echo", size=size, rest_us=REST_US)


def eventfd(run: Run) -> Mapping[str, float]:
    """Two threads that wake each other, and nothing else."""
    words = ("eventfd", run.driver_cpu, run.device_cpu, run.seconds, REST_US)
    trips = sorted(int(line) / 1e3 for line in bare.output(run, words).split())
    if not trips:
        raise HostError("bare eventfd: no round trip")
    return percentiles(trips)


def percentiles(ordered: Sequence[float]) -> dict[str, float]:
    """The metrics of this workload, of sorted microseconds."""
    return {key: percentile(ordered, part) for key, part in _PARTS.items()}


def _metrics(bars: Mapping[str, float]) -> tuple[Metric, ...]:
    return (
        Metric("median_us", "round trip, median", "µs", "lower", bars),
        Metric("p99_us", "round trip, 99th percentile", "µs", "lower"),
        Metric("p999_us", "round trip, 99.9th percentile", "µs", "lower"),
    )


def _cases() -> Sequence[Case]:
    cases = []
    for size in (64, 1514):
        cases.append(
            Case(
                f"busy-polling, {size} B",
                {"size": size, "asleep": 0},
                _metrics({DPDK: 1.0}),
                {
                    OURS: partial(ours, size=size, asleep=False),
                    DPDK: partial(dpdk, size=size),
                },
                quick=size == 64,
            )
        )
        cases.append(
            Case(
                f"asleep, {size} B",
                {"size": size, "asleep": 1},
                _metrics({EVENTFD: 0.5}),
                {OURS: partial(ours, size=size, asleep=True), EVENTFD: eventfd},
                quick=size == 64,
            )
        )
    return cases


LATENCY = Workload(
    "latency",
    "latency: one packet from the driver to the device and back",
    "`vhostnet_frontend`'s compiled driver sends one frame to `vhostnet serve --backend loop`, "
    f"waits for it, reads it, rests for {REST_US} µs, and sends the next. *Busy-polling*: the "
    f"driver spins and the device has `--busy-poll-us {BUSY_POLL_US}`; the peer is testpmd io on "
    "one net_vhost port with the same driver. *Asleep*: the driver waits for the call eventfd and "
    "the device for the kick; the peer is a token between two threads over two eventfds, which is "
    "two wake-ups and nothing else (its bar of 0.5: we may take twice as long).",
    (*NEEDS, "gcc"),
    _cases,
)
