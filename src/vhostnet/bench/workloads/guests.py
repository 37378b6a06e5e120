"""guest: a real Linux guest in QEMU, TCP and small UDP, beside QEMU's own card.

Nothing is pinned: QEMU, the daemon and iperf3 run where the host's scheduler puts them, as they
would for a user.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import cpu_seconds, our_device, socket_of
from vhostnet.demo import measure
from vhostnet.demo.accel import accelerator
from vhostnet.demo.guest_image import guest_image
from vhostnet.demo.machine import Machine, Nic, TapNic, VhostUserNic
from vhostnet.demo.measure import Direction
from vhostnet.demo.netns import Namespace
from vhostnet.demo.qemu import GuestVM

QEMU = "QEMU vhost=off"
TAP, HOST, GUEST = "tap0", "192.0.2.1", "192.0.2.2"
#: An emulated processor translates code when it first runs: that is nobody's card.
_WARM_UP_S = 1.0
_UDP_SIZE = 64

CARDS: dict[str, dict[str, str]] = {
    "default card": {},
    "packed=on": {"packed": "on"},
    "offloads off": {
        "csum": "off",
        "gso": "off",
        "guest_csum": "off",
        "guest_tso4": "off",
        "guest_tso6": "off",
        "host_tso4": "off",
        "host_tso6": "off",
    },
}

METRICS = (
    Metric("tcp_to_host", "TCP, guest to host", "Mbit/s", "higher", {QEMU: 1.0}),
    Metric("tcp_to_guest", "TCP, host to guest", "Mbit/s", "higher", {QEMU: 1.0}),
    Metric("udp_to_host", f"UDP of {_UDP_SIZE} B, guest to host", "thousand/s", "higher"),
    Metric("udp_to_guest", f"UDP of {_UDP_SIZE} B, host to guest", "thousand/s", "higher"),
    Metric("vcpu_to_host", "vCPU's share of a core, TCP to host", "%", "lower"),
    Metric("vcpu_to_guest", "vCPU's share of a core, TCP to guest", "%", "lower"),
)


def ours(run: Run, properties: Mapping[str, str]) -> Mapping[str, float]:
    """The guest's card is vhostnet's."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        host.add_tap(TAP, f"{HOST}/24")
        stack.enter_context(our_device(run, f"tap:{TAP}", prefix=host.prefix, pin=False))
        return _measure(run, host, VhostUserNic(socket_of(run), properties=properties), stack)


def peer(run: Run, properties: Mapping[str, str]) -> Mapping[str, float]:
    """The guest's card is QEMU's."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        host.add_tap(TAP, f"{HOST}/24")
        return _measure(run, host, TapNic(TAP, properties=properties), stack)


def _measure(run: Run, host: Namespace, nic: Nic, stack: ExitStack) -> dict[str, float]:
    image = guest_image()
    guest = GuestVM(image, Machine(accelerator(image)), [nic], prefix=host.prefix)
    stack.enter_context(guest)
    run.note([str(word) for word in guest.process.args])  # type: ignore[union-attr]
    guest.wait_for_shell()
    guest.add_address(0, f"{GUEST}/24")
    path = measure.Path(guest, host, guest_address=GUEST, host_address=HOST)
    measure.start_iperf3(guest)
    vcpu = guest.qmp("query-cpus-fast")[0]["thread-id"]
    found: dict[str, float] = {}
    for direction in measure.DIRECTIONS:
        measure.tcp(path, direction, _WARM_UP_S)
        found |= _tcp(path, direction, run.seconds, guest, vcpu)
        result = measure.udp(path, direction, run.seconds, mbps=0.0, size=_UDP_SIZE)
        found[f"udp_{direction}"] = (result.sent - result.lost) / run.seconds / 1e3
    return found


def _tcp(
    path: measure.Path, direction: Direction, seconds: float, guest: GuestVM, vcpu: int
) -> dict[str, float]:
    task = Path(f"/proc/{guest.process.pid}/task/{vcpu}")
    used, began = cpu_seconds(task), time.monotonic()
    mbps = measure.tcp(path, direction, seconds)
    share = (cpu_seconds(task) - used) / (time.monotonic() - began)
    return {f"tcp_{direction}": mbps, f"vcpu_{direction}": 100 * share}


def _cases() -> Sequence[Case]:
    return [
        Case(
            name,
            dict(properties),
            METRICS,
            {
                OURS: partial(ours, properties=properties),
                QEMU: partial(peer, properties=properties),
            },
            quick=not properties,
            start_s=8.0,
            parts=4,
        )
        for name, properties in CARDS.items()
    ]


GUESTS = Workload(
    "guest",
    "a real guest: Linux in QEMU, TCP and small UDP both ways",
    "A Linux guest, booted anew for each run, with one card: vhostnet's over vhost-user, or QEMU's "
    "own virtio-net on the same kind of TAP (`vhost=off`), with the same device properties. iperf3 "
    "runs in the guest and in a network namespace of the host; the receiver counts. UDP is sent as "
    "fast as the sender can. Without KVM the emulated processor is the limit: its thread's share "
    "of a core stands beside the rates. Only the vCPU and the device's thread are counted as busy; "
    "iperf3 and the host's stack share what is left.",
    ("qemu-system-x86_64", "iperf3", "busybox", "ip"),
    _cases,
)
