"""cost: what a device takes from its host besides the packets' own time, and how it grows.

Processor time per packet stands beside the rate in g2tap, where both come from the same run.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import (
    cpu_seconds,
    dpdk_device,
    driver_command,
    our_device,
    our_driver,
    pinned,
    socket_of,
)
from vhostnet.bench.workloads.rings import NEEDS, VIRTIO, ours_g2d, peer_g2d
from vhostnet.demo.daemon import Daemon
from vhostnet.demo.tools import end, spawn
from vhostnet.errors import HostError

DPDK, ONE_REGION = "DPDK net_vhost", "vhostnet, 1 region"
_SETTLE_S = 1.0
_DEVICES = (1, 2, 8, 32, 128)
_REGIONS = (8, 64, 509)
_RING_SIZES = (64, 256, 4096)

_IDLE = Metric("idle_percent", "processor when idle", "% of a core", "lower")
_RSS = Metric("rss_mib", "memory (RSS)", "MiB", "lower")
_READY = Metric("ready_s", "from start to ready", "s", "lower")
_RATE = Metric("mpps", "packets", "million/s", "higher")


def proc(process: subprocess.Popen[bytes]) -> Path:
    """A process's folder in /proc."""
    return Path(f"/proc/{process.pid}")


def rss_mib(of: Path) -> float:
    """Memory that a process has in RAM, what it shares included."""
    match = re.search(r"^VmRSS:\s+(\d+) kB", (of / "status").read_text(), re.MULTILINE)
    if match is None:
        raise HostError(f"{of} has gone")
    return int(match[1]) / 1024


def idle(run: Run, of: Path) -> dict[str, float]:
    """Look at a device that has nothing to do."""
    time.sleep(_SETTLE_S)
    used, began = cpu_seconds(of), time.monotonic()
    time.sleep(run.seconds)
    percent = 100 * (cpu_seconds(of) - used) / (time.monotonic() - began)
    return {"idle_percent": percent, "rss_mib": rss_mib(of)}


