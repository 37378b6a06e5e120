"""The split virtqueue, device side (VIRTIO 1.2 section 2.7).

Theory of operation
-------------------
The driver owns the descriptor table and the avail ring, we own the used ring; all three lie
in guest memory and may change under us at any time.  So: every word of the guest is loaded
once into a local, checked, and only the local is used.  `last_avail_idx` is the next avail
entry to take; `avail_idx` is the newest avail->idx seen, so that a batch costs one read of
the driver's cache line; `last_used_idx` is the next used entry to publish and `done_idx`
counts the entries that are written behind it and not yet visible.

Ordering, as in Linux drivers/vhost/vhost.c:
1. avail->idx is read before avail->ring and the descriptors (acquire load).
2. used entries and data are written before used->idx (release store).
3. used->idx is written before avail->flags or used_event is read (full barrier): the driver
   does the opposite, one of the two sees the other.
4. used->flags or avail_event is written before avail->idx is read again (full barrier).

The parts may be copies of the owner's memory (REMOTE_VRING): then the names of `ring_access`
bring them up to date and carry them over; else they are nothing.

Not here: who calls when (`tx`, `rx`), waiting (`worker_loop`).
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.ordering import (
    load_acquire_u16,
    load_relaxed_i64,
    load_relaxed_u16,
    smp_mb,
    store_relaxed_u16,
    store_relaxed_u32,
    store_release_u16,
)
from vhostnet.uapi.virtio import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_AVAIL_FLAGS,
    VRING_AVAIL_IDX,
    VRING_AVAIL_RING,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
    VRING_USED_ELEM_SIZE,
    VRING_USED_F_NO_NOTIFY,
    VRING_USED_FLAGS,
    VRING_USED_IDX,
    VRING_USED_RING,
)

from .codes import (
    RING_AVAIL_JUMP,
    RING_BAD_HEAD,
    RING_BAD_NEXT,
    RING_EMPTY,
    RING_LOOP,
    RING_MISS,
    RING_OUT_AFTER_IN,
    RING_TOO_MANY_IOVS,
    RING_UNMAPPED,
)
from .descriptors import SPLIT_FLAGS_SHIFT, add_buffer, walk_indirect
from .dirty_log_raw import log_used
from .layout import REMOTE_VRING, SPLIT_VRING, UIO_MAXIOV, VHOST_ACCESS_RO, VHOST_ACCESS_WO
from .ring_access import (
    chain_taken,
    fetch_avail_idx,
    fetch_ring,
    fetch_used_event,
    forget_ring,
    push_used_entries,
    push_used_word,
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


@implements(get_vq_desc, REMOTE_VRING)
@implements(get_vq_desc, SPLIT_VRING, is_hot=True)
def _get_vq_desc(vq: Record, mem: Any, iov: Any, at: int) -> tuple[int, int, int, int, int]:
    num = int(vq["split_num"])
    last = int(vq["last_avail_idx"])
    if int(vq["avail_idx"]) == last:
        if fetch_ring(vq) < 0:
            return RING_UNMAPPED, 0, 0, 0, 0
        # avail->idx before avail->ring: the driver wrote the entry first (1).
        idx = load_acquire_u16(int(vq["avail_hva"]) + VRING_AVAIL_IDX)
        if idx == last:
            return RING_EMPTY, 0, 0, 0, 0
        if ((idx - last) & 0xFFFF) > num:
            return RING_AVAIL_JUMP, 0, 0, 0, 0
        vq["avail_idx"] = idx
    if stage_chains(vq, mem) < 0:
        return RING_UNMAPPED, 0, 0, 0, 0
    # Also with IN_ORDER: counting heads ourselves would go wrong after a stop and start, since a
    # base counts chains and not descriptors.
    slot = last & (num - 1)
    head = load_relaxed_u16(int(vq["avail_hva"]) + VRING_AVAIL_RING + 2 * slot)
    if head >= num:
        return RING_BAD_HEAD, 0, 0, 0, 0
    desc_hva = int(vq["desc_hva"])
    n_out = 0
    n_in = 0
    out_len = 0
    in_len = 0
    i = head
    found = 0
    pieces = 0
    while True:
        found += 1
        if found > num:
            return RING_LOOP, 0, 0, 0, 0
        # The descriptor is copied once; flags and length below are those of the copy.
        gpa = load_relaxed_i64(desc_hva + i * VRING_DESC_SIZE)
        word = load_relaxed_i64(desc_hva + i * VRING_DESC_SIZE + 8)
        length = word & 0xFFFFFFFF
        flags = (word >> 32) & 0xFFFF
        if flags & VRING_DESC_F_INDIRECT:
            got_out, got_in, more_out, more_in, more = walk_indirect(
                vq, mem, iov, at, n_out, n_in, gpa, length, SPLIT_FLAGS_SHIFT, pieces
            )
            if got_out < 0:
                if got_out != RING_MISS:  # a bad table is told twice, as in Linux
                    signal_eventfd(int(vq["err_fd"]), int(vq["one_hva"]))
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
            n = add_buffer(vq, mem, iov, at, n_out + n_in, gpa, length, access)
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
        i = (word >> 48) & 0xFFFF
        if i >= num:
            return RING_BAD_NEXT, 0, 0, 0, 0
    vq["last_avail_idx"] = (last + 1) & 0xFFFF
    vq["chain_descs"] = found
    chain_taken(vq, found)
    return head, n_out, n_in, out_len, in_len


@implements(discard_vq_desc, SPLIT_VRING, REMOTE_VRING)
def _discard_vq_desc(vq: Record, n: int, n_descs: int) -> None:  # noqa: ARG001
    vq["last_avail_idx"] = (int(vq["last_avail_idx"]) - n) & 0xFFFF
    forget_ring(vq)


@implements(add_used, REMOTE_VRING)
@implements(add_used, SPLIT_VRING, is_hot=True)
def _add_used(vq: Record, head: int, length: int, n: int, n_descs: int) -> None:  # noqa: ARG001
    ahead = 0 if vq["one_used_a_batch"] else int(vq["done_idx"])
    slot = (int(vq["last_used_idx"]) + ahead) & (int(vq["split_num"]) - 1)
    hva = int(vq["used_hva"]) + VRING_USED_RING + slot * VRING_USED_ELEM_SIZE
    store_relaxed_u32(hva, head)
    store_relaxed_u32(hva + 4, length)
    vq["done_idx"] += n


@implements(vq_avail_changed, SPLIT_VRING, REMOTE_VRING)
def _vq_avail_changed(vq: Record) -> bool:
    if fetch_avail_idx(vq) < 0:
        return False
    return load_acquire_u16(int(vq["avail_hva"]) + VRING_AVAIL_IDX) != int(vq["avail_idx"])


@implements(driver_wants_signal, SPLIT_VRING, REMOTE_VRING)
def _driver_wants_signal(vq: Record) -> bool:
    smp_mb()  # used->idx must be visible before the driver's wish is read (3)
    if vq["notify_on_empty"] and int(vq["avail_idx"]) == int(vq["last_avail_idx"]):
        return True
    avail_hva = int(vq["avail_hva"])
    if not vq["event_idx"]:
        if fetch_avail_idx(vq) < 0:
            return True
        flags = load_relaxed_u16(avail_hva + VRING_AVAIL_FLAGS)
        return not flags & VRING_AVAIL_F_NO_INTERRUPT
    old = int(vq["signalled_used"])
    valid = int(vq["signalled_used_valid"])
    new = int(vq["last_used_idx"])
    vq["signalled_used"] = new
    vq["signalled_used_valid"] = 1
    if not valid or fetch_used_event(vq) < 0:
        return True
    used_event = load_relaxed_u16(avail_hva + VRING_AVAIL_RING + 2 * int(vq["split_num"]))
    return ((new - used_event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)


@helper
def _log_used_entries(vq: Record, first: int, n: int) -> None:
    """Log *n* used entries from index *first* on, which may go round the ring's end."""
    num = int(vq["split_num"])
    slot = first & (num - 1)
    before_end = min(n, num - slot)
    log_used(vq, VRING_USED_RING + slot * VRING_USED_ELEM_SIZE, before_end * VRING_USED_ELEM_SIZE)
    log_used(vq, VRING_USED_RING, (n - before_end) * VRING_USED_ELEM_SIZE)


