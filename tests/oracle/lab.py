"""What a scenario has in its hands: devices, TAPs, memory, rings; stdlib only.

A scenario is a function of a `Lab` that returns what it saw as plain data.  It never looks at
the clock: it does something, lets the device settle, and looks.

Settling: SET_LOG_FD ends with a flush of the device, in Linux and in ours, so when it returns
everything that was kicked, or had arrived in the TAP, has been handled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vhostnet.uapi import tun
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    mask,
)
from vhostnet_frontend import (
    Buffer,
    DirtyLog,
    GuestMemory,
    Region,
    SplitRing,
    Transport,
    VerbError,
)
from vhostnet_frontend.netdev import signals
from vhostnet_frontend.transport import errno_name
from vhostnet_frontend.vnet_header import header_size

RX, TX = 0, 1
V1 = mask(VIRTIO_F_VERSION_1)
MRG = mask(VIRTIO_NET_F_MRG_RXBUF)
EVENT_IDX = mask(VIRTIO_RING_F_EVENT_IDX)
ON_EMPTY = mask(VIRTIO_F_NOTIFY_ON_EMPTY)
LOG_ALL = mask(VHOST_F_LOG_ALL)
IOMMU = mask(VIRTIO_F_ACCESS_PLATFORM)
ETHERTYPE = 0x88B5
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU, IFF_UP = 0x8913, 0x8914, 0x8922, 1
#: As large as a TAP allows: frames of any size come in.
MTU = 65521
PACKET_OUTGOING = 4
TUNSETSNDBUF = 0x400454D4
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
#: How long to wait for something that should come; nothing depends on its value.
PATIENCE = 5.0


class NotHere(Exception):
    """This machine's kernel lacks what the scenario needs, or we may not have it."""


class Device(Transport, Protocol):
    """A transport of the character device's kind: with read, write and poll of its file."""

    def write(self, data: bytes) -> int:
        """write(2): an IOTLB message."""

    def read(self, size: int) -> bytes:
        """read(2), not blocking."""

    def readable(self) -> tuple[bool, bool]:
        """poll(2): (readable, writable)."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Attributes:
        rules: ids in rules.py.
        needs: what the device must be: "ioctl" for raw ioctl numbers.
    """

    name: str
    rules: tuple[str, ...]
    run: Callable[[Lab], dict[str, Any]]
    needs: str = ""


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    *rules: str, needs: str = ""
) -> Callable[[Callable[[Lab], dict[str, Any]]], Callable[[Lab], dict[str, Any]]]:
    """Register a function as the scenario of its name, for *rules*."""

    def register(run: Callable[[Lab], dict[str, Any]]) -> Callable[[Lab], dict[str, Any]]:
        name = run.__name__
        assert name not in SCENARIOS, name
        SCENARIOS[name] = Scenario(name, rules, run, needs)
        return run

    return register


def frame(number: int, size: int = 60) -> bytes:
    """A frame that no other number has."""
    head = b"\xff" * 6 + b"\x02\0\0\0\0\x09" + ETHERTYPE.to_bytes(2, "big")
    head += number.to_bytes(4, "big")
    return (head + bytes((number + k) & 0xFF for k in range(size)))[:size]


def describe(data: bytes) -> str:
    """ "NUMBER:SIZE" of one of our frames, else the size and a digest."""
    number = int.from_bytes(data[14:18], "big")
    if len(data) >= 18 and data == frame(number, len(data)):
        return f"{number}:{len(data)}"
    return f"other {len(data)} bytes {hashlib.sha256(data).hexdigest()[:12]}"


