"""The packed virtqueue, device side (VIRTIO 1.2 section 2.8).

Theory of operation
-------------------
One ring of descriptors serves both sides.  A descriptor is *available* when its AVAIL bit
equals our avail wrap counter and its USED bit does not; we make it *used* by writing id and
length into it and setting both bits to our used wrap counter.  A chain is consecutive
descriptors linked by NEXT, its id is in the last one; one used descriptor answers for the whole
chain, and the used position then skips as many descriptors as the chain took.

The driver makes the head of a chain available last, so what stands behind an available head is
complete.  We do the same with a batch: the first used descriptor's flags are written last, at
`publish_used`, and until then the driver stops in front of them.

Ordering: the head's second word (length, id, flags) is one acquire load before its address and
the rest of the chain is read; used descriptors are written before the first one's flags (write
barrier); the flags are visible before the driver's event area is read (full barrier); our event
area is visible before the ring is looked at again (full barrier).

With IN_ORDER one used descriptor answers for a whole batch of the transmit ring: it stands where
the first chain of the batch stood and has the id of the last one.  Chains of a receive ring, for
their lengths, and those of copied parts get one each, which the specification allows.
NOTIFY_ON_EMPTY does not exist here.

The parts may be copies of the owner's memory (REMOTE_PACKED_VRING): then the names of
`ring_access` bring them up to date and carry them over; else they are nothing.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, hot, implements
from vhostnet.native.ordering import (
    load_acquire_u16,
    load_relaxed_i64,
    load_relaxed_u16,
    smp_mb,
    smp_rmb,
    smp_wmb,
    store_relaxed_u16,
    store_relaxed_u32,
    store_release_u16,
)
from vhostnet.uapi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
    VRING_PACKED_EVENT_SIZE,
    VRING_USED_F_NO_NOTIFY,
)

from .codes import (
    RING_BAD_NEXT,
    RING_EMPTY,
    RING_LOOP,
    RING_OUT_AFTER_IN,
    RING_TOO_MANY_IOVS,
    RING_UNMAPPED,
)
from .descriptors import PACKED_FLAGS_SHIFT, add_buffer, walk_indirect
from .dirty_log_raw import log_used, log_write
from .layout import (
    PACKED_VRING,
    REMOTE_PACKED_VRING,
    UIO_MAXIOV,
    VHOST_ACCESS_RO,
    VHOST_ACCESS_WO,
)
from .ring_access import (
    chain_taken,
    fetch_avail_idx,
    fetch_ring,
    fetch_used_event,
    forget_ring,
    push_device_event,
    push_used_entries,
    push_used_word,
    put_used_entry,
    stage_chains,
)
from .vring_ops import (
    add_used,
    disable_notify,
    discard_vq_desc,
    driver_wants_signal,
    enable_notify,
    get_vq_desc,
    publish_used,
    signal_eventfd,
    vq_avail_changed,
)

Record = Any
AVAIL_BIT = 1 << VRING_PACKED_DESC_F_AVAIL
USED_BIT = 1 << VRING_PACKED_DESC_F_USED
# struct virtq_desc: le64 addr, le32 len, le16 id, le16 flags
DESC_LEN = 8
DESC_ID = 12
DESC_FLAGS = 14
# struct pvirtq_event_suppress: le16 offset and wrap, le16 flags
EVENT_OFF_WRAP = 0
EVENT_FLAGS = 2


@helper
def is_available(flags: int, wrap: int) -> bool:
    """Whether a descriptor with these flags is the driver's offer in our lap."""
    avail = 1 if flags & AVAIL_BIT else 0
    used = 1 if flags & USED_BIT else 0
    return avail == wrap and used != wrap


@helper
def _flags_at(vq: Record, pos: int) -> int:
    return load_acquire_u16(int(vq["ring_hva"]) + pos * VRING_DESC_SIZE + DESC_FLAGS)


@helper
def _laps(vq: Record, pos: int) -> int:
    """How often the way to *pos*, which is beyond an end, goes round the ring (-1: back once).

    More than once: a driver that makes descriptors available again while they are being taken
    can have more of them taken for one packet than the ring has.
    """
    return pos // int(vq["packed_num"])


