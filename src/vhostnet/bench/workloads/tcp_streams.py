"""g2tap-tcp: TCP segments of a guest without offloads, through a TAP.

What the interface counts as packets are merged ones, so segments are counted by bytes: each frame
has one set of headers, and payload of whole segments.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from vhostnet.bench import bare
from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import (
    WARM_UP_S,
    cpu_seconds,
    driver_command,
    our_device,
    pinned,
    socket_of,
)
from vhostnet.bench.tcp_stream import HEADERS, PAYLOAD
from vhostnet.bench.workloads.taps import BARE_WRITE, TAP, counter, counters
from vhostnet.demo.netns import RX_BYTES, RX_PACKETS, Namespace
from vhostnet.demo.tools import end, spawn
from vhostnet.errors import HostError

#: Flows -> how often our side has to send what the loop of single writes does.
BARS = {1: 4.0, 4: 4.0, 64: 1.5}
_OFF = "vhostnet, --coalesce off"
#: For the driver to compile, connect and make its frames.
_START_S = 60.0


def segments_per_second(
    run: Run, host: Namespace, process: subprocess.Popen[bytes]
) -> dict[str, float]:
    """How many segments the TAP's interface takes, in millions, and how many come in one frame."""
    time.sleep(WARM_UP_S)  # it may be on its way into the namespace
    _wait_for_traffic(host)
    time.sleep(WARM_UP_S)
    device = Path(f"/proc/{process.pid}")
    before, used, began = counters(host), cpu_seconds(device), time.monotonic()
    time.sleep(run.seconds)
    after = counters(host)
    taken_bytes = after[RX_BYTES] - before[RX_BYTES]
    frames = after[RX_PACKETS] - before[RX_PACKETS]
    took = time.monotonic() - began
    segments = (taken_bytes - HEADERS * frames) / PAYLOAD
    if segments <= 0:
        raise HostError(f"{TAP}: nothing was taken in {took:.1f} s")
    return {
        "mpps": segments / took / 1e6,
        "segments": segments / frames,
        "cpu_s_per_mpkt": (cpu_seconds(device) - used) / segments * 1e6,
    }


def _wait_for_traffic(host: Namespace) -> None:
    deadline = time.monotonic() + _START_S
    start = counter(host, RX_PACKETS)
    while counter(host, RX_PACKETS) - start < 1000:
        if time.monotonic() > deadline:
            raise HostError(f"{TAP}: no packets for {_START_S:.0f} s")
        time.sleep(0.02)


def ours(run: Run, flows: int, coalesce: str) -> Mapping[str, float]:
    """Our driver sends the flows' segments in turns."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        host.add_tap(TAP, "192.0.2.1/24")
        options = ("--coalesce", coalesce)
        daemon = stack.enter_context(our_device(run, f"tap:{TAP}", *options, prefix=host.prefix))
        seconds = _START_S + WARM_UP_S + run.seconds
        argv = driver_command(run, "stream", [socket_of(run)], flows=flows, seconds=seconds)
        driver = spawn(argv, prefix=pinned(run.driver_cpu), stdout=subprocess.DEVNULL)
        stack.callback(end, driver)
        return segments_per_second(run, host, daemon.process)


def bare_write(run: Run) -> Mapping[str, float]:
    """A loop writes one frame of the same length: no guest, no ring."""
    with Namespace() as host:
        host.add_tap(TAP, "192.0.2.1/24")
        words = ("tap-write", TAP, HEADERS + PAYLOAD, _START_S + WARM_UP_S + run.seconds)
        process = bare.start(run, run.device_cpu, *words, prefix=host.prefix)
        try:
            return segments_per_second(run, host, process)
        finally:
            end(process)


def _cases() -> Sequence[Case]:
    return [
        Case(
            f"{flows} flow{'' if flows == 1 else 's'}",
            {"flows": flows},
            (
                Metric("mpps", "segments", "million/s", "higher", {BARE_WRITE: bar}),
                Metric("segments", "segments a write", "", "higher"),
                Metric("cpu_s_per_mpkt", "processor time of the device", "s/million", "lower"),
            ),
            {
                OURS: partial(ours, flows=flows, coalesce="on"),
                _OFF: partial(ours, flows=flows, coalesce="off"),
                BARE_WRITE: bare_write,
            },
            quick=flows == 1,
        )
        for flows, bar in BARS.items()
    ]


G2TAP_TCP = Workload(
    "g2tap-tcp",
    "guest to TAP: TCP segments of a guest without offloads",
    f"Our own driver sends segments of {PAYLOAD} bytes with right checksums and timestamps, each "
    "written anew, of 1, 4 or 64 flows in turns, through `vhostnet serve --backend tap:tap0` into "
    "a TAP in a network namespace; with `--coalesce off` for comparison. `bare write()` is a loop "
    "of a C program that writes one frame of the same length, again and again. Segments are "
    "counted by the interface's bytes, less a set of headers for each of its packets. Both "
    "checksums of each segment are verified before it is merged, which is part of the time. The "
    "host drops the packets at once: they are for another station.",
    ("gcc", "ip"),
    _cases,
)
