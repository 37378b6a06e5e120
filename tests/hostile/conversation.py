"""All that QEMU says to a back-end of a guest that starts, works, is stopped and goes on.

A conversation is a generator of `Step`s.  Whoever plays it sends a step's message, reads the
reply if it has one, and asks for the next step; packets move in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from driver_ring import GPA, UVA
from front_end import (
    FEATURES,
    NEED_REPLY,
    PROTOCOL_FEATURES,
    VERSION,
    FrontEnd,
    Guest,
    addresses,
    message,
    region,
    state,
    table,
    u64,
)
from vhostnet.uapi import vhost_user as vu

RX_BUFFERS = 4
FRAME = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + b"\x88\xb5" + b"conversation" * 4
HOTPLUGGED = 0x10_0000


@dataclass(frozen=True)
class Step:
    """One message: its bytes, its descriptors, whether it is answered."""

    number: int
    data: bytes
    fds: tuple[int, ...] = ()
    is_answered: bool = False


def tell(number: int, payload: bytes = b"", *fds: int) -> Step:
    return Step(number, message(number, payload), fds)


def ask(number: int, payload: bytes = b"") -> Step:
    return Step(number, message(number, payload), is_answered=True)


def acked(number: int, payload: bytes = b"", *fds: int) -> Step:
    return Step(number, message(number, payload, VERSION | NEED_REPLY), fds, is_answered=True)


def connect_block(guest: Guest, by_slots: bool) -> Iterator[Step]:
    """What is said when QEMU starts, before the guest runs."""
    yield ask(vu.VHOST_USER_GET_FEATURES)
    yield ask(vu.VHOST_USER_GET_PROTOCOL_FEATURES)
    slots = 1 << vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
    protocol = PROTOCOL_FEATURES if by_slots else PROTOCOL_FEATURES & ~slots
    yield tell(vu.VHOST_USER_SET_PROTOCOL_FEATURES, u64(protocol))
    yield ask(vu.VHOST_USER_GET_QUEUE_NUM)
    if by_slots:
        yield ask(vu.VHOST_USER_GET_MAX_MEM_SLOTS)
    yield tell(vu.VHOST_USER_SET_OWNER)
    yield ask(vu.VHOST_USER_GET_FEATURES)
    for queue in guest.queues:
        yield tell(vu.VHOST_USER_SET_VRING_CALL, u64(queue.index), queue.call)
        yield tell(vu.VHOST_USER_SET_VRING_ERR, u64(queue.index), queue.err)
    yield from enable(guest)


def enable(guest: Guest) -> Iterator[Step]:
    for queue in guest.queues:
        yield tell(vu.VHOST_USER_SET_VRING_ENABLE, state(queue.index, 1))


def start_block(guest: Guest, by_slots: bool, *, bases: dict[int, int]) -> Iterator[Step]:
    """DRIVER_OK, or a stopped guest that goes on."""
    yield acked(vu.VHOST_USER_NET_SET_MTU, u64(1400))
    yield from enable(guest)
    yield tell(vu.VHOST_USER_SET_FEATURES, u64(FEATURES))
    yield ask(vu.VHOST_USER_GET_STATUS)
    yield tell(vu.VHOST_USER_SET_STATUS, u64(8))
    if not by_slots:
        yield acked(vu.VHOST_USER_SET_MEM_TABLE, table(guest.region()), guest.memory.fd)
    elif not bases:
        single = bytes(8) + guest.region()
        yield acked(vu.VHOST_USER_ADD_MEM_REG, single, guest.memory.fd)
    for queue in guest.queues:
        index, where = queue.index, queue.ring.addresses()
        yield tell(vu.VHOST_USER_SET_VRING_NUM, state(index, queue.ring.num))
        yield tell(vu.VHOST_USER_SET_VRING_BASE, state(index, bases.get(index, 0)))
        yield tell(
            vu.VHOST_USER_SET_VRING_ADDR,
            addresses(index, where.desc_uva, where.used_uva, where.avail_uva),
        )
        yield tell(vu.VHOST_USER_SET_VRING_KICK, u64(index), queue.kick_fd)
        yield tell(vu.VHOST_USER_SET_VRING_CALL, u64(index), queue.call)
    yield ask(vu.VHOST_USER_GET_STATUS)
    yield tell(vu.VHOST_USER_SET_STATUS, u64(0xF))


def stop_block(guest: Guest) -> Iterator[Step]:
    yield tell(vu.VHOST_USER_SET_STATUS, u64(0))
    for queue in guest.queues:
        yield ask(vu.VHOST_USER_GET_VRING_BASE, state(queue.index, 0))


def hotplug(guest: Guest, by_slots: bool) -> Iterator[Step]:
    """More memory while packets move: the front half of the same file, somewhere else."""
    size = guest.memory.size // 2
    more = region(GPA + (1 << 32), size, UVA + (1 << 32), 0)
    if by_slots:
        yield acked(vu.VHOST_USER_ADD_MEM_REG, bytes(8) + more, guest.memory.fd)
        yield acked(vu.VHOST_USER_REM_MEM_REG, bytes(8) + more)
    else:
        both = table(guest.region(), more)
        yield acked(vu.VHOST_USER_SET_MEM_TABLE, both, guest.memory.fd, guest.memory.fd)


def whole_conversation(
    guest: Guest, by_slots: bool, move_packets: Callable[[Guest], None]
) -> Iterator[Step]:
    """From the connection to a stopped guest; the rings must be as after a reset."""
    yield from connect_block(guest, by_slots)
    yield from enable(guest)
    yield from start_block(guest, by_slots, bases={})
    move_packets(guest)
    yield tell(vu.VHOST_USER_SEND_RARP, bytes.fromhex("020000000001") + bytes(2))
    yield from hotplug(guest, by_slots)
    move_packets(guest)
    yield from stop_block(guest)
    bases = {queue.index: queue.ring.used_idx() for queue in guest.queues}
    yield from start_block(guest, by_slots, bases=bases)
    move_packets(guest)
    yield from stop_block(guest)
    yield tell(vu.VHOST_USER_RESET_DEVICE)
    yield ask(vu.VHOST_USER_GET_FEATURES)


def send_only(guest: Guest) -> None:
    """A backend that swallows: three frames go, and come back used."""
    guest.rx.post(1)
    guest.tx.send(FRAME, FRAME[:14], FRAME * 2)
    guest.tx.wait_used(3)


def there_and_back(guest: Guest) -> None:
    """A backend that returns: three frames go, and are received."""
    frames = [FRAME, FRAME[:14], FRAME * 2]
    guest.rx.post(len(frames))
    guest.tx.send(*frames)
    assert guest.rx.wait_frames(len(frames)) == frames
    guest.tx.wait_used(len(frames))


def play(front_end: FrontEnd, step: Step) -> None:
    """Send a step's message and read the reply."""
    front_end.send_bytes(step.data, step.fds)
    if step.is_answered:
        payload = front_end.reply_to(step.number)
        if step.data[4] & NEED_REPLY:
            assert payload == u64(0), vu.REQUEST_NAMES[step.number]