class Tap:
    """A TAP, and a packet socket for the host's network behind it."""

    def __init__(self, name: str, hdr_len: int, flags: int, attach: bool, up: bool) -> None:
        self.name = name
        self._has_room = True
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._wire: socket.socket | None = None
        if not attach:
            return
        wanted = flags | tun.IFF_TAP | tun.IFF_NO_PI
        fcntl.ioctl(self.fd, tun.TUNSETIFF, struct.pack("16sH22x", name.encode(), wanted))
        if flags & tun.IFF_VNET_HDR:
            fcntl.ioctl(self.fd, tun.TUNSETVNETHDRSZ, struct.pack("i", hdr_len))
        fcntl.ioctl(self.fd, tun.TUNSETOFFLOAD, 0)
        if up:
            self.up()
        self._wire = self._open_wire()

    def up(self, up: bool = True) -> None:
        """Set the interface up (or down)."""
        self.set_up(self.name, up)

    @staticmethod
    def set_up(name: str, up: bool = True) -> None:
        """Set any interface up (or down), with the largest MTU it takes."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            with contextlib.suppress(OSError):
                path = f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"
                with open(path, "w") as file:
                    file.write("1")
            fcntl.ioctl(s, SIOCSIFMTU, struct.pack("16si20x", name.encode(), MTU))
            flags = IFF_UP if up else 0
            fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags))

    def exists(self) -> bool:
        """Whether the interface is there."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16sH22x", self.name.encode(), 0))
            except OSError:
                return False
            return True

    def limit_send_buffer(self, size: int) -> None:
        """TUNSETSNDBUF: Linux then sends packet by packet."""
        fcntl.ioctl(self.fd, TUNSETSNDBUF, struct.pack("i", size))

    def _open_wire(self) -> socket.socket:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
                wire.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        except PermissionError:
            self._has_room = False
        wire.bind((self.name, ETHERTYPE))
        wire.setblocking(False)
        return wire

    @property
    def wire(self) -> socket.socket:
        assert self._wire is not None
        return self._wire

    def arrive(self, *frames: bytes) -> None:
        """The network sends frames to the guest."""
        for data in frames:
            self.wire.send(data)

    def sent(self, expected: int) -> list[str]:
        """What the guest sent; waits until *expected* frames are there."""
        got: list[str] = []
        deadline = time.monotonic() + PATIENCE / 10
        while True:
            try:
                data, address = self.wire.recvfrom(1 << 17)
                if address[2] != PACKET_OUTGOING:
                    got.append(describe(data))
            except BlockingIOError:
                if len(got) >= expected:
                    return got
                if time.monotonic() > deadline:
                    if not self._has_room:
                        raise NotHere("without CAP_NET_ADMIN a socket holds few frames") from None
                    return got
                time.sleep(0.001)
            except OSError as e:
                if e.errno != errno.ENETDOWN:  # told once, after the interface went down
                    raise

    def close_fd(self) -> None:
        """Close the client's descriptor; the interface stays while a device holds it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self.close_fd()


class End:
    """One ring of a card, with its eventfds."""

    def __init__(self, card: Card, index: int, ring: SplitRing) -> None:
        self.card, self.index, self.ring = card, index, ring
        self.kick_fd, self.call_fd, self.err_fd = (
            card.lab.eventfd(),
            card.lab.eventfd(),
            card.lab.eventfd(),
        )
        self._seen = ring.used_idx
        self.buffers: dict[int, tuple[int, int]] = {}

    def kick(self) -> None:
        """Write the kick eventfd, and let the device settle."""
        os.eventfd_write(self.kick_fd, 1)
        self.card.settle()

    def publish(self) -> None:
        self.ring.publish()

    def send(
        self, *frames: bytes, header: bytes = b"", split: Sequence[int] = (), **how: bool
    ) -> None:
        """Make frames available (TX).

        Args:
            split: sizes of the first descriptors of each; the last has the rest.
        """
        for data in frames:
            packet = header.ljust(self.card.hdr_len, b"\0") + data
            gpa = self.card.memory.alloc(max(len(packet), 1))
            self.card.memory.write(gpa, packet)
            chain, at = [], 0
            for size in split:
                chain.append(Buffer(gpa + at, size))
                at += size
            chain.append(Buffer(gpa + at, len(packet) - at))
            self.ring.add(chain, **how)
        self.publish()

    def post(self, *sizes: int, **how: bool) -> None:
        """Make receive buffers available, full of 0xEE (RX)."""
        for size in sizes:
            gpa = self.card.memory.alloc(size)
            self.card.memory.write(gpa, b"\xee" * size)
            self.buffers[self.ring.add([Buffer(gpa, size, True)], **how)] = (gpa, size)
        self.publish()

    def offer(self, head: int) -> None:
        """Make a head available, whatever it is."""
        self.ring.write_avail(self.ring.avail_idx, head)
        self.ring.avail_idx = (self.ring.avail_idx + 1) & 0xFFFF
        self.publish()

    def used(self) -> list[list[int]]:
        """New used entries since the last look."""
        idx, found = self.ring.read_used_idx(), []
        while self._seen != idx and len(found) < 4096:
            found.append(list(self.ring.read_used(self._seen)))
            self._seen = (self._seen + 1) & 0xFFFF
        return found

    def look(self, **more: Any) -> dict[str, Any]:
        """Everything that can be seen of the ring now."""
        seen: dict[str, Any] = {
            "used_idx": self.ring.read_used_idx(),
            "used": shorten(self.used()),
            "flags": self.ring.read_used_flags(),
            "calls": signals(self.call_fd),
            "errs": signals(self.err_fd),
            "base": self.card.device.get_vring_base(self.index),
        }
        if self.card.features & EVENT_IDX:
            seen["avail_event"] = self.ring.read_avail_event()
        return seen | more

    def received(self) -> list[dict[str, Any]]:
        """What is in the buffers of new used entries (RX)."""
        seen = []
        for head, length in self.used():
            gpa, size = self.buffers[head]
            data = self.card.memory.read(gpa, size)
            part = data[:length]
            seen.append(
                {
                    "len": length,
                    "header": part[: self.card.hdr_len].hex(),
                    "frame": describe(part[self.card.hdr_len :]),
                    "beyond": data[length:].strip(b"\xee").hex()[:40],
                }
            )
        return seen

    def repair(self, *frames: bytes) -> None:
        """Put good chains at all places from the device's position on."""
        base = self.card.device.get_vring_base(self.index)
        for k, data in enumerate(frames):
            packet = bytes(self.card.hdr_len) + data
            gpa = self.card.memory.alloc(4096)
            self.card.memory.write(gpa, packet)
            writable = self.index == RX
            slot = (base + k) % self.ring.num
            self.ring.write_desc(slot, gpa, 4096 if writable else len(packet), 2 * writable)
            self.ring.write_avail(base + k, slot)
        self.ring.avail_idx = (base + len(frames)) & 0xFFFF
        self.publish()


