"""The compiled driver: millions of frames a second, every byte of each written or read.

`FastSender` and `FastReceiver` take over a ring that `SplitRing` or `PackedRing` has laid out
and that has nothing in flight.  A sender gives it back when all it sent has been returned; a
receiver always has buffers posted and keeps the ring to its end.

The rings' code here (`fast_split`, `fast_packed`) is this package's own, as everything in it:
it shares with a device under test only what is below both.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vhostnet.uapi.virtio import VNET_HDR_LEN, VNET_HDR_MRG_LEN

from .fast_flood import READ_PAST, drain, flood
from .fast_layout import FAST_PACKED, FAST_SPLIT
from .packed_ring import PackedRing
from .split_ring import SplitRing

#: Frames a call of a kernel, and how long one call may sleep for nothing.
_QUANTUM = 32768
_WAIT_MS = 10
#: With a count and no deadline: give up when nothing has moved for so long.
STALL_S = 30.0
_STAMP_SIZE = 8
#: Behind the addresses and the ethertype.
_STAMP_OFFSET = 14


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run did.

    Attributes:
        frames, bytes: sent, or received; vnet headers included in bytes.
        completed: chains that came back.
        kicks, waits: eventfd writes, sleeps.
        bad_used: used entries with an id that was not in flight, or a length too large.
        out_of_sequence: stamped frames that were not the next one.
        seconds: wall time.
    """

    frames: int
    bytes: int
    completed: int
    kicks: int
    waits: int
    bad_used: int
    out_of_sequence: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds if self.seconds else 0.0


_COUNTERS = ("frames", "bytes", "completed", "kicks", "waits", "bad_used", "out_of_sequence")