@implements(get_vq_desc, REMOTE_PACKED_VRING)
@implements(get_vq_desc, PACKED_VRING, is_hot=True)
def _get_vq_desc(vq: Record, mem: Any, iov: Any, at: int) -> tuple[int, int, int, int, int]:
    num = int(vq["packed_num"])
    ring_hva = int(vq["ring_hva"])
    pos = int(vq["avail_pos"])
    wrap = int(vq["avail_wrap"])
    if fetch_ring(vq) < 0:
        return RING_UNMAPPED, 0, 0, 0, 0
    word = load_relaxed_i64(ring_hva + pos * VRING_DESC_SIZE + DESC_LEN)
    if not is_available((word >> PACKED_FLAGS_SHIFT) & 0xFFFF, wrap):
        vq["seen_pos"] = pos
        vq["seen_wrap"] = wrap
        forget_ring(vq)
        return RING_EMPTY, 0, 0, 0, 0
    # The head's flags before anything else of the chain: the driver wrote them last.
    smp_rmb()
    if stage_chains(vq, mem) < 0:
        return RING_UNMAPPED, 0, 0, 0, 0
    n_out = 0
    n_in = 0
    out_len = 0
    in_len = 0
    found = 0
    pieces = 0
    while True:
        found += 1
        if found > num:
            return RING_LOOP, 0, 0, 0, 0
        # The descriptor is copied once; flags, id and length below are those of the copy.
        addr = load_relaxed_i64(ring_hva + pos * VRING_DESC_SIZE)
        length = word & 0xFFFFFFFF
        buffer_id = (word >> 32) & 0xFFFF
        flags = (word >> PACKED_FLAGS_SHIFT) & 0xFFFF
        pos += 1
        if pos == num:
            pos = 0
            wrap ^= 1
        if flags & VRING_DESC_F_INDIRECT:
            got_out, got_in, more_out, more_in, more = walk_indirect(
                vq, mem, iov, at, n_out, n_in, addr, length, PACKED_FLAGS_SHIFT, pieces
            )
            if got_out < 0:
                return got_out, 0, 0, 0, 0
            n_out = got_out
            n_in = got_in
            pieces += more
            out_len += more_out
            in_len += more_in
        else:
            pieces += 1
            if pieces > UIO_MAXIOV:
                return RING_TOO_MANY_IOVS, 0, 0, 0, 0
            access = VHOST_ACCESS_WO if flags & VRING_DESC_F_WRITE else VHOST_ACCESS_RO
            n = add_buffer(vq, mem, iov, at, n_out + n_in, addr, length, access)
            if n < 0:
                return n, 0, 0, 0, 0
            if flags & VRING_DESC_F_WRITE:
                n_in = n - n_out
                in_len += length
            else:
                if n_in > 0:
                    return RING_OUT_AFTER_IN, 0, 0, 0, 0
                n_out = n
                out_len += length
        if not flags & VRING_DESC_F_NEXT:
            break
        word = load_relaxed_i64(ring_hva + pos * VRING_DESC_SIZE + DESC_LEN)
        if not is_available((word >> PACKED_FLAGS_SHIFT) & 0xFFFF, wrap):
            return RING_BAD_NEXT, 0, 0, 0, 0
    vq["avail_pos"] = pos
    vq["avail_wrap"] = wrap
    vq["seen_pos"] = pos
    vq["seen_wrap"] = wrap
    vq["chain_descs"] = found
    chain_taken(vq, found)
    return buffer_id, n_out, n_in, out_len, in_len


@implements(discard_vq_desc, PACKED_VRING, REMOTE_PACKED_VRING)
def _discard_vq_desc(vq: Record, n: int, n_descs: int) -> None:  # noqa: ARG001
    # `seen` stays: descriptors that were seen and did not suffice are no news
    pos = int(vq["avail_pos"]) - n_descs
    if pos < 0:
        vq["avail_wrap"] ^= _laps(vq, pos) & 1
        pos %= int(vq["packed_num"])
    vq["avail_pos"] = pos
    forget_ring(vq)


@hot
def _write_used(vq: Record, head: int, length: int) -> None:
    """Write a used descriptor at the used position; the first of a batch without its flags."""
    pos = int(vq["used_pos"])
    hva = int(vq["ring_hva"]) + pos * VRING_DESC_SIZE
    store_relaxed_u32(hva + DESC_LEN, length)
    store_relaxed_u16(hva + DESC_ID, head)
    flags = AVAIL_BIT | USED_BIT if int(vq["used_wrap"]) else 0
    if length > 0:
        flags |= VRING_DESC_F_WRITE
    if int(vq["done_idx"]) == 0:
        vq["first_pos"] = pos
        vq["first_flags"] = flags
    else:  # the driver cannot get here before the first one's flags are written
        smp_wmb()
        store_relaxed_u16(hva + DESC_FLAGS, flags)
    put_used_entry(vq, pos)


@hot
def _pass_used(vq: Record, n: int, n_descs: int) -> None:
    """*n* chains of *n_descs* descriptors are answered for."""
    vq["done_idx"] += n
    pos = int(vq["used_pos"]) + n_descs
    if pos >= int(vq["packed_num"]):
        vq["used_wrap"] ^= _laps(vq, pos) & 1
        pos %= int(vq["packed_num"])
    vq["used_pos"] = pos


@implements(add_used, REMOTE_PACKED_VRING)
def _add_used_each(vq: Record, head: int, length: int, n: int, n_descs: int) -> None:
    _write_used(vq, head, length)
    _pass_used(vq, n, n_descs)


@implements(add_used, PACKED_VRING, is_hot=True)
def _add_used(vq: Record, head: int, length: int, n: int, n_descs: int) -> None:
    if vq["one_used_a_batch"] and int(vq["done_idx"]) > 0:
        first_hva = int(vq["ring_hva"]) + int(vq["first_pos"]) * VRING_DESC_SIZE
        store_relaxed_u16(first_hva + DESC_ID, head)
    else:
        _write_used(vq, head, length)
    _pass_used(vq, n, n_descs)


