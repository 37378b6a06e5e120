"""g2tap and tap2g: through a TAP, where the kernel takes its share.

Packets are counted by the interface, whoever serves it.  They are for a station that is
nobody's, so the host's stack drops them at its door, and the TAP is what is measured.

tap2g has no core left for a sender that would keep up.  So the TAP's queue is filled first,
while the guest (or the device) does not take anything, and then emptied: what is measured is
the time in between, from 10 % to 90 %.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vhostnet.bench import bare
from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import (
    WARM_UP_S,
    cpu_seconds,
    dpdk_device,
    dpdk_driver,
    our_device,
)
from vhostnet.bench.testpmd import Testpmd
from vhostnet.bench.workloads.rings import NEEDS, SIZES, VIRTIO
from vhostnet.demo.netns import RX_PACKETS, TX_PACKETS, Namespace
from vhostnet.demo.tools import end
from vhostnet.errors import HostError

TAP = "tap0"
DPDK, BARE_WRITE, BARE_READ = "DPDK net_vhost+net_tap", "bare write()", "bare read()"
#: Packets in the TAP's queue: 0.8 kB each, and a tenth of a second to read.
FILL = 250_000
_EMPTY_S = 20.0
_LOOK_S = 0.002
_SETTLE_S = 0.1
_NEEDS = (*NEEDS, "gcc", "ip")


def counter(host: Namespace, column: int) -> int:
    """One of the TAP's `counters`."""
    return counters(host)[column]


def counters(host: Namespace) -> list[int]:
    """The TAP's counters in /proc/net/dev, read at once."""
    return host.link_columns(TAP)


def taken_per_second(
    run: Run, host: Namespace, process: subprocess.Popen[bytes], size: int
) -> dict[str, float]:
    """How fast the TAP's interface takes packets, in Mpps; with the process's own time."""
    device = Path(f"/proc/{process.pid}")
    time.sleep(WARM_UP_S)
    before, began = counter(host, RX_PACKETS), time.monotonic()
    used = cpu_seconds(device)
    time.sleep(run.seconds)
    packets = counter(host, RX_PACKETS) - before
    found = {"mpps": packets / (time.monotonic() - began) / 1e6}
    if packets:
        each = (cpu_seconds(device) - used) / packets
        found |= {"cpu_s_per_mpkt": each * 1e6, "cpu_s_per_gb": each / size * 1e9}
    return found


def ours_g2tap(run: Run, size: int, options: Sequence[str] = ()) -> Mapping[str, float]:
    """The driver sends through vhostnet, with more *options*, into a TAP."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        host.add_tap(TAP, "192.0.2.1/24")
        daemon = stack.enter_context(our_device(run, f"tap:{TAP}", *options, prefix=host.prefix))
        driver = stack.enter_context(dpdk_driver(run, VIRTIO, options=[f"--txpkts={size}"]))
        driver.start("txonly")
        return taken_per_second(run, host, daemon.process, size)


def peer_g2tap(run: Run, size: int) -> Mapping[str, float]:
    """The driver sends through DPDK's net_vhost and net_tap."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        quiet(host)
        port = f"net_tap0,iface={TAP}"
        device = stack.enter_context(dpdk_device(run, other_ports=[port], prefix=host.prefix))
        driver = stack.enter_context(dpdk_driver(run, VIRTIO, options=[f"--txpkts={size}"]))
        device.start("io")
        driver.start("txonly")
        return taken_per_second(run, host, device.process, size)


def bare_g2tap(run: Run, size: int) -> Mapping[str, float]:
    """A loop writes into a TAP: no guest, no ring."""
    with Namespace() as host:
        host.add_tap(TAP, "192.0.2.1/24")
        words = ("tap-write", TAP, size, run.seconds + 2)
        process = bare.start(run, run.device_cpu, *words, prefix=host.prefix)
        try:
            return taken_per_second(run, host, process, size)
        finally:
            end(process)


def quiet(host: Namespace) -> None:
    """Let no interface that is made later in the namespace send anything by itself."""
    host.run("busybox", "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")


def drain_rate(
    run: Run,
    host: Namespace,
    size: int,
    go: Callable[[], None],
    halt: Callable[[], None],
    received: Callable[[], int] | None = None,
) -> dict[str, float]:
    """Fill the TAP's queue and let it be emptied, again and again; the medians of the rounds.

    Who looks at the counter does so on the driver's core: the device's is what is measured.

    Args:
        received: what the driver has got so far; what was read and thrown away does not count.
    """
    rates: list[float] = []
    parts: list[float] = []
    deadline = time.monotonic() + run.seconds
    while not rates or time.monotonic() < deadline:
        halt()
        start = counter(host, TX_PACKETS)
        got = received() if received else 0
        bare.output(run, ["fill", TAP, FILL, size], prefix=host.prefix)
        with _on_core(run.driver_cpu):
            go()
            rate = _empty(host, start)
        time.sleep(_SETTLE_S)
        part = 1.0
        if received:
            part = min((received() - got) / (counter(host, TX_PACKETS) - start), 1.0)
        rates.append(rate * part)
        parts.append(part)
    return {"mpps": statistics.median(rates) / 1e6, "percent": 100 * statistics.median(parts)}


@contextmanager
def _on_core(cpu: int) -> Iterator[None]:
    """Keep the calling thread there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _empty(host: Namespace, start: int) -> float:
    """Watch the queue's way from 10 % to 90 %; packets a second."""
    first: tuple[int, float] | None = None
    last = (start, time.monotonic())
    deadline = time.monotonic() + _EMPTY_S
    while last[0] - start < FILL * 9 // 10:
        if time.monotonic() > deadline:
            raise HostError(f"{TAP}: {last[0] - start} of {FILL} packets were read")
        time.sleep(_LOOK_S)
        last = (counter(host, TX_PACKETS), time.monotonic())
        if first is None and last[0] - start >= FILL // 10:
            first = last
    if first is None or first[1] == last[1]:
        raise HostError(f"{TAP}: emptied before anybody could look")
    return (last[0] - first[0]) / (last[1] - first[1])


