"""The compiled driver of `vhostnet_frontend` as a process, so that it has a core to itself.

    python -m vhostnet.bench.own_driver send --socket PATH --size 64 --seconds 3
    python -m vhostnet.bench.own_driver stream --flows 4 ...
    python -m vhostnet.bench.own_driver receive ...
    python -m vhostnet.bench.own_driver echo --rest-us 100 --asleep ...
    python -m vhostnet.bench.own_driver connect --socket PATH --socket PATH ...
    python -m vhostnet.bench.own_driver send --device /dev/vhost-net --tap tap0 --private ...
    python -m vhostnet.bench.own_driver each "send --size 64 ..." "send --size 1500 ..." ...
    python -m vhostnet.bench.own_driver warm

`send`, `stream`, `receive` and `echo` measure and print one JSON object; `connect` attaches a
quiet driver to each socket, prints "ready" and stays until its standard input ends.  `each` runs
commands one after the other in one process; `warm` compiles what `send` needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from vhostnet.demo.netns import RX_PACKETS, link_columns
from vhostnet.uapi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VNET_HDR_MRG_LEN,
    mask,
)
from vhostnet_frontend import (
    DEFAULT_FEATURES,
    GuestMemory,
    IoctlTransport,
    NetDriver,
    Region,
    RegionSpec,
    SplitRing,
    Transport,
    VhostUserTransport,
    open_tap,
)

_CONNECT_S = 10.0
_WARM_UP_S = 0.5
_BUFFER = 2048
_TRIPS, _LOST_MS = 500, 1000
_ETHERNET = b"\x02\0\0\0\0\0" + b"\x02\0\0\0\0\x01" + b"\x88\xb5"


def frame(size: int) -> bytes:
    """A frame of *size* bytes with an experimental ethertype."""
    return (_ETHERNET + bytes(k & 0xFF for k in range(size)))[:size]


class _SlotTransport(VhostUserTransport):
    """Adds regions one by one, as QEMU does: one message cannot carry so many descriptors."""

    def set_mem_table(self, regions: Sequence[Region]) -> None:
        super().set_mem_table(regions[:1])
        for region in regions[1:]:
            self.add_mem_reg(region)


@contextmanager
def open_driver(args: argparse.Namespace, path: str = "") -> Iterator[NetDriver]:
    """Connect and negotiate; the rings are not running yet."""
    features, backend = DEFAULT_FEATURES, 0
    transport: Transport
    with ExitStack() as stack:
        specs = region_specs(args.regions, args.num)
        memory = stack.enter_context(GuestMemory(specs, private=args.private))
        if args.device:
            backend = open_tap(args.tap, VNET_HDR_MRG_LEN)
            stack.callback(os.close, backend)
            transport = IoctlTransport(args.device)
        else:
            if args.packed:
                features |= mask(VIRTIO_F_RING_PACKED)
            if args.in_order:
                features |= mask(VIRTIO_F_IN_ORDER)
            transport = _SlotTransport.connect(path, wait=_CONNECT_S)
        driver = NetDriver(transport, backend, features=features, num=args.num, memory=memory)
        yield stack.enter_context(driver)


def region_specs(n: int, num: int) -> list[RegionSpec]:
    """n regions for two rings of num entries; the last one is large enough for all of it.

    It stands last in the table, so that a search from the front meets all the others first.
    """
    whole = num * (4 * _BUFFER + 64) + (4 << 20)
    first, step = 0x4000_0000, 0x20_0000
    small = [RegionSpec(4096, first + k * step) for k in range(n - 1)]
    return [*small, RegionSpec(whole, first + n * step)]


def send(args: argparse.Namespace, driver: NetDriver) -> Mapping[str, float]:
    """Send flat out; what goes into a TAP of ours must arrive there."""
    before = _taken_by(args.tap) if args.tap else 0
    driver.start(post_rx=False)
    sender = driver.sender(frame(args.size))
    sender.run(seconds=_WARM_UP_S)
    counts = sender.run(seconds=args.seconds)
    if args.tap:
        all_back = sender.finish()
        back, taken = sender.counters()["completed"], _taken_by(args.tap) - before
        if not all_back or not 0 < back == taken:
            raise SystemExit(f"own_driver: {back} came back, {args.tap} has taken {taken}")
    return {"mpps": counts.rate / 1e6, "kicks": counts.kicks, "waits": counts.waits}


def _taken_by(tap: str) -> int:
    return link_columns(tap)[RX_PACKETS]


def stream(args: argparse.Namespace, driver: NetDriver) -> Mapping[str, float]:
    """Send TCP segments of some flows in turns."""
    from vhostnet.bench.tcp_stream import interleaved

    frames = interleaved(args.flows)
    driver.start(post_rx=False)
    counts = driver.sender(frames[0], others=frames[1:]).run(seconds=args.seconds)
    return {"mpps": counts.rate / 1e6, "kicks": counts.kicks, "waits": counts.waits}


def receive(args: argparse.Namespace, driver: NetDriver) -> Mapping[str, float]:
    """Receive flat out, reading every byte."""
    driver.start(post_rx=False)
    receiver = driver.receiver()
    receiver.run(seconds=_WARM_UP_S)
    counts = receiver.run(seconds=args.seconds)
    return {"mpps": counts.rate / 1e6, "kicks": counts.kicks, "waits": counts.waits}


def echo(args: argparse.Namespace, driver: NetDriver) -> Mapping[str, float]:
    """Send one frame at a time and wait for it."""
    import numpy as np

    from vhostnet.bench.echo_kernel import round_trips
    from vhostnet.bench.workloads.latency import percentiles

    driver.start(post_rx=False)
    sent = bytes(driver.hdr_len) + frame(args.size)
    template = np.frombuffer(sent, np.uint8).copy()
    sink = np.zeros(4096, np.uint8)
    sender, receiver = driver.sender(frame(args.size)), driver.receiver()
    found: list[float] = []
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        times = np.zeros(_TRIPS, np.int64)
        n = round_trips(
            sender.record,
            receiver.record,
            template.ctypes.data,
            len(sent),
            sink.ctypes.data,
            times,
            args.rest_us * 1000,
            int(args.asleep),
            _LOST_MS,
        )
        if n < _TRIPS or sink[driver.hdr_len : len(sent)].tobytes() != frame(args.size):
            raise SystemExit(f"own_driver: a frame did not come back, after {n}")
        if deadline is None:  # compiled, connected, warm
            deadline = time.monotonic() + args.seconds
        else:
            found += (times / 1e3).tolist()
    return percentiles(sorted(found))


def connect(args: argparse.Namespace) -> None:
    """Attach quiet drivers and wait for the end of standard input."""
    with ExitStack() as stack:
        for path in args.socket:
            stack.enter_context(open_driver(args, path)).start()
        print("ready", flush=True)
        sys.stdin.read()


def warm() -> None:
    """Compile what `send` needs; no device is needed for that."""
    from vhostnet_frontend import FastSender

    with GuestMemory(1 << 20) as memory:
        fd = os.eventfd(0)
        FastSender(SplitRing(memory, 64), frame(64), kick_fd=fd, call_fd=fd).close()
        os.close(fd)


def run(words: Sequence[str]) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    measuring = {"send": send, "stream": stream, "receive": receive, "echo": echo}
    parser.add_argument("what", choices=(*measuring, "connect", "each", "warm"))
    parser.add_argument("commands", nargs="*", help="for each: what to run")
    parser.add_argument("--socket", action="append", default=[])
    parser.add_argument("--device", help="a vhost character device, instead of a socket")
    parser.add_argument("--tap", help="with --device: the TAP it is given")
    parser.add_argument("--private", action="store_true", help="memory that nobody shares")
    parser.add_argument("--cpu", type=int, help="the core to run on")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--num", type=int, default=1024)
    parser.add_argument("--regions", type=int, default=1)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--in-order", action="store_true")
    parser.add_argument("--asleep", action="store_true")
    parser.add_argument("--rest-us", type=int, default=0)
    args = parser.parse_args(words)
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    if args.what == "connect":
        connect(args)
    elif args.what == "warm":
        warm()
    elif args.what == "each":
        for command in args.commands:
            run(shlex.split(command))
    else:
        with open_driver(args, *args.socket[:1]) as driver:
            print(json.dumps(measuring[args.what](args, driver)), flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