@helper
def _log_used_descs(vq: Record, first: int, end: int) -> None:
    """Log the used descriptors from position *first* on up to *end*, with what lies between."""
    at = first * VRING_DESC_SIZE
    if first < end:
        log_used(vq, at, (end - first) * VRING_DESC_SIZE)
    else:
        log_used(vq, at, (int(vq["packed_num"]) - first) * VRING_DESC_SIZE)
        log_used(vq, 0, end * VRING_DESC_SIZE)


@implements(publish_used, PACKED_VRING, REMOTE_PACKED_VRING)
def _publish_used(vq: Record) -> None:
    done = int(vq["done_idx"])
    if done == 0:
        return
    vq["done_idx"] = 0
    first = int(vq["first_pos"])
    push_used_entries(vq, first, done)
    # All of the batch and the data behind it must be visible before its first flags.
    at = first * VRING_DESC_SIZE
    store_release_u16(int(vq["ring_hva"]) + at + DESC_FLAGS, int(vq["first_flags"]))
    push_used_word(vq, at + DESC_LEN)
    if vq["log_used"]:
        _log_used_descs(vq, first, int(vq["used_pos"]))
        signal_eventfd(int(vq["log_fd"]), int(vq["one_hva"]))
    vq["signal_due"] = 1


@implements(driver_wants_signal, PACKED_VRING, REMOTE_PACKED_VRING)
def _driver_wants_signal(vq: Record) -> bool:
    smp_mb()  # the used flags must be visible before the driver's wish is read
    driver_hva = int(vq["driver_hva"])
    new = int(vq["used_pos"])
    old = int(vq["signalled_used"])
    valid = int(vq["signalled_used_valid"])
    vq["signalled_used"] = new
    vq["signalled_used_valid"] = 1
    if fetch_used_event(vq) < 0:
        return True
    flags = load_relaxed_u16(driver_hva + EVENT_FLAGS)
    if flags == VRING_PACKED_EVENT_FLAG_DISABLE:
        return False
    if flags != VRING_PACKED_EVENT_FLAG_DESC or not vq["event_idx"] or not valid:
        return True
    off_wrap = load_relaxed_u16(driver_hva + EVENT_OFF_WRAP)
    event = off_wrap & 0x7FFF
    num = int(vq["packed_num"])
    if new <= old:  # we went round since the last test
        old -= num
    if (off_wrap >> 15) != int(vq["used_wrap"]):  # the driver speaks of the lap before
        event -= num
    return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)


@helper
def _is_seen_available(vq: Record) -> bool:
    if fetch_avail_idx(vq) < 0:
        return False
    return is_available(_flags_at(vq, int(vq["seen_pos"])), int(vq["seen_wrap"]))


@implements(vq_avail_changed, PACKED_VRING, REMOTE_PACKED_VRING)
def _vq_avail_changed(vq: Record) -> bool:
    return _is_seen_available(vq)


@helper
def _event_written(vq: Record, offset: int, size: int) -> None:
    """After *size* bytes at *offset* of our event area were written."""
    push_device_event(vq)
    if vq["log_used"]:
        smp_wmb()
        log_write(vq, int(vq["log_event_gpa"]) + offset, size)
        signal_eventfd(int(vq["log_fd"]), int(vq["one_hva"]))


@implements(disable_notify, PACKED_VRING, REMOTE_PACKED_VRING)
def _disable_notify(vq: Record) -> None:
    if int(vq["used_flags"]) & VRING_USED_F_NO_NOTIFY:
        return
    vq["used_flags"] |= VRING_USED_F_NO_NOTIFY
    if not vq["event_idx"]:  # with it, an event position left behind does the same
        store_relaxed_u16(int(vq["device_hva"]) + EVENT_FLAGS, VRING_PACKED_EVENT_FLAG_DISABLE)
        _event_written(vq, EVENT_FLAGS, 2)


@implements(enable_notify, PACKED_VRING, REMOTE_PACKED_VRING)
def _enable_notify(vq: Record) -> bool:
    if not int(vq["used_flags"]) & VRING_USED_F_NO_NOTIFY:
        return False
    vq["used_flags"] &= ~VRING_USED_F_NO_NOTIFY
    device_hva = int(vq["device_hva"])
    if vq["event_idx"]:
        where = int(vq["seen_pos"]) | int(vq["seen_wrap"]) << 15
        store_relaxed_u16(device_hva + EVENT_OFF_WRAP, where)
        smp_wmb()  # the position before the flag that makes it count
        store_relaxed_u16(device_hva + EVENT_FLAGS, VRING_PACKED_EVENT_FLAG_DESC)
        _event_written(vq, EVENT_OFF_WRAP, VRING_PACKED_EVENT_SIZE)
    else:
        store_relaxed_u16(device_hva + EVENT_FLAGS, VRING_PACKED_EVENT_FLAG_ENABLE)
        _event_written(vq, EVENT_FLAGS, 2)
    smp_mb()  # our wish must be visible before the ring is looked at again
    return _is_seen_available(vq)