def long_queue(host: Namespace) -> None:
    """Give the TAP room for FILL packets, and some that are on their way."""
    host.run("ip", "link", "set", "dev", TAP, "txqueuelen", str(FILL + 4096))


def ours_tap2g(run: Run, size: int) -> Mapping[str, float]:
    """vhostnet reads a TAP for a driver that had stopped."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        host.add_tap(TAP, "192.0.2.1/24")
        long_queue(host)
        stack.enter_context(our_device(run, f"tap:{TAP}", prefix=host.prefix))
        driver = stack.enter_context(dpdk_driver(run, VIRTIO))
        driver.ask("set fwd rxonly", "Set rxonly packet forwarding mode")
        running: list[bool] = []

        def go() -> None:
            driver.tell("start")
            running.append(True)

        def halt() -> None:
            if running:
                driver.stop()

        got = partial(_received, driver)
        return drain_rate(run, host, size, go, halt, got)


def peer_tap2g(run: Run, size: int) -> Mapping[str, float]:
    """DPDK's device had stopped; its driver waits."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        quiet(host)
        port = f"net_tap0,iface={TAP}"
        device = stack.enter_context(dpdk_device(run, other_ports=[port], prefix=host.prefix))
        long_queue(host)
        driver = stack.enter_context(dpdk_driver(run, VIRTIO))
        driver.start("rxonly")
        device.ask("set fwd io", "Set io packet forwarding mode")
        running: list[bool] = []

        def go() -> None:
            device.tell("start")
            running.append(True)

        def halt() -> None:
            if running:
                device.stop()

        got = partial(_received, driver)
        return drain_rate(run, host, size, go, halt, got)


def bare_tap2g(run: Run, size: int) -> Mapping[str, float]:
    """A loop reads a TAP: no guest, no ring.  It is stopped by SIGSTOP meanwhile."""
    with Namespace() as host:
        host.add_tap(TAP, "192.0.2.1/24")
        long_queue(host)
        words = ("tap-read", TAP, run.seconds + 60)
        process = bare.start(run, run.device_cpu, *words, prefix=host.prefix)
        try:
            _wait_for_carrier(host)
            return drain_rate(
                run,
                host,
                size,
                partial(process.send_signal, signal.SIGCONT),
                partial(process.send_signal, signal.SIGSTOP),
            )
        finally:
            process.kill()
            end(process)


def _received(driver: Testpmd) -> int:
    return driver.stats().received


def _wait_for_carrier(host: Namespace) -> None:
    deadline = time.monotonic() + 5.0
    while "LOWER_UP" not in host.run("ip", "link", "show", "dev", TAP):
        if time.monotonic() > deadline:
            raise HostError(f"{TAP} has no carrier")
        time.sleep(0.02)


def _g2tap_cases() -> Sequence[Case]:
    def metrics(size: int) -> tuple[Metric, ...]:
        return (
            Metric("mpps", "packets", "million/s", "higher", {DPDK: 1.1} if size == 64 else {}),
            Metric(
                "cpu_s_per_mpkt",
                "processor time of the device",
                "s/million",
                "lower",
                {DPDK: 1.0} if size == 64 else {},
            ),
            Metric("cpu_s_per_gb", "processor time of the device", "s/GB", "lower"),
        )

    return [
        Case(
            f"{size} B",
            {"size": size},
            metrics(size),
            {
                OURS: partial(ours_g2tap, size=size),
                DPDK: partial(peer_g2tap, size=size),
                BARE_WRITE: partial(bare_g2tap, size=size),
            },
            quick=size == SIZES[0],
        )
        for size in SIZES
    ]


def _tap2g_cases() -> Sequence[Case]:
    metric = Metric("mpps", "packets", "million/s", "higher")
    arrived = Metric("percent", "of what was read arrives", "%", "higher")
    small = replace(metric, bars={BARE_READ: 0.9})
    return [
        Case(
            f"{size} B",
            {"size": size},
            (small if size == 64 else metric, arrived),
            {
                OURS: partial(ours_tap2g, size=size),
                DPDK: partial(peer_tap2g, size=size),
                BARE_READ: partial(bare_tap2g, size=size),
            },
            quick=size == SIZES[0],
        )
        for size in SIZES
    ]


G2TAP = Workload(
    "g2tap",
    "guest to TAP: a driver sends flat out into the host's network",
    "DPDK's virtio_user sends (split ring, mrg_rxbuf=1, in_order=0, which is what Linux guests "
    "use) through `vhostnet serve --backend tap:tap0`, or through testpmd with net_vhost and "
    "net_tap, into a TAP in a network namespace; `bare write()` is a loop of a C program, without "
    "any guest. The interface's counter is read at both ends of the time. The host drops the "
    "packets at once: they are for another station.",
    _NEEDS,
    _g2tap_cases,
)

TAP2G = Workload(
    "tap2g",
    "TAP to guest: what the host has queued for a guest is delivered",
    f"The TAP's queue is filled with {FILL} packets while nobody takes them, then emptied, as "
    "often as the time allows; the rate is that from 10 % to 90 %, by the interface's counter, "
    "less what the driver did not get (a device may throw away what finds no buffer), and the "
    "median of the rounds. (With a sender at the same time there would be three busy threads.) "
    "The guest is DPDK's virtio_user; `bare read()` is a loop of a C program, without any guest.",
    _NEEDS,
    _tap2g_cases,
)
