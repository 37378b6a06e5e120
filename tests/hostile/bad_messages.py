"""The catalogue of messages that a back-end must refuse, each with the rule it breaks.

Sizes and numbers of descriptors are written down here anew, from the protocol's document.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from driver_ring import GPA, UVA
from front_end import (
    FEATURES,
    NO_FD,
    PROTOCOL_FEATURES,
    Guest,
    addresses,
    region,
    state,
    table,
    u64,
)
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.virtio import mask

# All that can be negotiated with a device that was started with --iommu.
PROTOCOL = PROTOCOL_FEATURES | mask(
    vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD, vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ
)
N_RINGS = 2
PAGE = 4096


@dataclass(frozen=True)
class Bad:
    """One message that breaks a rule.

    Attributes:
        name: what is wrong with it.
        number, payload: of the message.
        says: what the log line must contain besides the message's name.
        fds: makes its descriptors; the stack closes them.
        is_running: whether the rings must run before it is sent.
        has_reply: whether the message has a reply of its own, so that no ack can refuse it.
    """

    name: str
    number: int
    payload: bytes
    says: str
    fds: Callable[[Guest, ExitStack], list[int]] = lambda _guest, _stack: []
    is_running: bool = False
    has_reply: bool = False

    @property
    def request_name(self) -> str:
        return vu.REQUEST_NAMES.get(self.number, f"request {self.number}")

    def __str__(self) -> str:
        return f"{self.request_name}: {self.name}"


# number: (payload bytes, fewest descriptors, most descriptors)
FORMS = {
    vu.VHOST_USER_GET_FEATURES: (0, 0, 0),
    vu.VHOST_USER_SET_FEATURES: (8, 0, 0),
    vu.VHOST_USER_SET_OWNER: (0, 0, 0),
    vu.VHOST_USER_RESET_OWNER: (0, 0, 0),
    vu.VHOST_USER_SET_LOG_BASE: (16, 1, 1),
    vu.VHOST_USER_SET_LOG_FD: (0, 1, 1),
    vu.VHOST_USER_SET_VRING_NUM: (8, 0, 0),
    vu.VHOST_USER_SET_VRING_ADDR: (40, 0, 0),
    vu.VHOST_USER_SET_VRING_BASE: (8, 0, 0),
    vu.VHOST_USER_GET_VRING_BASE: (8, 0, 0),
    vu.VHOST_USER_SET_VRING_KICK: (8, 0, 1),
    vu.VHOST_USER_SET_VRING_CALL: (8, 0, 1),
    vu.VHOST_USER_SET_VRING_ERR: (8, 0, 1),
    vu.VHOST_USER_GET_PROTOCOL_FEATURES: (0, 0, 0),
    vu.VHOST_USER_SET_PROTOCOL_FEATURES: (8, 0, 0),
    vu.VHOST_USER_GET_QUEUE_NUM: (0, 0, 0),
    vu.VHOST_USER_SET_VRING_ENABLE: (8, 0, 0),
    vu.VHOST_USER_SEND_RARP: (8, 0, 0),
    vu.VHOST_USER_NET_SET_MTU: (8, 0, 0),
    vu.VHOST_USER_SET_BACKEND_REQ_FD: (0, 1, 1),
    vu.VHOST_USER_IOTLB_MSG: (32, 0, 0),
    vu.VHOST_USER_RESET_DEVICE: (0, 0, 0),
    vu.VHOST_USER_GET_MAX_MEM_SLOTS: (0, 0, 0),
    vu.VHOST_USER_ADD_MEM_REG: (40, 1, 1),
    vu.VHOST_USER_REM_MEM_REG: (40, 0, 1),
    vu.VHOST_USER_SET_STATUS: (8, 0, 0),
    vu.VHOST_USER_GET_STATUS: (0, 0, 0),
}
WITH_REPLY = (
    vu.VHOST_USER_GET_FEATURES,
    vu.VHOST_USER_SET_LOG_BASE,
    vu.VHOST_USER_GET_VRING_BASE,
    vu.VHOST_USER_GET_PROTOCOL_FEATURES,
    vu.VHOST_USER_GET_QUEUE_NUM,
    vu.VHOST_USER_GET_MAX_MEM_SLOTS,
    vu.VHOST_USER_GET_STATUS,
)
WITH_RING_FD = (
    vu.VHOST_USER_SET_VRING_KICK,
    vu.VHOST_USER_SET_VRING_CALL,
    vu.VHOST_USER_SET_VRING_ERR,
)


# --- descriptors ------------------------------------------------------------------------------


def opened(stack: ExitStack, fd: int) -> int:
    """Close *fd* when the case is over."""
    stack.callback(os.close, fd)
    return fd


def eventfds(n: int) -> Callable[[Guest, ExitStack], list[int]]:
    return lambda _guest, stack: [opened(stack, os.eventfd(0, os.EFD_NONBLOCK)) for _ in range(n)]


def memory_of(n: int) -> Callable[[Guest, ExitStack], list[int]]:
    """The guest's memory file, n times."""
    return lambda guest, _stack: [guest.memory.fd] * n