def shorten(entries: list[list[int]]) -> Any:
    """Long lists as their length, both ends and a digest."""
    if len(entries) <= 12:
        return entries
    digest = hashlib.sha256(repr(entries).encode()).hexdigest()[:12]
    return {"n": len(entries), "first": entries[0], "last": entries[-1], "digest": digest}


class Card:
    """A device set up as a VMM does, not started.

    Attributes:
        rx, tx: the rings.
    """

    def __init__(
        self,
        lab: Lab,
        features: int = V1 | MRG,
        *,
        num: int = 16,
        base: int = 0,
        memory: GuestMemory | None = None,
        tap: Tap | None = None,
        log: bool = False,
        order: Sequence[str] = ("features", "memory", "rings"),
    ) -> None:
        self.lab, self.features = lab, features
        self.hdr_len = header_size(features)
        self.device = lab.device()
        self.tap = tap or lab.tap(self.hdr_len)
        self.memory = memory or lab.memory()
        self.log_fd: int | None = None
        event_idx = bool(features & EVENT_IDX)
        rings = [SplitRing(self.memory, num, base=base, event_idx=event_idx) for _ in (RX, TX)]
        self.rx, self.tx = (End(self, index, ring) for index, ring in enumerate(rings))
        self.ends = (self.rx, self.tx)
        self.device.set_owner()
        for step in order:
            if step == "features":
                self.device.set_features(features)
            elif step == "memory":
                self.device.set_mem_table(self.memory.regions)
            elif step == "rings":
                for end in self.ends:
                    self.set_up(end, base, log)

    def set_up(self, end: End, base: int, log: bool = False) -> None:
        device, index = self.device, end.index
        device.set_vring_num(index, end.ring.num)
        device.set_vring_base(index, base)
        device.set_vring_addr(end.ring.addr(index, log=log))
        device.set_vring_kick(index, end.kick_fd)
        device.set_vring_call(index, end.call_fd)
        device.set_vring_err(index, end.err_fd)

    def start(self, *ends: int) -> Card:
        for index in ends or (RX, TX):
            self.device.set_backend(index, self.tap.fd)
        self.settle()
        return self

    def stop(self, *ends: int) -> None:
        for index in ends or (RX, TX):
            self.device.set_backend(index, None)

    def settle(self) -> None:
        """Return when the device has handled everything there is."""
        for _ in range(2):
            self.device.set_log_fd(self.log_fd)

    def settle_until(self, condition: Callable[[], bool]) -> None:
        """Settle again and again, until *condition* or we lose patience."""
        deadline = time.monotonic() + PATIENCE
        self.settle()
        while not condition() and time.monotonic() < deadline:
            self.settle()
        self.settle()

    def arrive(self, *frames: bytes) -> None:
        """Frames come from the network, and the device settles."""
        self.tap.arrive(*frames)
        self.settle()

    def look(self) -> dict[str, Any]:
        return {"rx": self.rx.look(), "tx": self.tx.look()}


