"""Say a recorded vhost-user conversation again, to any back-end.

What cannot be recorded is made anew: memory is a file of zeros for each region, kicks and calls are
eventfds that nobody writes, and a ring that starts at base *n* is an empty ring at *n*.  What was
negotiated follows this back-end's offer: features that it does not offer are not acknowledged, and
messages of protocol features that it did not get are left out.  A back-end that knows no memory
slots is told the whole table instead, as VMMs do.  Everything else is said as it was.

What it is for: to see where a back-end answers otherwise than the one that was recorded, and to
bring the messages of a VMM's boot, a migration or a bug report to a test bench without the VMM.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vhostnet.errors import HostError, PeerError
from vhostnet.protocol.vhost_user_codec import encode_message
from vhostnet.protocol.vhost_user_session import RULES, Answer
from vhostnet.protocol.vhost_user_trace import Event, Exchange
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, VRING_AVAIL_IDX, VRING_USED_IDX

ANSWER_TIMEOUT_S = 10.0
#: The longest reply that any message of ours has.
_MAX_REPLY = 4096
#: What was offered, by the message that acknowledges it.
_OFFERS = {
    vu.VHOST_USER_SET_FEATURES: vu.VHOST_USER_GET_FEATURES,
    vu.VHOST_USER_SET_PROTOCOL_FEATURES: vu.VHOST_USER_GET_PROTOCOL_FEATURES,
}
_VRING_FILES = (
    vu.VHOST_USER_SET_VRING_KICK,
    vu.VHOST_USER_SET_VRING_CALL,
    vu.VHOST_USER_SET_VRING_ERR,
    vu.VHOST_USER_SET_LOG_FD,
)
_SLOT_MESSAGES = (vu.VHOST_USER_ADD_MEM_REG, vu.VHOST_USER_REM_MEM_REG)


@dataclass(slots=True)
class Outcome:
    """What became of one message.

    Attributes:
        recorded: as it is in the trace.
        now: as it was this time, or None if it was left out.
        why: it was left out.
    """

    recorded: Exchange
    now: Exchange | None
    why: str = ""

    @property
    def is_other(self) -> bool:
        """Whether this back-end answered otherwise."""
        return self.now is not None and self.now.answer != self.recorded.answer

    @property
    def is_refused(self) -> bool:
        """Whether it refused what was granted when it was recorded."""
        rule = RULES.get(self.recorded.number)
        is_ack = rule is None or rule.answer is Answer.ACK
        return is_ack and self.is_other


def connections(said: Iterable[tuple[str, Exchange | Event]], who: str) -> list[list[Exchange]]:
    """The messages of one device, a list for each connection."""
    found: list[list[Exchange]] = []
    is_open = False
    for name, part in said:
        if name != who:
            continue
        if isinstance(part, Event):
            is_open = part.text.startswith("connected")
            if is_open:
                found.append([])
        else:
            if not is_open and not found:  # an extract of a trace
                found.append([])
            found[-1].append(part)
    return found


@dataclass(slots=True)
class _Memory:
    """One region's file, made anew."""

    region: vu.MemoryRegion
    fd: int


@dataclass(slots=True)
class _Ring:
    base: int = 0
    addr: vu.VringAddr | None = None