def a_memfd(stack: ExitStack, size: int = 1 << 20, flags: int = 0) -> int:
    fd = opened(stack, os.memfd_create("bad", os.MFD_CLOEXEC | flags))
    os.ftruncate(fd, size)
    return fd


def read_only_memfd(_guest: Guest, stack: ExitStack) -> list[int]:
    fd = a_memfd(stack)
    return [opened(stack, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))]


def path_only_memfd(_guest: Guest, stack: ExitStack) -> list[int]:
    fd = a_memfd(stack)
    return [opened(stack, os.open(f"/proc/self/fd/{fd}", os.O_PATH))]


def write_sealed_memfd(_guest: Guest, stack: ExitStack) -> list[int]:
    fd = a_memfd(stack, flags=os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return [fd]


def a_pipe(_guest: Guest, stack: ExitStack) -> list[int]:
    ends = os.pipe()
    return [opened(stack, fd) for fd in ends][:1]


def a_socket(_guest: Guest, stack: ExitStack) -> list[int]:
    return [opened(stack, socket.socket(socket.AF_UNIX).detach())]


def a_directory(_guest: Guest, stack: ExitStack) -> list[int]:
    return [opened(stack, os.open("/", os.O_RDONLY | os.O_DIRECTORY))]


def a_character_device(_guest: Guest, stack: ExitStack) -> list[int]:
    return [opened(stack, os.open("/dev/zero", os.O_RDWR))]


def an_empty_file(_guest: Guest, stack: ExitStack) -> list[int]:
    return [a_memfd(stack, 0)]


def a_regular_file(_guest: Guest, stack: ExitStack) -> list[int]:
    return [a_memfd(stack)]


# --- the catalogue ----------------------------------------------------------------------------


def _bad_forms() -> list[Bad]:
    """Every message with every wrong size, and with too few or too many descriptors."""
    cases = []
    for number, (size, fewest, most) in FORMS.items():
        has_reply = number in WITH_REPLY
        fds = eventfds(fewest)
        for wrong in sorted({0, size - 1, size + 1, size + 8, 4096} - {size, -1}):
            says = f"payload of {wrong} bytes, must be {size}"
            cases.append(
                Bad(f"{wrong} bytes", number, bytes(wrong), says, fds, has_reply=has_reply)
            )
        for n in {most + 1, most + 7, 32, fewest - 1} - {-1}:
            says = f"{n} file descriptors, must be"
            cases.append(
                Bad(f"{n} fds", number, bytes(size), says, eventfds(n), has_reply=has_reply)
            )
    return cases


def _bad_indices() -> list[Bad]:
    cases = []
    for index in (N_RINGS, 0xFF, 0x100, 0x10000, 0x10001, 0xFFFF_FFFF):
        says = f"ring {index} of a device with {N_RINGS} rings"
        of_ring = addresses(index, UVA, UVA, UVA)
        num = state(index, 256)
        cases += [
            Bad(f"ring {index:#x}", vu.VHOST_USER_SET_VRING_NUM, num, says),
            Bad(f"ring {index:#x}", vu.VHOST_USER_SET_VRING_ADDR, of_ring, says),
            Bad(f"ring {index:#x}", vu.VHOST_USER_SET_VRING_BASE, state(index, 0), says),
            Bad(
                f"ring {index:#x}",
                vu.VHOST_USER_GET_VRING_BASE,
                state(index, 0),
                says,
                has_reply=True,
            ),
            Bad(f"ring {index:#x}", vu.VHOST_USER_SET_VRING_ENABLE, state(index, 1), says),
        ]
    for number in WITH_RING_FD:
        for index in (N_RINGS, 0xFF):
            says = f"ring {index} of a device with {N_RINGS} rings"
            cases.append(Bad(f"ring {index:#x}", number, u64(index), says, eventfds(1)))
            cases.append(Bad(f"ring {index:#x}, no fd", number, u64(index | NO_FD), says))
        for value in (1 << 9, 1 << 16, 1 << 32, 1 << 63):
            says = "mean nothing"
            cases.append(Bad(f"u64 {value:#x}", number, u64(value), says, eventfds(1)))
        cases += [
            Bad("fd forgotten", number, u64(0), "file descriptor is missing"),
            Bad("fd with the no-fd bit", number, u64(NO_FD), "but one came", eventfds(1)),
        ]
    return cases


def _bad_rings() -> list[Bad]:
    kick = vu.VHOST_USER_SET_VRING_KICK
    cases = [
        Bad(f"{num} entries", vu.VHOST_USER_SET_VRING_NUM, state(0, num), "is not a power of two")
        for num in (0, 3, 255, 32767, 32769, 65536, 0xFFFF_FFFF)
    ]
    cases += [
        Bad(
            "base beyond 16 bits", vu.VHOST_USER_SET_VRING_BASE, state(1, 0x10000), "beyond 0xffff"
        ),
        Bad("neither 0 nor 1", vu.VHOST_USER_SET_VRING_ENABLE, state(1, 2), "neither 0 nor 1"),
        Bad(
            "odd avail",
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(0, UVA, UVA + 0x1000, UVA + 0x2001),
            "must be 2-aligned",
        ),
        Bad(
            "used at 2",
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(0, UVA, UVA + 0x1002, UVA + 0x2000),
            "4-aligned",
        ),
        Bad(
            "unknown flags",
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(0, UVA, UVA + 0x1000, UVA + 0x2000, 0xFFFF_FFFE),
            "flags",
        ),
        Bad("regular file", kick, u64(0), "cannot be polled", a_regular_file, is_running=True),
        Bad("directory", kick, u64(0), "cannot be polled", a_directory, is_running=True),
        Bad("path", kick, u64(0), "cannot be polled", path_only_memfd, is_running=True),
        Bad(
            "other size while it runs",
            vu.VHOST_USER_SET_VRING_NUM,
            state(1, 64),
            "while it runs",
            is_running=True,
        ),
        Bad(
            "base while it runs",
            vu.VHOST_USER_SET_VRING_BASE,
            state(1, 7),
            "while it runs",
            is_running=True,
        ),
        Bad(
            "addresses in no region while it runs",
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(1, 0x1000, 0x2000, 0x3000),
            "in no region",
            is_running=True,
        ),
        Bad(
            "addresses that wrap while it runs",
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(1, (1 << 64) - 16, (1 << 64) - 4, (1 << 64) - 2),
            "in no region",
            is_running=True,
        ),
        Bad(
            "used ring over the end of memory while it runs",
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(1, UVA, UVA + (1 << 20) - 64, UVA + 0x1000),
            "in no region",
            is_running=True,
        ),
    ]
    return cases


def _bad_features() -> list[Bad]:
    never = (2, 17, 18, 37, 41, 63)
    cases = [
        Bad(
            f"bit {bit}",
            vu.VHOST_USER_SET_FEATURES,
            u64(FEATURES | 1 << bit),
            "never offered",
        )
        for bit in never
    ]
    cases += [
        Bad(
            f"protocol bit {bit}",
            vu.VHOST_USER_SET_PROTOCOL_FEATURES,
            u64(PROTOCOL | 1 << bit),
            "never offered",
        )
        for bit in (6, 7, 17, 20, 22, 63)
    ]
    cases += [
        Bad(
            "others while rings run",
            vu.VHOST_USER_SET_FEATURES,
            u64(FEATURES & ~(1 << 15)),
            "while a ring runs",
            is_running=True,
        ),
        Bad("MTU 67", vu.VHOST_USER_NET_SET_MTU, u64(67), "MTU 67"),
        Bad("MTU 65536", vu.VHOST_USER_NET_SET_MTU, u64(65536), "MTU 65536"),
        Bad("status of 9 bits", vu.VHOST_USER_SET_STATUS, u64(0x100), "more than a byte"),
    ]
    return cases


def _bad_memory() -> list[Bad]:
    """Regions that can not be mapped, as a table of one and as a slot of their own."""
    full = 1 << 20
    good = memory_of(1)
    regions: list[tuple[str, bytes, Callable[[Guest, ExitStack], list[int]], str]] = [
        ("empty", region(GPA, 0, UVA), good, "is empty"),
        ("gpa wraps", region((1 << 64) - PAGE, 2 * PAGE, UVA), good, "wraps"),
        ("gpa at the very end", region((1 << 64) - 1, 1, UVA), good, "wraps"),
        ("uva wraps", region(GPA, 2 * PAGE, (1 << 64) - PAGE), good, "wraps"),
        ("size of all", region(0, (1 << 64) - 1, UVA), good, "wraps"),
        ("longer than its file", region(GPA, full + PAGE, UVA), good, "beyond its file"),
        ("one byte too long", region(GPA, full + 1, UVA), good, "beyond its file"),
        ("offset beyond its file", region(GPA, PAGE, UVA, full), good, "beyond its file"),
        ("offset wraps", region(GPA, 2 * PAGE, UVA, (1 << 64) - PAGE), good, "beyond its file"),
        ("a petabyte", region(GPA, 1 << 50, UVA), good, "beyond its file"),
        ("empty file", region(GPA, PAGE, UVA), an_empty_file, "beyond its file"),
        ("read-only file", region(GPA, PAGE, UVA), read_only_memfd, "Permission denied"),
        ("sealed file", region(GPA, PAGE, UVA), write_sealed_memfd, "not permitted"),
        ("path", region(GPA, PAGE, UVA), path_only_memfd, "Bad file descriptor"),
        ("pipe", region(GPA, PAGE, UVA), a_pipe, "not a file that can be mapped"),
        ("socket", region(GPA, PAGE, UVA), a_socket, "not a file that can be mapped"),
        ("directory", region(GPA, PAGE, UVA), a_directory, "not a file that can be mapped"),
        ("eventfd", region(GPA, PAGE, UVA), eventfds(1), "not a file that can be mapped"),
        ("device", region(GPA, PAGE, UVA), a_character_device, "not a file that can be mapped"),
    ]
    cases = []
    for name, one, fds, says in regions:
        cases.append(Bad(name, vu.VHOST_USER_SET_MEM_TABLE, table(one), says, fds))
        cases.append(Bad(name, vu.VHOST_USER_ADD_MEM_REG, bytes(8) + one, says, fds))
    one, two = region(GPA, 4 * PAGE, UVA), region(GPA + PAGE, PAGE, UVA + (1 << 30))
    third = region(GPA + (1 << 30), PAGE, UVA + (1 << 31))
    set_table = vu.VHOST_USER_SET_MEM_TABLE
    cases += [
        Bad("overlap", set_table, table(one, two), "overlap", memory_of(2)),
        Bad("overlap, not sorted", set_table, table(third, two, one), "overlap", memory_of(3)),
        Bad("the same twice", set_table, table(one, one), "overlap", memory_of(2)),
        Bad(
            "the third can not be mapped",
            set_table,
            table(one, third, region(GPA + (1 << 32), 2 * full, UVA)),
            "beyond its file",
            memory_of(3),
        ),
        Bad("fewer fds than regions", set_table, table(one, third), "2 regions", memory_of(1)),
        Bad("more fds than regions", set_table, table(one), "1 regions", memory_of(2)),
        Bad("no fd", set_table, table(one), "1 regions"),
        Bad("fds and no region", set_table, table(), "0 regions", memory_of(1)),
        Bad("no payload", set_table, b"", "payload of 0 bytes"),
        Bad("a part of a head", set_table, bytes(7), "payload of 7 bytes"),
        Bad("half of a region", set_table, table(one)[:-16], "for 1 regions", memory_of(1)),
        Bad(
            "number of regions that wraps",
            set_table,
            (0x0800_0000).to_bytes(4, "little") + table(one)[4:],
            "regions",
            memory_of(1),
        ),
        Bad(
            "as many regions as there are numbers",
            set_table,
            b"\xff" * 4 + table(one)[4:],
            "regions",
            memory_of(1),
        ),
        Bad(
            "overlaps what is mapped",
            vu.VHOST_USER_ADD_MEM_REG,
            bytes(8) + region(GPA + PAGE, PAGE, UVA + (1 << 40)),
            "overlap",
            memory_of(1),
            is_running=True,
        ),
        Bad(
            "was never added",
            vu.VHOST_USER_REM_MEM_REG,
            bytes(8) + region(GPA + (1 << 40), PAGE, UVA),
            "there is no region",
        ),
        Bad(
            "other size than was added",
            vu.VHOST_USER_REM_MEM_REG,
            bytes(8) + region(GPA, PAGE, UVA),
            "there is no region",
            is_running=True,
        ),
    ]
    return cases


def _bad_logs() -> list[Bad]:
    """Dirty bitmaps that can not be mapped."""
    full = 1 << 20
    logs: list[tuple[str, int, int, Callable[[Guest, ExitStack], list[int]], str]] = [
        ("empty", 0, 0, memory_of(1), "is empty"),
        ("longer than its file", full + 1, 0, memory_of(1), "beyond its file"),
        ("offset beyond its file", PAGE, full, memory_of(1), "beyond its file"),
        ("sum that wraps", (1 << 64) - PAGE, 2 * PAGE, memory_of(1), "beyond its file"),
        ("empty file", PAGE, 0, an_empty_file, "beyond its file"),
        ("read-only file", PAGE, 0, read_only_memfd, "Permission denied"),
        ("pipe", PAGE, 0, a_pipe, "beyond its file"),
        ("socket", PAGE, 0, a_socket, "beyond its file"),
        ("directory", PAGE, 0, a_directory, ""),
    ]
    number = vu.VHOST_USER_SET_LOG_BASE
    return [
        Bad(name, number, vu.LOG.pack(vu.Log(size, offset)), says, fds, has_reply=True)
        for name, size, offset, fds, says in logs
    ]


def _bad_iotlb() -> list[Bad]:
    def message(kind: int) -> bytes:
        return vu.IOTLB.pack(vu.Iotlb(0, PAGE, UVA, 3, kind, 0, 0))

    number = vu.VHOST_USER_IOTLB_MSG
    return [
        Bad("no socket", vu.VHOST_USER_SET_BACKEND_REQ_FD, b"", "our requests", eventfds(1)),
        Bad("regular file", vu.VHOST_USER_SET_BACKEND_REQ_FD, b"", "our requests", a_regular_file),
        *[
            Bad(f"type {kind}", number, message(kind), "neither update nor invalidate")
            for kind in (0, 1, 4, 255)
        ],
        Bad("update without an IOMMU", number, message(2), "ACCESS_PLATFORM was not acked"),
        Bad("invalidate without an IOMMU", number, message(3), "ACCESS_PLATFORM was not acked"),
    ]


def _unknown() -> list[Bad]:
    """Numbers that mean nothing, and messages of features that are not offered."""
    numbers = [0, 44, 99, 0x7FFF_FFFF, 0xFFFF_FFFF]
    return [Bad("unknown", n, bytes(8), "does not offer it", eventfds(2)) for n in numbers]


CATALOGUE = [
    *_bad_forms(),
    *_bad_indices(),
    *_bad_rings(),
    *_bad_features(),
    *_bad_memory(),
    *_bad_logs(),
    *_bad_iotlb(),
    *_unknown(),
]