class Lab:
    """Makes things and takes them away at the end.

    Args:
        open_device: opens a device.
        on_memory: told all guest memory that is made, and when it goes (True, False).
    """

    def __init__(
        self,
        open_device: Callable[[], Device],
        on_memory: Callable[[GuestMemory, bool], None] = lambda _memory, _alive: None,
    ) -> None:
        self._open_device, self._on_memory = open_device, on_memory
        self._stack = contextlib.ExitStack()
        self._devices = contextlib.ExitStack()
        self._n_taps = 0

    def device(self) -> Device:
        device = self._open_device()
        self._devices.callback(device.close)
        return device

    def tap(
        self,
        hdr_len: int = 12,
        *,
        flags: int = tun.IFF_VNET_HDR,
        attach: bool = True,
        up: bool = True,
    ) -> Tap:
        self._n_taps += 1
        tap = Tap(f"oracle{self._n_taps}", hdr_len, flags, attach, up)
        self._stack.callback(tap.close)
        return tap

    def memory(self, regions: Any = 4 << 20) -> GuestMemory:
        memory = self._stack.enter_context(GuestMemory(regions))
        self._on_memory(memory, True)
        self._stack.callback(self._on_memory, memory, False)
        return memory

    def log(self, memory: GuestMemory) -> DirtyLog:
        log = DirtyLog(max(r.gpa + r.size for r in memory.regions))
        self._stack.callback(log.close)
        return log

    def eventfd(self, value: int = 0) -> int:
        fd = os.eventfd(value, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def keep(self, thing: Any) -> Any:
        """Close *thing* at the end."""
        self._stack.callback(thing.close)
        return thing

    def card(self, features: int = V1 | MRG, **options: Any) -> Card:
        return Card(self, features, **options)

    def close(self) -> None:
        self._devices.close()  # first: they still write to the memory
        self._stack.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def errno_of(call: Callable[..., Any], *arguments: Any) -> str:
    """ "ok", or the name of the errno that *call* is refused with."""
    try:
        call(*arguments)
    except VerbError as e:
        return errno_name(e.errno)
    return "ok"


def region(gpa: int, size: int, uva: int, like: Region | None = None) -> Region:
    """A region that says whatever we like; the file is *like*'s."""
    if like is None:
        return Region(gpa, size, uva, uva, None, 0)
    return Region(gpa, size, uva, like.hva + uva - like.uva, like.fd, like.offset + uva - like.uva)