@dataclass(slots=True)
class Replay:
    """One connection to a back-end.

    Args:
        sock: connected, ours from now on.

    `run` raises PeerError if the back-end hangs up, is silent for 10 seconds, or answers another
    message than the one that was sent.
    """

    sock: socket.socket
    _offered: dict[int, int] = field(default_factory=dict)
    _acked: dict[int, int] = field(default_factory=dict)
    _memory: dict[vu.MemoryRegion, _Memory] = field(default_factory=dict)
    _slots: dict[vu.MemoryRegion, None] = field(default_factory=dict)
    _rings: dict[int, _Ring] = field(default_factory=dict)
    _kept: list[int] = field(default_factory=list)

    def run(self, said: Sequence[Exchange]) -> Iterator[Outcome]:
        """Say each message and tell what became of it; the last step sees that it is alive."""
        self.sock.settimeout(ANSWER_TIMEOUT_S)
        for recorded in said:
            yield self._say(recorded)
        if not (said and said[-1].is_end):
            self._say(Exchange(vu.VHOST_USER_GET_FEATURES, vu.VHOST_USER_VERSION, b""))

    def close(self) -> None:
        """Hang up, and let go of what was made."""
        self.sock.close()
        for fd in (*self._kept, *(memory.fd for memory in self._memory.values())):
            os.close(fd)
        self._kept.clear()
        self._memory.clear()

    def _say(self, recorded: Exchange) -> Outcome:
        message = self._without_slots(recorded)
        rule = RULES.get(message.number)
        if rule is not None and rule.feature is not None and not self._has(rule.feature):
            name = vu.PROTOCOL_FEATURE_NAMES[rule.feature]
            return Outcome(recorded, None, f"{name} was not negotiated with this back-end")
        with contextlib.ExitStack() as stack:
            message = replace(
                message, payload=self._payload(message), flags=self._flags(message), files=()
            )
            self._note(message)
            fds = [self._file(message, n, stack) for n in range(len(message.fds))]
            begin = time.perf_counter()
            data = encode_message(message.number, message.flags, message.payload)
            answer = self._ask(message, data, fds, self._is_answered(message))
            seconds = time.perf_counter() - begin
        if answer is not None and message.number in _OFFERS.values():
            self._offered[message.number] = vu.NUMBER.unpack(answer).u64
        now = replace(
            message, fds=tuple(fds), answer=answer, error=None, is_end=False, seconds=seconds
        )
        return Outcome(recorded, now)

    # --- negotiation ----------------------------------------------------------------------------

    def _has(self, protocol_feature: int) -> bool:
        acked = self._acked.get(vu.VHOST_USER_SET_PROTOCOL_FEATURES, 0)
        return bool(acked >> protocol_feature & 1)

    def _payload(self, recorded: Exchange) -> bytes:
        offer = self._offered.get(_OFFERS.get(recorded.number, 0))
        if offer is None or len(recorded.payload) != vu.NUMBER.size:
            return recorded.payload
        wanted = vu.NUMBER.unpack(recorded.payload).u64 & offer
        self._acked[recorded.number] = wanted
        return vu.NUMBER.pack(vu.Number(wanted))

    def _flags(self, recorded: Exchange) -> int:
        if self._has(vu.VHOST_USER_PROTOCOL_F_REPLY_ACK):
            return recorded.flags
        return recorded.flags & ~vu.VHOST_USER_NEED_REPLY_MASK

    def _is_answered(self, message: Exchange) -> bool:
        rule = RULES.get(message.number)
        if rule is not None and rule.answer is Answer.REPLY:
            return True
        return bool(message.flags & vu.VHOST_USER_NEED_REPLY_MASK)

    def _without_slots(self, recorded: Exchange) -> Exchange:
        """The whole table in place of one region, for a back-end that does not know slots."""
        if recorded.number not in _SLOT_MESSAGES:
            return recorded
        region = vu.SINGLE_REGION.unpack(recorded.payload).region
        if recorded.number == vu.VHOST_USER_ADD_MEM_REG:
            self._slots[region] = None
        else:  # the removal of a region may leave out where in its file it was
            self._slots = {slot: None for slot in self._slots if slot.key != region.key}
        if self._has(vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS) or not self._slots:
            return recorded
        table = vu.MEMORY_TABLE_HEAD.pack(vu.MemoryTableHead(len(self._slots), 0))
        table += b"".join(map(vu.MEMORY_REGION.pack, self._slots))
        fds = (-1,) * len(self._slots)
        return replace(recorded, number=vu.VHOST_USER_SET_MEM_TABLE, payload=table, fds=fds)

    # --- what is made anew ----------------------------------------------------------------------

    def _file(self, message: Exchange, n: int, stack: contextlib.ExitStack) -> int:
        """In place of the message's n-th descriptor."""
        if message.number in _VRING_FILES:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        elif message.number == vu.VHOST_USER_SET_BACKEND_REQ_FD:
            ours, theirs = socket.socketpair()
            self._kept.append(ours.detach())
            fd = theirs.detach()
        elif message.number == vu.VHOST_USER_SET_LOG_BASE:
            log = vu.LOG.unpack(message.payload)
            fd = _zeros("log", log.mmap_offset + log.mmap_size)
        else:
            regions = _regions(message)
            if n < len(regions):
                return self._of_region(regions[n])
            fd = _zeros("unknown", 0)
        stack.callback(os.close, fd)
        return fd

    def _of_region(self, region: vu.MemoryRegion) -> int:
        """The same file whenever a region of the same place is named again."""
        if region not in self._memory:
            fd = _zeros("memory", region.mmap_offset + region.memory_size)
            self._memory[region] = _Memory(region, fd)
        return self._memory[region].fd

    def _note(self, message: Exchange) -> None:
        """Remember what a ring is made of; empty it when it is about to start."""
        if message.number == vu.VHOST_USER_SET_VRING_ADDR:
            addr = vu.VRING_ADDR.unpack(message.payload)
            self._ring(addr.index).addr = addr
        elif message.number == vu.VHOST_USER_SET_VRING_BASE:
            state = vu.VRING_STATE.unpack(message.payload)
            self._ring(state.index).base = state.num
        elif message.number == vu.VHOST_USER_SET_VRING_KICK:
            index = vu.NUMBER.unpack(message.payload).u64 & vu.VHOST_USER_VRING_IDX_MASK
            self._empty(self._ring(index))

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index, _Ring())

    def _empty(self, ring: _Ring) -> None:
        """A split ring whose driver has offered nothing behind its base; zeros are a packed one."""
        acked = self._acked.get(vu.VHOST_USER_SET_FEATURES, 0)
        if ring.addr is None or acked >> VIRTIO_F_RING_PACKED & 1:
            return
        index = (ring.base & 0xFFFF).to_bytes(2, "little")
        self._poke(ring.addr.avail_user_addr + VRING_AVAIL_IDX, index)
        self._poke(ring.addr.used_user_addr + VRING_USED_IDX, index)

    def _poke(self, user_addr: int, data: bytes) -> None:
        for memory in self._memory.values():
            offset = user_addr - memory.region.userspace_addr
            if 0 <= offset <= memory.region.memory_size - len(data):
                os.pwrite(memory.fd, data, memory.region.mmap_offset + offset)

    # --- the socket -----------------------------------------------------------------------------

    def _ask(
        self, message: Exchange, data: bytes, fds: Sequence[int], is_answered: bool
    ) -> bytes | None:
        try:
            sent = socket.send_fds(self.sock, [data], fds)
            self.sock.sendall(data[sent:])
            if not is_answered:
                return None
            header = vu.HEADER.unpack(self._read(vu.HEADER.size))
            if header.request != message.number or header.size > _MAX_REPLY:
                raise PeerError(f"{message.name}: answered with a message {header.request}")
            return self._read(header.size)
        except TimeoutError:
            raise PeerError(f"{message.name}: no answer within {ANSWER_TIMEOUT_S:.0f} s") from None
        except ConnectionError as e:
            raise PeerError(f"{message.name}: the back-end hung up ({e.strerror})") from e

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise ConnectionResetError(0, "end of stream")
            data += piece
        return data