@helper
def _store_used_u16(vq: Record, offset: int, value: int) -> None:
    """Write a word of the used ring that is ours alone: the flags or avail_event."""
    store_relaxed_u16(int(vq["used_hva"]) + offset, value)
    push_used_word(vq, offset)
    if vq["log_used"]:
        log_used(vq, offset, 2)
        signal_eventfd(int(vq["log_fd"]), int(vq["one_hva"]))


@implements(publish_used, SPLIT_VRING, REMOTE_VRING)
def _publish_used(vq: Record) -> None:
    done = int(vq["done_idx"])
    if done == 0:
        return
    old = int(vq["last_used_idx"])
    new = (old + done) & 0xFFFF
    vq["last_used_idx"] = new
    vq["done_idx"] = 0
    # If signalled_used is passed, 2^16 entries went by without a test: it means nothing now.
    if ((new - int(vq["signalled_used"])) & 0xFFFF) < ((new - old) & 0xFFFF):
        vq["signalled_used_valid"] = 0
    push_used_entries(vq, old, done)
    if vq["log_used"]:
        _log_used_entries(vq, old, done)
    # The entries and the data behind them must be visible before the index (2).
    store_release_u16(int(vq["used_hva"]) + VRING_USED_IDX, new)
    push_used_word(vq, VRING_USED_IDX)
    if vq["log_used"]:
        log_used(vq, VRING_USED_IDX, 2)
        signal_eventfd(int(vq["log_fd"]), int(vq["one_hva"]))
    vq["signal_due"] = 1


@implements(disable_notify, SPLIT_VRING, REMOTE_VRING)
def _disable_notify(vq: Record) -> None:
    if int(vq["used_flags"]) & VRING_USED_F_NO_NOTIFY:
        return
    vq["used_flags"] |= VRING_USED_F_NO_NOTIFY
    if not vq["event_idx"]:  # with it, an avail_event left behind does the same
        _store_used_u16(vq, VRING_USED_FLAGS, VRING_USED_F_NO_NOTIFY)


@implements(enable_notify, SPLIT_VRING, REMOTE_VRING)
def _enable_notify(vq: Record) -> bool:
    if not int(vq["used_flags"]) & VRING_USED_F_NO_NOTIFY:
        return False
    vq["used_flags"] &= ~VRING_USED_F_NO_NOTIFY
    seen = int(vq["avail_idx"])
    if vq["event_idx"]:
        avail_event = VRING_USED_RING + int(vq["split_num"]) * VRING_USED_ELEM_SIZE
        _store_used_u16(vq, avail_event, seen)
    else:
        _store_used_u16(vq, VRING_USED_FLAGS, 0)
    smp_mb()  # our wish must be visible before avail->idx is read again (4)
    # Against the newest index *seen*: buffers that were seen and did not suffice are no news
    # (comparing with last_avail_idx made Linux spin from 5.18 to 7.1).
    if fetch_avail_idx(vq) < 0:
        return False
    return load_acquire_u16(int(vq["avail_hva"]) + VRING_AVAIL_IDX) != seen
