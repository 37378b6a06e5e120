"""A packed ring whose parts are copies of the owner's memory: when and how they are brought over.

`owner_memory_raw` has the theory; this is what a packed ring adds.

The driver writes the head of a chain last, so what stands behind an available head is complete,
if it is read after the head was.  One call therefore looks at the ring twice: the first look
says which descriptors are available (`n_known`), the second is what the ring's code works at.
A chain whose head was available at the first look is whole in the second, though its end may
have been beyond the first.  When what is known was taken, it is looked again.

Of a used descriptor the word with length, id and flags is pushed, and of neighbours what lies
between these words: it is as it was fetched, and the driver waits for the first used descriptor
of the batch before it touches any of them.  That one is pushed with its old flags first, and
with those that publish it when all others have arrived.

An event area has four bytes, and what is beside it need not be ours.  It is read with its
neighbours in the same eight bytes, which lie in one page, and written alone.  Whoever reads half
of a new position has begun to read before it was all there, and its writer looks at the ring
afterwards: what the one does not learn, the other sees.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.ordering import load_relaxed_i64, load_relaxed_u16, store_i64
from vhostnet.uapi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_SIZE,
    VRING_PACKED_EVENT_SIZE,
)

from .descriptors import PACKED_FLAGS_SHIFT
from .layout import (
    IOVEC_SIZE,
    KNOWN_DESCS,
    REMOTE_PACKED_VRING,
    STAGE_CHAINS,
    STAGE_IOVECS,
    STAGE_RESERVE,
    STAGE_SIZE,
)
from .owner_memory_raw import (
    WORD,
    empty_stage,
    fetch_wanted,
    flush_writes,
    is_nearly_full,
    read_one,
    set_pair,
    transfer,
    want_descriptor,
    want_table,
)
from .packed_ring import DESC_FLAGS, DESC_LEN, is_available
from .ring_access import (
    chain_taken,
    fetch_avail_idx,
    fetch_ring,
    fetch_used,
    fetch_used_event,
    forget_ring,
    push_device_event,
    push_used_entries,
    push_used_word,
    put_used_entry,
    stage_chains,
)

Record = Any


@helper
def _set_look(vq: Record, k: int, hva: int, first: int, n: int) -> int:
    """Plan to fetch *n* descriptors from position *first* on, to *hva*; the number of the next
    pair.  They must not go round the ring's end.
    """
    uva = int(vq["ring_uva"]) + first * VRING_DESC_SIZE
    set_pair(vq, k, hva, uva, n * VRING_DESC_SIZE)
    return k + 1


@helper
def _count_known(vq: Record, n: int) -> int:
    """How many of the *n* descriptors of the first look are available, without a gap."""
    num = int(vq["packed_num"])
    pos = int(vq["avail_pos"])
    wrap = int(vq["avail_wrap"])
    known = 0
    while known < n:
        hva = int(vq["look_hva"]) + known * VRING_DESC_SIZE
        if not is_available(load_relaxed_u16(hva + DESC_FLAGS), wrap):
            break
        known += 1
        pos += 1
        if pos == num:
            pos = 0
            wrap ^= 1
    return known


@implements(fetch_ring, REMOTE_PACKED_VRING)
def _fetch_ring(vq: Record) -> int:
    if int(vq["n_known"]) > 0:
        return 0
    empty_stage(vq)
    num = int(vq["packed_num"])
    pos = int(vq["avail_pos"])
    look_hva = int(vq["look_hva"])
    n = min(num, KNOWN_DESCS)
    before_end = min(n, num - pos)
    k = _set_look(vq, 0, look_hva, pos, before_end)
    if n > before_end:
        k = _set_look(vq, k, look_hva + before_end * VRING_DESC_SIZE, 0, n - before_end)
    k = _set_look(vq, k, int(vq["ring_hva"]), 0, num)
    if transfer(vq, 0, k, False) < k:
        return -1
    known = _count_known(vq, n)
    if known == 0:  # nor is it, whatever the second look says
        word = load_relaxed_i64(look_hva + DESC_LEN)
        store_i64(int(vq["ring_hva"]) + pos * VRING_DESC_SIZE + DESC_LEN, word)
    vq["n_known"] = known
    return 0


@implements(forget_ring, REMOTE_PACKED_VRING)
def _forget_ring(vq: Record) -> None:
    vq["n_known"] = 0


@implements(chain_taken, REMOTE_PACKED_VRING)
def _chain_taken(vq: Record, n_descs: int) -> None:
    vq["n_known"] = max(int(vq["n_known"]) - n_descs, 0)
    vq["n_staged"] = max(int(vq["n_staged"]) - n_descs, 0)


@implements(fetch_avail_idx, REMOTE_PACKED_VRING)
def _fetch_seen(vq: Record) -> int:
    flush_writes(vq)
    at = int(vq["seen_pos"]) * VRING_DESC_SIZE + DESC_LEN
    return read_one(vq, 0, int(vq["ring_hva"]) + at, int(vq["ring_uva"]) + at, WORD)


@implements(fetch_used_event, REMOTE_PACKED_VRING)
def _fetch_driver_event(vq: Record) -> int:
    flush_writes(vq)
    uva = int(vq["driver_uva"])
    before = uva & (WORD - 1)
    return read_one(vq, 0, int(vq["driver_hva"]) - before, uva - before, WORD)


@implements(fetch_used, REMOTE_PACKED_VRING)
def _fetch_device_event(vq: Record) -> int:
    vq["n_writes"] = 0
    empty_stage(vq)
    vq["n_known"] = 0
    device_hva = int(vq["device_hva"])
    return read_one(vq, 0, device_hva, int(vq["device_uva"]), VRING_PACKED_EVENT_SIZE)


@implements(put_used_entry, REMOTE_PACKED_VRING)
def _put_used_entry(vq: Record, pos: int) -> None:
    at = pos * VRING_DESC_SIZE + DESC_LEN
    hva = int(vq["ring_hva"]) + at
    uva = int(vq["ring_uva"]) + at
    last = int(vq["used_pair"])
    if last < int(vq["n_writes"]):  # and no other pair's local side is in the ring
        local = load_relaxed_i64(int(vq["local_hva"]) + last * IOVEC_SIZE)
        size = load_relaxed_i64(int(vq["local_hva"]) + last * IOVEC_SIZE + 8)
        remote = load_relaxed_i64(int(vq["remote_hva"]) + last * IOVEC_SIZE)
        if hva - local == size + DESC_LEN and uva - remote == size + DESC_LEN:
            set_pair(vq, last, local, remote, size + VRING_DESC_SIZE)
            return
    if int(vq["n_writes"]) >= STAGE_IOVECS:
        flush_writes(vq)
    k = int(vq["n_writes"])
    set_pair(vq, k, hva, uva, WORD)
    vq["used_pair"] = k
    vq["n_writes"] = k + 1


@implements(push_used_entries, REMOTE_PACKED_VRING)
def _push_used_entries(vq: Record, first: int, n: int) -> None:  # noqa: ARG001
    flush_writes(vq)


@implements(push_used_word, REMOTE_PACKED_VRING)
def _push_used_word(vq: Record, offset: int) -> int:
    set_pair(vq, 0, int(vq["ring_hva"]) + offset, int(vq["ring_uva"]) + offset, WORD)
    return 0 if transfer(vq, 0, 1, True) == 1 else -1


@implements(push_device_event, REMOTE_PACKED_VRING)
def _push_device_event(vq: Record) -> int:
    flush_writes(vq)
    set_pair(vq, 0, int(vq["device_hva"]), int(vq["device_uva"]), VRING_PACKED_EVENT_SIZE)
    return 0 if transfer(vq, 0, 1, True) == 1 else -1


@helper
def _flags_of(word: int) -> int:
    return (word >> PACKED_FLAGS_SHIFT) & 0xFFFF


@helper
def _desc_hva(vq: Record, i: int) -> int:
    """Our copy of the descriptor *i* places from the next one to take on."""
    pos = (int(vq["avail_pos"]) + i) % int(vq["packed_num"])
    return int(vq["ring_hva"]) + pos * VRING_DESC_SIZE


@implements(stage_chains, REMOTE_PACKED_VRING)
def _stage_chains(vq: Record, mem: Any) -> int:
    vq["chain_bytes"] = 0
    if int(vq["n_staged"]) > 0 and STAGE_SIZE - int(vq["stage_pos"]) >= STAGE_RESERVE:
        return 0
    miss_iova = vq["miss_iova"]
    miss_perm = vq["miss_perm"]
    empty_stage(vq)
    n = int(vq["n_known"])
    k = 0
    chains = 0
    is_head = True
    for i in range(n):
        if is_head:
            if chains == STAGE_CHAINS or is_nearly_full(vq, k):
                n = i
                break
            chains += 1
        hva = _desc_hva(vq, i)
        word = load_relaxed_i64(hva + DESC_LEN)
        k = want_descriptor(vq, mem, k, load_relaxed_i64(hva), word & 0xFFFFFFFF, _flags_of(word))
        is_head = not _flags_of(word) & VRING_DESC_F_NEXT
    fetch_wanted(vq, k)
    # The second call: tables are the staged pieces that an indirect descriptor names.
    n_pieces = int(vq["n_pieces"])
    at = 0
    k = 0
    is_head = True
    for i in range(n):
        if is_head and i > 0 and is_nearly_full(vq, k):
            n = i
            break
        hva = _desc_hva(vq, i)
        flags = _flags_of(load_relaxed_i64(hva + DESC_LEN))
        if flags & VRING_DESC_F_INDIRECT:
            table = load_relaxed_i64(hva)
            at, k = want_table(vq, mem, table, at, n_pieces, k, PACKED_FLAGS_SHIFT)
        is_head = not flags & VRING_DESC_F_NEXT
    vq["buffer_at"] = n_pieces if k > 0 else 0
    vq["n_staged"] = n
    fetch_wanted(vq, k)
    vq["miss_iova"] = miss_iova  # what is not there is asked for when it is wanted
    vq["miss_perm"] = miss_perm
    return 0
