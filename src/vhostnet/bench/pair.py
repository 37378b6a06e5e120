"""A device on one core and a driver on another: ours or DPDK's at either end.

DPDK gets its documented best: a core for itself, polling; 1024 descriptors on both sides,
bursts of 32, buffers enough for all rings; 2 MiB pages where the machine has some to spare.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vhostnet.bench.model import Run
from vhostnet.bench.testpmd import Testpmd
from vhostnet.demo.daemon import Daemon
from vhostnet.demo.tools import output_of, require
from vhostnet.errors import HostError
from vhostnet_frontend.ioctl_transport import DEVICE

OWN_DRIVER = "vhostnet.bench.own_driver"
RING_SIZE = 1024
_MBUFS = 20000
_SOCKET_S = 10.0
#: For rings and processor caches to fill, and clocks to rise.
WARM_UP_S = 0.5


def pinned(cpu: int) -> list[str]:
    """The words that keep a command on one core."""
    return [require("taskset"), "--cpu-list", str(cpu)]


@contextmanager
def our_device(
    run: Run, backend: str, *options: str, prefix: Sequence[str] = (), pin: bool = True
) -> Iterator[Daemon]:
    """`vhostnet serve`, ready, on the device's core (or anywhere); at `socket_of(run)`."""
    arguments = ["--socket-path", str(socket_of(run)), "--backend", backend, *options]
    words = [*prefix, *(pinned(run.device_cpu) if pin else [])]
    shown = ["taskset", "-c", str(run.device_cpu)] if pin else []
    run.note([*shown, "vhostnet", "serve", *arguments])
    with Daemon(arguments, log=run.folder / "vhostnet.log", prefix=words) as daemon:
        yield daemon
        if not daemon.running():
            raise HostError(f"vhostnet serve ended: {daemon.last_words()}")


@contextmanager
def dpdk_device(
    run: Run,
    *,
    other_ports: Sequence[str] = (),
    options: Sequence[str] = (),
    prefix: Sequence[str] = (),
    queue_pairs: int = 1,
) -> Iterator[Testpmd]:
    """testpmd with a net_vhost port on the device's core; its socket is `socket_of(run)`."""
    vdevs = [f"net_vhost0,iface={socket_of(run)},queues={queue_pairs}", *other_ports]
    with dpdk(run, vdevs, run.device_cpu, options, prefix, queue_pairs) as device:
        deadline = time.monotonic() + _SOCKET_S
        while not socket_of(run).exists():
            if time.monotonic() > deadline:
                raise HostError("testpmd does not serve its socket")
            time.sleep(0.02)
        yield device


@contextmanager
def dpdk_driver(
    run: Run,
    virtio: str,
    *,
    options: Sequence[str] = (),
    other_ports: Sequence[str] = (),
    queue_pairs: int = 1,
) -> Iterator[Testpmd]:
    """testpmd with a virtio_user port on the driver's core.

    Args:
        virtio: options of virtio_user, such as "packed_vq=1,mrg_rxbuf=0".
        other_ports: behind it, for forwarding.
    """
    port = f"net_virtio_user0,path={socket_of(run)},queues={queue_pairs},queue_size={RING_SIZE}"
    ports = [f"{port},{virtio}", *other_ports]
    with dpdk(run, ports, run.driver_cpu, options, queue_pairs=queue_pairs) as driver:
        yield driver


@contextmanager
def dpdk(
    run: Run,
    vdevs: Sequence[str],
    cpu: int,
    options: Sequence[str] = (),
    prefix: Sequence[str] = (),
    queue_pairs: int = 1,
) -> Iterator[Testpmd]:
    """testpmd with any ports on one core, ready, and noted down."""
    testpmd = Testpmd(
        vdevs,
        cpu=cpu,
        memory_mib=512,
        hugepages=run.hugepages,
        queue_size=RING_SIZE,
        queue_pairs=queue_pairs,
        mbufs=_MBUFS,
        options=["--burst=32", *options],
        prefix=prefix,
    )
    with testpmd:
        run.note(testpmd.argv)
        testpmd.wait_ready()
        yield testpmd


def our_driver(
    run: Run, what: str, sockets: Sequence[Path] = (), **options: Any
) -> Mapping[str, float]:
    """Run our own driver in a process of its own on the driver's core.

    Args:
        what: and `options`: see `own_driver`.
        sockets: other ones than `socket_of(run)`.
    """
    argv = driver_command(run, what, sockets or [socket_of(run)], **options)
    return _numbers(run, argv, pinned(run.driver_cpu))


def driver_under_run(
    run: Run, what: str, *, prefix: Sequence[str], **options: Any
) -> Mapping[str, float]:
    """As `our_driver`, of the device that `vhostnet run` shows it; that one on its own core."""
    shown = {"device": DEVICE, "cpu": run.driver_cpu, **options}
    argv = driver_command(run, what, [], **shown)
    served = [sys.executable, "-m", "vhostnet", "run", "--log-level", "error", "--", *argv]
    return _numbers(run, served, [*prefix, *pinned(run.device_cpu)])


def _numbers(run: Run, argv: Sequence[str], prefix: Sequence[str]) -> Mapping[str, float]:
    # A cold cache: kernels are compiled first.
    said = output_of(argv, prefix=prefix, timeout=240.0 + 2 * run.seconds)
    found: Mapping[str, float] = json.loads(said)
    return found


def driver_command(run: Run, what: str, sockets: Sequence[Path], **options: Any) -> list[str]:
    """The command that `our_driver` runs."""
    argv = ["-m", OWN_DRIVER, what]
    for path in sockets:
        argv += ["--socket", str(path)]
    argv += option_words({"seconds": run.seconds, **options})
    run.note(["taskset", "-c", str(run.driver_cpu), "python", *argv])
    return [sys.executable, *argv]


def option_words(options: Mapping[str, Any]) -> list[str]:
    """A program's options: True is one without a value, False is none."""
    words = []
    for name, value in options.items():
        if value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return words


def socket_of(run: Run) -> Path:
    """Where device and driver of a run meet."""
    return run.folder / "socket"


def cpu_seconds(of: Path) -> float:
    """Processor time that a process (its threads together) or a thread has used.

    Args:
        of: its folder in /proc.

    Raises:
        HostError: it has gone.
    """
    try:
        # In nanoseconds, where the kernel has it: an idle device does not use up one tick.
        parts = list((of / "task").iterdir()) if (of / "task").exists() else [of]
        found = [(part / "schedstat").read_text() for part in parts]
        return sum(int(text.split()[0]) for text in found) / 1e9
    except FileNotFoundError:
        pass  # no such file, or a thread that has just ended
    try:
        fields = (of / "stat").read_text().rpartition(")")[2].split()
    except OSError as err:
        raise HostError(f"{of} has gone", err.errno or 0) from err
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