@contextmanager
def quiet_drivers(run: Run, sockets: Sequence[Path]) -> Iterator[None]:
    """Attach a driver to each socket that posts its buffers and then says nothing."""
    argv = driver_command(run, "connect", sockets, num=256)
    process = spawn(
        argv, prefix=pinned(run.driver_cpu), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        if said != b"ready\n":
            rest = said + process.stdout.read()
            raise HostError(f"own_driver: {rest.decode(errors='replace')[-400:]}")
        yield
    finally:
        end(process)


def ours_one(run: Run) -> Mapping[str, float]:
    """Our daemon with one device."""
    began = time.monotonic()
    with our_device(run, "null") as daemon:
        ready = time.monotonic() - began
        with quiet_drivers(run, [socket_of(run)]):
            return {"ready_s": ready, **idle(run, proc(daemon.process))}


def dpdk_one(run: Run) -> Mapping[str, float]:
    """testpmd with one net_vhost port, forwarding."""
    began = time.monotonic()
    with dpdk_device(run) as device:
        ready = time.monotonic() - began
        device.start("rxonly")
        with quiet_drivers(run, [socket_of(run)]):
            return {"ready_s": ready, **idle(run, proc(device.process))}


def cold(run: Run) -> Mapping[str, float]:
    """Our daemon with an empty cache: everything is compiled first."""
    environment = ["env", f"XDG_CACHE_HOME={run.folder / 'cache'}", "CACHE_DIRECTORY="]
    run.note(environment)
    began = time.monotonic()
    with our_device(run, "null", prefix=environment):
        return {"ready_s": time.monotonic() - began}


def many(run: Run, n: int) -> Mapping[str, float]:
    """A daemon with n devices, all connected, idle; then the first of them busy."""
    with ExitStack() as stack:
        sockets = [run.folder / f"socket{k}" for k in range(n)]
        arguments = []
        for path in sockets:
            arguments += ["--device", f"socket={path},backend=null"]
        words = pinned(run.device_cpu)
        run.note(["taskset", "-c", str(run.device_cpu), "vhostnet", "serve", *arguments[:2], "..."])
        began = time.monotonic()
        daemon = stack.enter_context(Daemon(arguments, log=run.folder / "log", prefix=words))
        found = {"ready_s": time.monotonic() - began}
        busy = sockets.pop(0)
        with ExitStack() as drivers:
            drivers.enter_context(quiet_drivers(run, [busy, *sockets]))
            found |= idle(run, proc(daemon.process))
        if sockets:
            stack.enter_context(quiet_drivers(run, sockets))
        found["mpps"] = our_driver(run, "send", [busy])["mpps"]
        return found


def each_more(run: Run, n: int) -> Mapping[str, float]:
    """As `many`, with the memory of each device beyond the first."""
    found = dict(many(run, n))
    if n > 1:
        with our_device(run, "null") as daemon, quiet_drivers(run, [socket_of(run)]):
            first = idle(run, proc(daemon.process))["rss_mib"]
        found["rss_each_mib"] = (found["rss_mib"] - first) / (n - 1)
    return found


def regions(run: Run, n: int, num: int = 1024) -> Mapping[str, float]:
    """Our driver sends from memory of n regions, or on rings of num entries."""
    with our_device(run, "null"):
        return {"mpps": our_driver(run, "send", regions=n, num=num)["mpps"]}


def _cost_cases() -> Sequence[Case]:
    return [
        Case(
            "one idle device",
            {"devices": 1},
            (_IDLE, _RSS, _READY),
            {OURS: ours_one, DPDK: dpdk_one},
            busy_threads=1,
            quick=True,
            start_s=6.0,
        ),
        Case(
            "start with an empty cache",
            {"devices": 1},
            (_READY,),
            {OURS: cold},
            busy_threads=1,
            start_s=30.0,
        ),
    ]


def _scale_cases() -> Sequence[Case]:
    each = Metric("rss_each_mib", "memory of each one more", "MiB", "lower", limit=1.0)
    cases = []
    for n in _DEVICES:
        percent = replace(_IDLE, limit=1.0 if n == max(_DEVICES) else None)
        metrics = (percent, _RSS, *([each] if n > 1 else []), _READY, _RATE)
        cases.append(
            Case(
                f"{n} device{'s' if n > 1 else ''}",
                {"devices": n},
                metrics,
                {OURS: partial(each_more, n=n)},
                start_s=8.0 + n / 10,
                parts=3,
            )
        )
    for n in _REGIONS:
        rate = replace(_RATE, bars={ONE_REGION: round(1 / 1.1, 3)} if n == 64 else {})
        cases.append(
            Case(
                f"memory of {n} regions",
                {"regions": n},
                (rate,),
                {OURS: partial(regions, n=n), ONE_REGION: partial(regions, n=1)},
                start_s=4.0,
            )
        )
    for num in _RING_SIZES:
        cases.append(
            Case(
                f"rings of {num}",
                {"num": num},
                (_RATE,),
                {
                    OURS: partial(regions, n=1, num=num),
                    "vhostnet, 1024": partial(regions, n=1, num=1024),
                },
                start_s=4.0,
            )
        )
    cases.append(
        Case(
            "2 queue pairs",
            {"queue_pairs": 2},
            (_RATE,),
            {
                OURS: partial(ours_g2d, virtio=VIRTIO, size=64, queue_pairs=2),
                "vhostnet, 1 pair": partial(ours_g2d, virtio=VIRTIO, size=64),
                DPDK: partial(peer_g2d, virtio=VIRTIO, size=64, queue_pairs=2),
            },
            busy_threads=3,
        )
    )
    return cases


COST = Workload(
    "cost",
    "cost: processor and memory of an idle device, time to ready",
    "One device with a connected driver that has posted its buffers and sends nothing: processor "
    "time of the device's process from /proc, its RSS, and the time from its start until it could "
    "be connected to. DPDK's device polls, as it always does. *Empty cache*: the first start ever, "
    "when everything is compiled. Processor time per packet stands in g2tap.",
    NEEDS,
    _cost_cases,
)

SCALE = Workload(
    "scale",
    "scale: many devices in one daemon, memory of many regions, sizes of rings",
    "One `vhostnet serve` with so many devices on one core, a driver connected to each; all idle, "
    "then our own driver sends 64 B to one of them while the others stay idle. Memory of a device "
    "beyond the first is the difference to a daemon with one device. *Regions* and *rings*: our "
    "own driver, 64 B, its buffers in the last of so many regions, beside the same with one. "
    "*Queue pairs*: DPDK's driver, 64 B, one core for it and one for the device, where vhostnet "
    "has a worker for each pair.",
    NEEDS,
    _scale_cases,
)