class _FastRing:
    """A ring with a buffer for each slot, as a record."""

    def __init__(
        self,
        ring: SplitRing | PackedRing,
        *,
        kick_fd: int,
        call_fd: int,
        hdr_len: int,
        buffer_size: int,
        stamped: bool,
    ) -> None:
        if ring.outstanding():
            raise ValueError("the ring has chains in flight")
        self.ring = ring
        num = ring.num
        stride = -(-buffer_size // 64) * 64
        gpa = ring.memory.alloc(num * stride, 64)
        is_split = isinstance(ring, SplitRing)
        self.record: Any = np.zeros(1, FAST_SPLIT if is_split else FAST_PACKED)
        self._free = np.zeros(num, np.int64)
        self._busy = np.zeros(num, np.int64)
        self._one = np.ones(1, np.uint64)
        self._scratch = np.zeros(64, np.uint8)
        self._epoll = select.epoll()
        self._epoll.register(call_fd, select.EPOLLIN)
        r = self.record[0]
        r["num"], r["stride"] = num, stride
        r["buf_gpa"], r["buf_hva"] = gpa, ring.memory.hva(gpa)
        r["hdr_len"], r["has_num_buffers"] = hdr_len, hdr_len > VNET_HDR_LEN
        r["event_idx"], r["in_order"] = ring.event_idx, ring.in_order
        r["kick_fd"], r["call_fd"], r["epfd"] = kick_fd, call_fd, self._epoll.fileno()
        r["one_hva"], r["scratch_hva"] = self._one.ctypes.data, self._scratch.ctypes.data
        r["stamp_at"] = hdr_len + _STAMP_OFFSET if stamped else -1
        r["n_free"], r["batch_id"] = num, -1
        memory = ring.memory
        if isinstance(ring, SplitRing):
            first = ring.avail_idx % num
            r["desc_hva"] = memory.hva(ring.desc_gpa)
            r["avail_hva"] = memory.hva(ring.avail_gpa)
            r["used_hva"] = memory.hva(ring.used_gpa)
            r["avail_idx"] = r["kicked_idx"] = ring.avail_idx
            r["used_seen"] = r["used_idx"] = ring.used_idx
        else:
            first = ring.next_avail
            r["ring_hva"] = memory.hva(ring.desc_gpa)
            r["driver_hva"] = memory.hva(ring.driver_gpa)
            r["device_hva"] = memory.hva(ring.device_gpa)
            r["next_avail"], r["avail_wrap"] = ring.next_avail, ring.avail_wrap
            r["next_used"], r["used_wrap"] = ring.next_used, ring.used_wrap
            r["held_at"] = -1
        self._free[:] = (np.arange(num) + first) % num
        r["next_done"] = first
        ring.disable_interrupts()

    @property
    def in_flight(self) -> int:
        """Chains that the device has."""
        return int(self.record[0]["num"] - self.record[0]["n_free"])

    def counters(self) -> dict[str, int]:
        """Counters since the beginning."""
        return {name: int(self.record[0][name]) for name in _COUNTERS}

    def _since(self, before: dict[str, int], started: float) -> Counts:
        now = self.counters()
        moved = {name: now[name] - before[name] for name in _COUNTERS}
        return Counts(**moved, seconds=time.monotonic() - started)

    def close(self) -> None:
        """Give the epoll set back."""
        self._epoll.close()


class _Clock:
    """Whether to go on: until a deadline, and not for longer than STALL_S without a frame."""

    def __init__(self, seconds: float | None) -> None:
        self.started = time.monotonic()
        self._deadline = None if seconds is None else self.started + seconds
        self._moved = self.started

    def goes_on(self, moved: int) -> bool:
        now = time.monotonic()
        if moved:
            self._moved = now
        if self._deadline is not None:
            return now < self._deadline
        return now - self._moved < STALL_S


class FastSender(_FastRing):
    """Send copies of one frame, or of several in turns.

    Args:
        ring: a TX ring with nothing in flight.
        frame: from the Ethernet header on.
        kick_fd, call_fd: the ring's eventfds; the caller's.
        hdr_len: bytes of vnet header, all zero, in front of the frame.
        stamped: each frame carries its number (u64) in bytes 14 to 21.
        others: frames that follow *frame*, all as long as it is; then it comes again.
    """

    def __init__(
        self,
        ring: SplitRing | PackedRing,
        frame: bytes,
        *,
        kick_fd: int,
        call_fd: int,
        hdr_len: int = VNET_HDR_MRG_LEN,
        stamped: bool = False,
        others: Sequence[bytes] = (),
    ) -> None:
        if any(len(other) != len(frame) for other in others):
            raise ValueError("all frames must have one length")
        if stamped and len(frame) < _STAMP_OFFSET + _STAMP_SIZE:
            raise ValueError(f"a stamped frame has {_STAMP_OFFSET + _STAMP_SIZE} bytes or more")
        each = [bytes(hdr_len) + one for one in (frame, *others)]
        self._size = len(each[0])
        template = b"".join(each)
        self._template = np.frombuffer(template + bytes(READ_PAST), np.uint8).copy()
        super().__init__(
            ring,
            kick_fd=kick_fd,
            call_fd=call_fd,
            hdr_len=hdr_len,
            buffer_size=self._size,
            stamped=stamped,
        )
        self.record[0]["template_end"] = len(template)
        self._flood(0)  # compiles, if need be, before a clock runs

    def _flood(self, limit: int) -> int:
        return flood(
            self.record,
            self._free,
            self._busy,
            self._template.ctypes.data,
            self._size,
            limit,
            _WAIT_MS,
        )

    def run(self, *, count: int | None = None, seconds: float | None = None) -> Counts:
        """Send *count* frames, or for *seconds*, or whatever ends first, at full speed.

        What is in flight at the end stays so: see `finish`.
        """
        if count is None and seconds is None:
            raise ValueError("count or seconds must be given")
        before, clock, sent = self.counters(), _Clock(seconds), 0
        while count is None or sent < count:
            n = self._flood(_QUANTUM if count is None else min(_QUANTUM, count - sent))
            sent += n
            if not clock.goes_on(n):
                break
        return self._since(before, clock.started)

    def finish(self, seconds: float = STALL_S) -> bool:
        """Wait until everything came back and hand the ring back; False if it did not."""
        deadline = time.monotonic() + seconds
        while self.in_flight:
            self._flood(0)
            if self.in_flight and time.monotonic() > deadline:
                return False
        r, num = self.record[0], int(self.record[0]["num"])
        free = [int(self._free[(int(r["free_head"]) + k) % num]) for k in range(num)]
        if isinstance(self.ring, SplitRing):
            self.ring.resume(int(r["avail_idx"]), int(r["used_seen"]), free)
        else:
            self.ring.resume(
                (int(r["next_avail"]), int(r["avail_wrap"])),
                (int(r["next_used"]), int(r["used_wrap"])),
                free,
            )
        return True


class FastReceiver(_FastRing):
    """Receive frames, read every byte, post the buffers again; they are posted from the start.

    Args:
        ring: an RX ring with nothing in flight.
        kick_fd, call_fd, hdr_len: as `FastSender`.
        buffer_size: bytes of each buffer, vnet header included.
        stamped: check the numbers that a stamping sender put in.
    """

    def __init__(
        self,
        ring: SplitRing | PackedRing,
        *,
        kick_fd: int,
        call_fd: int,
        hdr_len: int = VNET_HDR_MRG_LEN,
        buffer_size: int = 2048,
        stamped: bool = False,
    ) -> None:
        super().__init__(
            ring,
            kick_fd=kick_fd,
            call_fd=call_fd,
            hdr_len=hdr_len,
            buffer_size=buffer_size,
            stamped=stamped,
        )
        self._sink = np.zeros(int(self.record[0]["stride"]), np.uint8)
        self._drain(0)  # posts all buffers; compiles, if need be, before a clock runs

    def _drain(self, limit: int) -> int:
        return drain(self.record, self._free, self._busy, self._sink.ctypes.data, limit, _WAIT_MS)

    def run(self, *, count: int | None = None, seconds: float | None = None) -> Counts:
        """Receive at least *count* frames, or for *seconds*, or whatever ends first."""
        if count is None and seconds is None:
            raise ValueError("count or seconds must be given")
        before, clock, got = self.counters(), _Clock(seconds), 0
        while count is None or got < count:
            n = self._drain(_QUANTUM if count is None else min(_QUANTUM, count - got))
            got += n
            if not clock.goes_on(n):
                break
        return self._since(before, clock.started)
