"""vm2vm: between two drivers, each frame from one's buffers into the other's.

Both drivers are one testpmd with two virtio_user ports on one core.  What arrives at one port it
sends back at the other (`io`), so packets go round and round, one circle each way: the device is
never starved, and as a circle has fewer packets than a ring has descriptors, none is dropped.
The mix comes from a port that plays a capture file and goes one way, into a port that drops it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vhostnet.bench import imix
from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import RING_SIZE, WARM_UP_S, cpu_seconds, dpdk, pinned
from vhostnet.bench.testpmd import Testpmd
from vhostnet.bench.workloads.rings import IMIX, NEEDS, virtio_options
from vhostnet.demo.daemon import Daemon
from vhostnet.errors import HostError

PEER = "testpmd io between two net_vhost"
SIZES = (64, 256, 1514)
_BURST = 32
#: Bursts of each circle: half a ring of packets.
_BURSTS = RING_SIZE // _BURST // 2
_SOCKET_S = 10.0


def _sockets(run: Run) -> tuple[Path, Path]:
    return run.folder / "socket0", run.folder / "socket1"


@contextmanager
def _our_ports(run: Run) -> Iterator[Path]:
    """`vhostnet serve` with two cards that are joined, on the device's core; its /proc folder."""
    arguments = []
    for path in _sockets(run):
        arguments += ["--device", f"socket={path},backend=port:x"]
    run.note(["taskset", "-c", str(run.device_cpu), "vhostnet", "serve", *arguments])
    prefix = pinned(run.device_cpu)
    with Daemon(arguments, log=run.folder / "vhostnet.log", prefix=prefix) as daemon:
        yield Path(f"/proc/{daemon.process.pid}")
        if not daemon.running():
            raise HostError(f"vhostnet serve ended: {daemon.last_words()}")


@contextmanager
def _peer_ports(run: Run) -> Iterator[Path]:
    """Testpmd that forwards between two net_vhost ports, likewise."""
    vdevs = [f"net_vhost{k},iface={path},queues=1" for k, path in enumerate(_sockets(run))]
    with dpdk(run, vdevs, run.device_cpu) as device:
        deadline = time.monotonic() + _SOCKET_S
        while not all(path.exists() for path in _sockets(run)):
            if time.monotonic() > deadline:
                raise HostError("testpmd does not serve its sockets")
            time.sleep(0.02)
        device.start("io")
        yield Path(f"/proc/{device.process.pid}")


@contextmanager
def _drivers(run: Run, virtio: str, size: int) -> Iterator[Testpmd]:
    """Both drivers, on the driver's core: ports 0 and 1, of the mix 0 and 2."""
    one, other = (
        f"net_virtio_user{k},path={path},queues=1,queue_size={RING_SIZE},{virtio}"
        for k, path in enumerate(_sockets(run))
    )
    if size == IMIX:
        capture = imix.write(run.folder / "imix.pcap")
        player = f"net_pcap0,rx_pcap={capture},infinite_rx=1"
        ports, options = [one, player, other, "net_null0,no-rx=1"], []
    else:
        ports, options = [one, other], [f"--txpkts={size}"]
    with dpdk(run, ports, run.driver_cpu, options) as driver:
        yield driver


def _measure(run: Run, device: Path, driver: Testpmd, size: int) -> dict[str, float]:
    """Mpps that arrived, all ways together, and what they cost the device."""
    arriving = (2,) if size == IMIX else (0, 1)
    driver.start("io", first=0 if size == IMIX else _BURSTS)
    time.sleep(WARM_UP_S)
    for port in arriving:  # from here on: rates are of the time between two looks
        driver.stats(port)
    used, began = cpu_seconds(device), time.monotonic()
    time.sleep(run.seconds)
    mpps = sum(driver.stats(port).rx_pps for port in arriving) / 1e6
    share = (cpu_seconds(device) - used) / (time.monotonic() - began)
    return {"mpps": mpps, "cpu_s_per_mpkt": share / mpps}


def ours(run: Run, virtio: str, size: int) -> dict[str, float]:
    """`port:NAME` forwards."""
    with _our_ports(run) as device, _drivers(run, virtio, size) as driver:
        return _measure(run, device, driver, size)


def peer(run: Run, virtio: str, size: int) -> dict[str, float]:
    """DPDK forwards."""
    with _peer_ports(run) as device, _drivers(run, virtio, size) as driver:
        return _measure(run, device, driver, size)


def _cases() -> Sequence[Case]:
    metrics = (
        Metric("mpps", "packets that arrived", "million/s", "higher", {PEER: 1.5}),
        Metric("cpu_s_per_mpkt", "processor time of the device", "s/million", "lower"),
    )
    without_bars = tuple(replace(metric, bars={}) for metric in metrics)
    return [
        Case(
            f"{'packed' if packed else 'split'} mrg_rxbuf=1 in_order={in_order} "
            + (f"{size} B" if size else "IMIX, one way"),
            {"packed": packed, "mrg_rxbuf": 1, "in_order": in_order, "size": size or "IMIX"},
            metrics if size else without_bars,
            {
                OURS: partial(ours, virtio=virtio, size=size),
                PEER: partial(peer, virtio=virtio, size=size),
            },
            busy_threads=2,
            quick=size == 64 and not packed and not in_order,
        )
        for packed in (0, 1)
        for in_order in (0, 1)
        for size in (*SIZES, IMIX)
        for virtio in [virtio_options(packed, 1, in_order)]
    ]


VM2VM = Workload(
    "vm2vm",
    "guest to guest: frames are forwarded between two drivers of one daemon",
    "Two ports of DPDK's virtio_user in one testpmd (`io`, one core) send what arrives at one "
    f"port back at the other: {_BURSTS * _BURST} packets in each of two circles, rings of "
    f"{RING_SIZE}, so that nothing is dropped. Between them `vhostnet serve` with two `--device "
    "…,backend=port:x`, or testpmd `io` between two net_vhost ports. The number is what the ports "
    "received, by the drivers' own counts and clock, after a warm-up. The drivers do more for a "
    "packet than the device does: where vhostnet's worker rests, they are the limit, and its "
    "processor time says what it could do. DPDK's device never rests. IMIX is played from a "
    "capture file by net_pcap into one driver and thrown away behind the other: its circles would "
    "be of one size.",
    NEEDS,
    _cases,
)
