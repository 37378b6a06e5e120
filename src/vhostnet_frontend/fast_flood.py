"""The two kernels of the compiled driver: send as fast as the ring takes, receive likewise.

Theory of operation
-------------------
A slot is a descriptor (split) or buffer id (packed) with a buffer of its own.  Free slots are a
queue, so that they are used in the order in which they came back: an in-order device gets what
its feature demands, and no buffer stays in the processor's cache for longer than a real
driver's would.

A kernel takes what is used, fills every free slot up to a batch, publishes, kicks if the
device asks for it, and starts again.  If there is nothing to do it spins for a moment and then
sleeps in epoll until the device interrupts, at most `wait_ms`.  It returns after *limit* frames
or the first sleep that ended for nothing: the clock is Python's.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import JIT_ENABLED, helper, hot, kernel
from vhostnet.native.libc_raw import copy_bytes, epoll_wait, read, write
from vhostnet.native.ordering import (
    cpu_relax,
    load_i64_at,
    load_relaxed_i64,
    load_relaxed_u16,
    store_i64,
)
from vhostnet.native.prefetch import prefetch_write
from vhostnet.uapi.virtio import VNET_HDR_NUM_BUFFERS, VRING_DESC_F_WRITE

from . import fast_packed, fast_split  # noqa: F401  (the bodies)
from .fast_ops import (
    driver_add,
    driver_disable_interrupts,
    driver_enable_interrupts,
    driver_needs_kick,
    driver_peek_used,
    driver_publish,
    driver_skip_used,
)

Record = Any
BATCH = 64
#: Looks at a ring before sleep, longer than it takes to be woken: a driver that sleeps sooner
#: finds a device that has gone to sleep meanwhile, and the other way round.
_SPINS = 2000 if JIT_ENABLED else 50
_CACHE_LINE = 64
#: Slots between the one that is filled and the one whose lines are asked for.
_AHEAD = 8
#: Frames up to this are copied in the loop, by so many bytes at a time.
_SMALL = 128
_STEP = 16
#: What a template must have behind its last frame.
READ_PAST = _STEP


@hot
def _take_slot(ring: Record, free: Any, busy: Any) -> int:
    """The next free slot; there must be one."""
    head = int(ring["free_head"])
    slot = int(free[head])
    head += 1
    ring["free_head"] = 0 if head == int(ring["num"]) else head
    ring["n_free"] -= 1
    busy[slot] = 1
    return slot


@hot
def _give_slot(ring: Record, free: Any, busy: Any, slot: int) -> None:
    num = int(ring["num"])
    tail = int(ring["free_head"]) + int(ring["n_free"])
    free[tail - num if tail >= num else tail] = slot
    ring["n_free"] += 1
    busy[slot] = 0


@hot
def _next_used(ring: Record, busy: Any) -> tuple[int, int]:
    """(slot, length) of the next chain that came back, (-1, 0): none; an id that is not in
    flight is counted and skipped.
    """
    num = int(ring["num"])
    if not ring["in_order"]:
        while True:
            slot, length = driver_peek_used(ring)
            if slot < 0:
                return -1, 0
            driver_skip_used(ring)
            if slot < num and busy[slot]:
                return slot, length
            ring["bad_used"] += 1
    while int(ring["batch_id"]) < 0:
        slot, length = driver_peek_used(ring)
        if slot < 0:
            return -1, 0
        if slot < num and busy[slot]:
            ring["batch_id"] = slot
            ring["batch_len"] = length
        else:
            ring["bad_used"] += 1
            driver_skip_used(ring)
    # slots come back in the order in which they went: one entry for all up to its id
    slot = int(ring["next_done"])
    ring["next_done"] = 0 if slot + 1 == num else slot + 1
    driver_skip_used(ring)
    if slot == int(ring["batch_id"]):
        ring["batch_id"] = -1
        return slot, int(ring["batch_len"])
    return slot, int(ring["stride"])


@helper
def _kick(ring: Record) -> None:
    if driver_needs_kick(ring):
        ring["kicks"] += 1
        write(int(ring["kick_fd"]), int(ring["one_hva"]), 8)


@helper
def _wait(ring: Record, after: int, wait_ms: int) -> bool:
    """Until more than *after* chains are used; False if that took longer than *wait_ms*."""
    for _ in range(_SPINS):
        slot, _length = driver_peek_used(ring)
        if slot >= 0:
            return True
        cpu_relax()
    woken = True
    if not driver_enable_interrupts(ring, after):
        ring["waits"] += 1
        woken = epoll_wait(int(ring["epfd"]), int(ring["scratch_hva"]), 1, wait_ms) > 0
        if woken:
            read(int(ring["call_fd"]), int(ring["scratch_hva"]), 8)
    driver_disable_interrupts(ring)
    if not woken:
        slot, _length = driver_peek_used(ring)
        return slot >= 0
    return True


@hot
def _reap_sent(ring: Record, free: Any, busy: Any) -> int:
    n = 0
    while True:
        slot, _length = _next_used(ring, busy)
        if slot < 0:
            ring["completed"] += n
            return n
        _give_slot(ring, free, busy, slot)
        n += 1


@hot
def _copy_frame(dst_hva: int, src_hva: int, size: int) -> None:
    """Copy *size* bytes; a small frame in whole vectors, for which both have room."""
    if size > _SMALL:
        copy_bytes(dst_hva, src_hva, size)
        return
    for at in range(0, size, _STEP):
        low = load_i64_at(src_hva, at)
        high = load_i64_at(src_hva, at + 8)
        store_i64(dst_hva + at, low)
        store_i64(dst_hva + at + 8, high)


@hot
def _fill_slots(ring: Record, free: Any, busy: Any, frame_hva: int, size: int, n: int) -> None:
    """Write the next *n* frames into free slots, and their descriptors."""
    num = int(ring["num"])
    buf_hva = int(ring["buf_hva"])
    stride = int(ring["stride"])
    stamp_at = int(ring["stamp_at"])
    template_end = int(ring["template_end"])
    at = int(ring["template_at"])
    lead = min(_AHEAD, num - 1)
    for _ in range(n):
        # the device's processor has the lines of a free slot: take them back in time
        ahead = int(ring["free_head"]) + lead
        ahead_hva = buf_hva + int(free[ahead - num if ahead >= num else ahead]) * stride
        prefetch_write(ahead_hva)
        prefetch_write(ahead_hva + _CACHE_LINE)
        slot = _take_slot(ring, free, busy)
        hva = buf_hva + slot * stride
        _copy_frame(hva, frame_hva + at, size)
        at += size
        if at >= template_end:
            at = 0
        if stamp_at >= 0:
            store_i64(hva + stamp_at, int(ring["sequence"]))
        ring["sequence"] += 1
        driver_add(ring, slot, size, 0)
    ring["template_at"] = at


@kernel
def flood(
    ring_array: Any, free: Any, busy: Any, frame_hva: int, size: int, limit: int, wait_ms: int
) -> int:
    """Send *limit* frames, each a fresh copy of the template's next; 0 frames: only take back.

    Args:
        ring_array: FAST_SPLIT[1] or FAST_PACKED[1].
        free: i8[num], the queue of free slots.
        busy: i8[num], 1 for a slot in flight.
        frame_hva: the template: headers and frames, one behind the other.
        size: bytes of each of them.

    Returns:
        Frames sent; fewer than *limit* if the device did nothing for *wait_ms*.
    """
    ring = ring_array[0]
    num = int(ring["num"])
    sent = 0
    while True:
        reaped = _reap_sent(ring, free, busy)
        n = min(int(ring["n_free"]), BATCH, limit - sent)
        _fill_slots(ring, free, busy, frame_hva, size, n)
        if n > 0:
            driver_publish(ring)
            _kick(ring)
            ring["frames"] += n
            ring["bytes"] += n * size
            sent += n
        flying = num - int(ring["n_free"])
        if sent >= limit and (limit > 0 or flying == 0):
            return sent
        if n == 0 and reaped == 0:
            # with a full ring: sleep until a good part of it is back; at the end: until any.
            # An in-order device leaves gaps, so there is no telling how much is back.
            after = flying * 3 // 4 if limit > 0 and not ring["in_order"] else 0
            if not _wait(ring, after, wait_ms):
                return sent


@kernel
def drain(ring_array: Any, free: Any, busy: Any, sink_hva: int, limit: int, wait_ms: int) -> int:
    """Receive at least *limit* frames, reading every byte of each, and post buffers anew.

    Args:
        ring_array, free, busy: as `flood`.
        sink_hva: u8[stride], where a frame is copied to.

    Returns:
        Frames received; fewer than *limit* if none came for *wait_ms*.
    """
    ring = ring_array[0]
    stride = int(ring["stride"])
    stamp_at = int(ring["stamp_at"])
    received = 0
    while True:
        posted = int(ring["n_free"])
        for _ in range(posted):
            driver_add(ring, _take_slot(ring, free, busy), stride, VRING_DESC_F_WRITE)
        if posted > 0:
            driver_publish(ring)
            _kick(ring)
        if received >= limit:
            return received
        taken = 0
        while taken < BATCH:
            slot, length = _next_used(ring, busy)
            if slot < 0:
                break
            taken += 1
            hva = int(ring["buf_hva"]) + slot * stride
            if length > stride:
                length = stride
                ring["bad_used"] += 1
            copy_bytes(sink_hva, hva, length)
            if int(ring["left_in_packet"]) == 0:
                n_buffers = 1
                if ring["has_num_buffers"]:
                    n_buffers = max(1, load_relaxed_u16(sink_hva + VNET_HDR_NUM_BUFFERS))
                ring["left_in_packet"] = n_buffers
                if stamp_at >= 0 and length >= stamp_at + 8:
                    sequence = load_relaxed_i64(sink_hva + stamp_at)
                    if sequence != int(ring["sequence"]):
                        ring["out_of_sequence"] += 1
                    ring["sequence"] = sequence + 1
            ring["left_in_packet"] -= 1
            ring["bytes"] += length
            ring["completed"] += 1
            if int(ring["left_in_packet"]) == 0:
                ring["frames"] += 1
                received += 1
            _give_slot(ring, free, busy, slot)
        if taken == 0:
            if not _wait(ring, 0, wait_ms):
                return received
