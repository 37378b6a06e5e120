"""A split ring whose parts are copies of the owner's memory: when and how they are brought over.

`owner_memory_raw` has the theory.  One call fetches the avail ring and the descriptor table;
in the used ring a word and its neighbours are all ours, so they are pushed together.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.ordering import load_relaxed_i64, load_relaxed_u16
from vhostnet.uapi.virtio import (
    VRING_AVAIL_RING,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_SIZE,
    VRING_USED_ELEM_SIZE,
    VRING_USED_RING,
)

from .descriptors import SPLIT_FLAGS_SHIFT
from .layout import REMOTE_VRING, STAGE_CHAINS, STAGE_RESERVE, STAGE_SIZE
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
from .ring_access import (
    chain_taken,
    fetch_avail_idx,
    fetch_ring,
    fetch_used,
    fetch_used_event,
    forget_ring,
    push_used_entries,
    push_used_word,
    stage_chains,
)

Record = Any


@helper
def _fetch_ring_remote(vq: Record) -> int:
    flush_writes(vq)
    num = int(vq["split_num"])
    avail = int(vq["avail_uva"])
    # The index first: what it covers was written before it.
    set_pair(vq, 0, int(vq["avail_hva"]), avail, WORD)
    at = VRING_AVAIL_RING
    set_pair(vq, 1, int(vq["avail_hva"]) + at, avail + at, 2 * num)
    set_pair(vq, 2, int(vq["desc_hva"]), int(vq["desc_uva"]), num * VRING_DESC_SIZE)
    if transfer(vq, 0, 3, False) < 3:
        return -1
    vq["stale"] = 0
    return 0


@implements(fetch_ring, REMOTE_VRING)
def _fetch_ring(vq: Record) -> int:
    return _fetch_ring_remote(vq)


@implements(forget_ring, REMOTE_VRING)
def _forget_ring(vq: Record) -> None:
    vq["stale"] = 1


@implements(fetch_avail_idx, REMOTE_VRING)
def _fetch_avail_idx(vq: Record) -> int:
    flush_writes(vq)
    return read_one(vq, 0, int(vq["avail_hva"]), int(vq["avail_uva"]), WORD)


@implements(fetch_used_event, REMOTE_VRING)
def _fetch_used_event(vq: Record) -> int:
    flush_writes(vq)
    at = VRING_AVAIL_RING + 2 * int(vq["split_num"]) + 2 - WORD
    return read_one(vq, 0, int(vq["avail_hva"]) + at, int(vq["avail_uva"]) + at, WORD)


@implements(fetch_used, REMOTE_VRING)
def _fetch_used(vq: Record) -> int:
    vq["n_writes"] = 0
    empty_stage(vq)
    size = VRING_USED_RING + int(vq["split_num"]) * VRING_USED_ELEM_SIZE
    return read_one(vq, 0, int(vq["used_hva"]), int(vq["used_uva"]), size)


@implements(push_used_entries, REMOTE_VRING)
def _push_used_entries(vq: Record, first: int, n: int) -> None:
    num = int(vq["split_num"])
    slot = first & (num - 1)
    before_end = min(n, num - slot)
    k = int(vq["n_writes"])  # `deliver` leaves room for two
    at = VRING_USED_RING + slot * VRING_USED_ELEM_SIZE
    size = before_end * VRING_USED_ELEM_SIZE
    set_pair(vq, k, int(vq["used_hva"]) + at, int(vq["used_uva"]) + at, size)
    k += 1
    if n > before_end:
        at = VRING_USED_RING
        size = min(n - before_end, num) * VRING_USED_ELEM_SIZE
        set_pair(vq, k, int(vq["used_hva"]) + at, int(vq["used_uva"]) + at, size)
        k += 1
    vq["n_writes"] = k
    flush_writes(vq)


@implements(push_used_word, REMOTE_VRING)
def _push_used_word(vq: Record, offset: int) -> int:
    flush_writes(vq)
    # flags and idx with what follows them, avail_event with the last entry before it
    at = offset if offset < VRING_USED_RING else offset + 2 - WORD
    set_pair(vq, 0, int(vq["used_hva"]) + at, int(vq["used_uva"]) + at, WORD)
    return 0 if transfer(vq, 0, 1, True) == 1 else -1


@helper
def _want_chain(vq: Record, mem: Any, head: int, k: int) -> int:
    """Plan the tables of one chain and what its own descriptors want read."""
    num = int(vq["split_num"])
    i = head
    for _ in range(STAGE_CHAINS):
        if i >= num:
            break
        desc_hva = int(vq["desc_hva"]) + i * VRING_DESC_SIZE
        addr = load_relaxed_i64(desc_hva)
        word = load_relaxed_i64(desc_hva + 8)
        flags = (word >> SPLIT_FLAGS_SHIFT) & 0xFFFF
        k = want_descriptor(vq, mem, k, addr, word & 0xFFFFFFFF, flags)
        if not flags & VRING_DESC_F_NEXT:
            break
        i = (word >> 48) & 0xFFFF
    return k


@implements(chain_taken, REMOTE_VRING)
def _chain_taken(vq: Record, n_descs: int) -> None:  # noqa: ARG001
    vq["n_staged"] = max(int(vq["n_staged"]) - 1, 0)


@implements(stage_chains, REMOTE_VRING)
def _stage_chains(vq: Record, mem: Any) -> int:
    vq["chain_bytes"] = 0
    last = int(vq["last_avail_idx"])
    if vq["stale"]:
        if _fetch_ring_remote(vq) < 0:
            return -1
        empty_stage(vq)
    if int(vq["n_staged"]) > 0 and STAGE_SIZE - int(vq["stage_pos"]) >= STAGE_RESERVE:
        return 0
    miss_iova = vq["miss_iova"]
    miss_perm = vq["miss_perm"]
    empty_stage(vq)
    n = min((int(vq["avail_idx"]) - last) & 0xFFFF, STAGE_CHAINS)
    num = int(vq["split_num"])
    k = 0
    for c in range(n):
        slot = (last + c) & (num - 1)
        head = load_relaxed_u16(int(vq["avail_hva"]) + VRING_AVAIL_RING + 2 * slot)
        if head >= num:
            break
        if is_nearly_full(vq, k):
            n = max(c, 1)
            break
        k = _want_chain(vq, mem, head, k)
    fetch_wanted(vq, k)
    # The second call: tables are the staged pieces that an indirect descriptor names.
    n_pieces = int(vq["n_pieces"])
    at = 0
    k = 0
    for c in range(n):
        slot = (last + c) & (num - 1)
        head = load_relaxed_u16(int(vq["avail_hva"]) + VRING_AVAIL_RING + 2 * slot)
        if head >= num:
            break
        if is_nearly_full(vq, k):
            n = max(c, 1)
            break
        desc_hva = int(vq["desc_hva"]) + head * VRING_DESC_SIZE
        if (load_relaxed_i64(desc_hva + 8) >> SPLIT_FLAGS_SHIFT) & VRING_DESC_F_INDIRECT:
            table = load_relaxed_i64(desc_hva)
            at, k = want_table(vq, mem, table, at, n_pieces, k, SPLIT_FLAGS_SHIFT)
    vq["buffer_at"] = n_pieces if k > 0 else 0
    vq["n_staged"] = n
    fetch_wanted(vq, k)
    vq["miss_iova"] = miss_iova  # what is not there is asked for when it is wanted
    vq["miss_perm"] = miss_perm
    return 0
