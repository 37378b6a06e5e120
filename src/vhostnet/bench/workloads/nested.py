"""nested: `vhostnet chardev` beside the kernel's own vhost_net, in a VM with that kernel.

Both are the character device /dev/vhost-net, which is why they can stand side by side: the same
driver opens it, gives it the same TAP, and sends from memory of both kinds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import OWN_DRIVER, option_words
from vhostnet.demo.guest_host import run_for_any_processor, warm_for_any_processor
from vhostnet.demo.nested_host import N_PROCESSORS, Chardev, NestedHost
from vhostnet.errors import HostError

LINUX = "Linux vhost_net"
DEVICE, TAP, ADDRESS = "/dev/vhost-net", "tap0", "192.0.2.1/24"
_SIZES, _KINDS = (64, 1500), ("shared", "private")
#: Metric's key -> options of the driver.
PARTS: dict[str, dict[str, Any]] = {
    f"{kind}_{size}": {"size": size, "private": kind == "private"}
    for size in _SIZES
    for kind in _KINDS
}
METRICS = tuple(
    Metric(f"{kind}_{size}", f"{size} B, {kind} memory", "thousand/s", "higher")
    for size in _SIZES
    for kind in _KINDS
)


def ours(run: Run) -> Mapping[str, float]:
    """The device is ours; the kernel's is not loaded."""
    warm_for_any_processor()
    with _host(run, "cuse") as host:
        run.note(["vhostnet", "chardev"])
        chardev = Chardev(host)
        found = _measure(run, host)
        chardev.check_running()
        return found


def peer(run: Run) -> Mapping[str, float]:
    """The device is the kernel's."""
    with _host(run, "vhost_net") as host:
        return _measure(run, host)


@contextmanager
def _host(run: Run, module: str) -> Iterator[NestedHost]:
    """The VM with one of the two devices' modules, and a TAP."""
    run_for_any_processor("-m", OWN_DRIVER, "warm")
    with NestedHost(run.folder, (module, "tun")) as host:
        run.note([str(word) for word in host.guest.process.args])  # type: ignore[union-attr]
        run.note(["modprobe", module])
        for words in (
            ["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"],
            ["address", "add", ADDRESS, "dev", TAP],
            ["link", "set", "dev", TAP, "up"],
        ):
            run.note(["ip", *words])
            host.tool("ip", *words)
        yield host


def _measure(run: Run, host: NestedHost) -> dict[str, float]:
    words = ["-m", OWN_DRIVER, "each", *commands(run.seconds)]
    run.note(["python", *words])
    status, said = host.run(*words)
    if status != 0:
        raise HostError(f"in the VM: {' '.join(said.strip().splitlines()[-1:])}")
    return rates(said)


def commands(seconds: float) -> list[str]:
    """The driver's commands, one for each of PARTS."""
    shown = {"device": DEVICE, "tap": TAP, "seconds": seconds}
    return [shlex.join(["send", *option_words({**shown, **part})]) for part in PARTS.values()]


def rates(said: str) -> dict[str, float]:
    """What the driver printed, in thousand packets a second.

    Raises:
        HostError: there is not an answer for each of PARTS.
    """
    answers = [line for line in said.splitlines() if line.startswith("{")]
    if len(answers) != len(PARTS):
        raise HostError(f"in the VM: {len(answers)} of {len(PARTS)} answers: {said[-300:]}")
    return {key: json.loads(line)["mpps"] * 1e3 for key, line in zip(PARTS, answers, strict=True)}


def _cases() -> Sequence[Case]:
    return [
        Case(
            "guest to TAP",
            {"processors": N_PROCESSORS},
            METRICS,
            {OURS: ours, LINUX: peer},
            start_s=45.0,
            parts=len(PARTS),
        )
    ]


NESTED = Workload(
    "nested",
    "the character device beside the kernel's own vhost_net, inside a VM",
    f"A VM of {N_PROCESSORS} virtual processors with Debian's kernel, booted anew for each run, "
    "that has this machine's files; all commands after QEMU's are run in it. /dev/vhost-net is "
    "`vhostnet chardev` through CUSE, or the kernel's own vhost_net. Our own compiled driver opens "
    "it and sends into a TAP, from memory that it shares (a memfd), or that nobody else has, as "
    "QEMU's is by default. The rate is the driver's own count, and what came back to it must be in "
    "the interface's counter, to a packet. The VM's stack drops them at once. Nothing is pinned: "
    "driver and worker have both processors. There is no bar. Without KVM (`-accel tcg` in the "
    "command lines) these are figures of an emulator, which say how well it does the kernel's code "
    "and our system calls (one a packet, some more a batch with private memory), and not how fast "
    "either device is on a processor.",
    ("qemu-system-x86_64", "iperf3", "busybox", "ip"),
    _cases,
)