def connect(path: str) -> socket.socket:
    """A connection to the back-end that listens there.  Raises HostError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError as e:
        sock.close()
        raise HostError(f"{path}: {e.strerror}", e.errno or 0) from e
    return sock


def replay(
    said: Iterable[tuple[str, Exchange | Event]],
    who: str,
    path: str,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Say all connections of one device to the back-end at *path*, one after the other."""
    outcomes = []
    for messages in connections(said, who):
        with contextlib.closing(Replay(connect(path))) as again:
            for outcome in again.run(messages):
                outcomes.append(outcome)
                tell(outcome)
    return outcomes


def _regions(message: Exchange) -> list[vu.MemoryRegion]:
    if message.number in _SLOT_MESSAGES:
        return [vu.SINGLE_REGION.unpack(message.payload).region]
    if message.number != vu.VHOST_USER_SET_MEM_TABLE:
        return []
    size = vu.MEMORY_REGION.size
    head = vu.MEMORY_TABLE_HEAD.size
    return [
        vu.MEMORY_REGION.unpack(message.payload, at)
        for at in range(head, len(message.payload) - size + 1, size)
    ]


def _zeros(name: str, size: int) -> int:
    fd = os.memfd_create(f"vhostnet-replay-{name}", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except (OSError, OverflowError) as e:
        os.close(fd)
        raise HostError(f"memory of {size} bytes cannot be made: {e}") from e
    return fd
