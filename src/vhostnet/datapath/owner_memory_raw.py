"""A split ring in memory that only its owner's process has: read and written by system calls.

Theory of operation
-------------------
QEMU's guest memory is private unless it is told otherwise, and then no descriptor leads to it.
The ring's three parts are copies in our process (the *shadow*), at which the split ring's code
works as ever; `ring_access` says when to bring them up to date.  A system call costs as much as
ten packets, so each carries a batch:

    one        the avail ring and the descriptor table, when the ring is looked at for more
    one        of up to STAGE_CHAINS chains: the indirect tables, and what the chains' own
               descriptors want read
    one        what the tables' descriptors want read
    one        everything that is written to buffers, and the used entries
    one        used->idx, after the above has returned

What was read for a chain lies in the *stage*, as pieces (owner's address, size, ours), and
`reach` finds it there.  Staging is only a way to be quick: what is not in the stage, because a
guess was wrong or a table was odd, is read when it is asked for.  So the walk that stages
checks nothing but its own bounds, and the walk that counts is the split ring's.

Two ways lead to the memory.  /proc/PID/mem, opened when the owner became the owner, is tied to
its address space: after exec or exit it reads nothing, and it is never another process.  But
each range is a call.  process_vm_readv and writev take a batch, and a pid: after exec they reach
the new program, after exit whoever has the number.  They are used (`owner_batched`) only where
the door has both under control.

A word of 16 bits is copied byte by byte if it is asked for alone, so a guest could see, and
show, half an index.  Eight bytes are copied at once: words are fetched and pushed together
with their neighbours, which in the used ring are all ours.

Each remote range takes the owner's page-table lock in turn, so within one call an earlier range
is read, or written, before a later one.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.libc_raw import (
    copy_bytes,
    pread,
    process_vm_readv,
    process_vm_writev,
    pwrite,
)
from vhostnet.native.ordering import load_relaxed_i64, load_relaxed_u16, store_i64
from vhostnet.uapi.virtio import (
    VRING_AVAIL_RING,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
    VRING_USED_ELEM_SIZE,
    VRING_USED_RING,
)

from .codes import RING_UNMAPPED
from .guest_memory_raw import locate, reach
from .layout import (
    IOVEC_SIZE,
    MAX_FRAME,
    PIECE,
    REMOTE_VRING,
    STAGE_CHAINS,
    STAGE_IOVECS,
    STAGE_PIECES,
    STAGE_RESERVE,
    STAGE_SIZE,
    UIO_MAXIOV,
    VHOST_ACCESS_RO,
    VHOST_ACCESS_WO,
)
from .ring_access import (
    deliver,
    fetch_avail_idx,
    fetch_ring,
    fetch_used,
    fetch_used_event,
    forget_ring,
    push_used_entries,
    push_used_word,
    stage_chains,
)
from .vring_ops import signal_eventfd

Record = Any
_WORD = 8
PIECE_SIZE = PIECE.itemsize
#: A large segmented packet of a Linux guest, with its header: bytes, and pieces.
LIKELY_CHAIN = 72 << 10
LIKELY_PIECES = 20
#: Entries of an indirect table that a chain can use.
_TABLE_MAX = UIO_MAXIOV * VRING_DESC_SIZE


# --- pairs of ranges, and the system calls on them ------------------------------------------


@helper
def _set_pair(vq: Record, k: int, local: int, remote: int, size: int) -> None:
    """Side by side: *size* bytes of ours and of the owner's."""
    at = int(vq["local_hva"]) + k * IOVEC_SIZE
    store_i64(at, local)
    store_i64(at + 8, size)
    at = int(vq["remote_hva"]) + k * IOVEC_SIZE
    store_i64(at, remote)
    store_i64(at + 8, size)


@helper
def _pairs_done(vq: Record, first: int, n: int, done: int) -> int:
    """How many pairs from *first* on are whole when *done* bytes went through."""
    k = first
    while k < n:
        done -= load_relaxed_i64(int(vq["local_hva"]) + k * IOVEC_SIZE + 8)
        if done < 0:
            break
        k += 1
    return k - first


@helper
def _transfer_one(vq: Record, k: int, is_write: bool) -> bool:
    """Pair *k* through the owner's /proc/PID/mem."""
    local = load_relaxed_i64(int(vq["local_hva"]) + k * IOVEC_SIZE)
    size = load_relaxed_i64(int(vq["local_hva"]) + k * IOVEC_SIZE + 8)
    remote = load_relaxed_i64(int(vq["remote_hva"]) + k * IOVEC_SIZE)
    if remote < 0:
        return False
    vq["owner_calls"] += 1
    if is_write:
        return pwrite(int(vq["owner_mem_fd"]), local, size, remote) == size
    return pread(int(vq["owner_mem_fd"]), local, size, remote) == size


@helper
def _transfer(vq: Record, first: int, n: int, is_write: bool) -> int:
    """Carry the pairs first .. n - 1 over, in order.

    Returns:
        The number of the first pair that failed, or *n*.
    """
    k = first
    while k < n:
        if vq["owner_batched"]:
            vq["owner_calls"] += 1
            local = int(vq["local_hva"]) + k * IOVEC_SIZE
            remote = int(vq["remote_hva"]) + k * IOVEC_SIZE
            if is_write:
                done = process_vm_writev(int(vq["owner_pid"]), local, remote, n - k)
            else:
                done = process_vm_readv(int(vq["owner_pid"]), local, remote, n - k)
            whole = _pairs_done(vq, k, n, done) if done > 0 else 0
            if whole == 0:
                break
            k += whole
        else:
            if not _transfer_one(vq, k, is_write):
                break
            k += 1
    if k < n:
        vq["owner_faults"] += 1
    return k


@helper
def _transfer_all(vq: Record, n: int, is_write: bool) -> bool:
    """Every pair that can be; false if one could not."""
    k = 0
    whole = True
    while k < n:
        k = _transfer(vq, k, n, is_write)
        if k < n:
            whole = False
            k += 1
    return whole


@helper
def _read_one(vq: Record, k: int, local: int, remote: int, size: int) -> int:
    """Fetch one range, using pair *k*; 0 or -1."""
    _set_pair(vq, k, local, remote, size)
    return 0 if _transfer(vq, k, k + 1, False) == k + 1 else -1


# --- what is waiting to be written -----------------------------------------------------------


@helper
def _flush_writes(vq: Record) -> None:
    """Carry over what was delivered.  A buffer that is not there any more loses its bytes."""
    n = int(vq["n_writes"])
    if n > 0:
        vq["n_writes"] = 0
        if not _transfer_all(vq, n, True):
            vq["ring_errors"] += 1
            signal_eventfd(int(vq["err_fd"]), int(vq["one_hva"]))


@helper
def _empty_stage(vq: Record) -> None:
    """Nothing is staged any more; what waits to be written lies there and goes first."""
    _flush_writes(vq)
    vq["stage_pos"] = 0
    vq["n_pieces"] = 0
    vq["buffer_at"] = 0
    vq["table_at"] = 0
    vq["staged_idx"] = vq["last_avail_idx"]


@implements(deliver, REMOTE_VRING)
def _deliver(vq: Record, iov: Any, n: int, src_hva: int, size: int) -> None:
    if int(vq["n_writes"]) + n + 2 > STAGE_IOVECS or int(vq["stage_pos"]) + size > STAGE_SIZE:
        _empty_stage(vq)
    local = int(vq["stage_hva"]) + int(vq["stage_pos"])
    copy_bytes(local, src_hva, size)
    vq["stage_pos"] += size
    k = int(vq["n_writes"])
    done = 0
    for i in range(n):
        if done >= size:
            break
        piece = min(int(iov[i]["iov_len"]), size - done)
        if k >= STAGE_IOVECS - 2:  # more pieces than one call takes
            vq["n_writes"] = k
            _flush_writes(vq)
            k = 0
        _set_pair(vq, k, local + done, int(iov[i]["iov_base"]), piece)
        k += 1
        done += piece
    vq["n_writes"] = k


# --- the ring's parts ------------------------------------------------------------------------


@helper
def _fetch_ring_remote(vq: Record) -> int:
    _flush_writes(vq)
    num = int(vq["split_num"])
    avail = int(vq["avail_uva"])
    # The index first: what it covers was written before it.
    _set_pair(vq, 0, int(vq["avail_hva"]), avail, _WORD)
    at = VRING_AVAIL_RING
    _set_pair(vq, 1, int(vq["avail_hva"]) + at, avail + at, 2 * num)
    _set_pair(vq, 2, int(vq["desc_hva"]), int(vq["desc_uva"]), num * VRING_DESC_SIZE)
    if _transfer(vq, 0, 3, False) < 3:
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
    _flush_writes(vq)
    return _read_one(vq, 0, int(vq["avail_hva"]), int(vq["avail_uva"]), _WORD)


@implements(fetch_used_event, REMOTE_VRING)
def _fetch_used_event(vq: Record) -> int:
    _flush_writes(vq)
    at = VRING_AVAIL_RING + 2 * int(vq["split_num"]) + 2 - _WORD
    return _read_one(vq, 0, int(vq["avail_hva"]) + at, int(vq["avail_uva"]) + at, _WORD)


@implements(fetch_used, REMOTE_VRING)
def _fetch_used(vq: Record) -> int:
    vq["n_writes"] = 0
    _empty_stage(vq)
    size = VRING_USED_RING + int(vq["split_num"]) * VRING_USED_ELEM_SIZE
    return _read_one(vq, 0, int(vq["used_hva"]), int(vq["used_uva"]), size)


@implements(push_used_entries, REMOTE_VRING)
def _push_used_entries(vq: Record, first: int, n: int) -> None:
    num = int(vq["split_num"])
    slot = first & (num - 1)
    before_end = min(n, num - slot)
    k = int(vq["n_writes"])  # `deliver` leaves room for two
    at = VRING_USED_RING + slot * VRING_USED_ELEM_SIZE
    size = before_end * VRING_USED_ELEM_SIZE
    _set_pair(vq, k, int(vq["used_hva"]) + at, int(vq["used_uva"]) + at, size)
    k += 1
    if n > before_end:
        at = VRING_USED_RING
        size = min(n - before_end, num) * VRING_USED_ELEM_SIZE
        _set_pair(vq, k, int(vq["used_hva"]) + at, int(vq["used_uva"]) + at, size)
        k += 1
    vq["n_writes"] = k
    _flush_writes(vq)


@implements(push_used_word, REMOTE_VRING)
def _push_used_word(vq: Record, offset: int) -> int:
    _flush_writes(vq)
    # flags and idx with what follows them, avail_event with the last entry before it
    at = offset if offset < VRING_USED_RING else offset + 2 - _WORD
    _set_pair(vq, 0, int(vq["used_hva"]) + at, int(vq["used_uva"]) + at, _WORD)
    return 0 if _transfer(vq, 0, 1, True) == 1 else -1


# --- staging ---------------------------------------------------------------------------------


@helper
def _add_piece(vq: Record, uva: int, size: int, hva: int) -> None:
    n = int(vq["n_pieces"])
    if n < STAGE_PIECES:
        at = int(vq["pieces_hva"]) + n * PIECE_SIZE
        store_i64(at, uva)
        store_i64(at + 8, size)
        store_i64(at + 16, hva)
        vq["n_pieces"] = n + 1


@helper
def _want(vq: Record, mem: Any, k: int, addr: int, size: int) -> int:
    """Plan to stage what *addr* means, as pair *k*; the number of the next pair.

    A range that is not there, or lies in two places, is left to `reach`.
    """
    last_region = vq["last_region"]
    uva, n = locate(mem, vq, addr, size, VHOST_ACCESS_RO)
    vq["last_region"] = last_region
    room = STAGE_SIZE - STAGE_RESERVE - int(vq["stage_pos"])
    if n < size or size > room or k >= STAGE_IOVECS:
        return k
    _set_pair(vq, k, int(vq["stage_hva"]) + int(vq["stage_pos"]), uva, size)
    vq["stage_pos"] += size
    return k + 1


@helper
def _is_nearly_full(vq: Record, k: int) -> bool:
    """Whether the next chain is better staged anew, with all the room there is."""
    room = STAGE_SIZE - STAGE_RESERVE - int(vq["stage_pos"])
    return room < LIKELY_CHAIN or k > STAGE_IOVECS - LIKELY_PIECES


@helper
def _fetch_wanted(vq: Record, n: int) -> None:
    """Fetch the planned pairs; those before the first that fails become pieces."""
    if n == 0:
        return
    got = _transfer(vq, 0, n, False)
    for k in range(got):
        local = int(vq["local_hva"]) + k * IOVEC_SIZE
        remote = load_relaxed_i64(int(vq["remote_hva"]) + k * IOVEC_SIZE)
        _add_piece(vq, remote, load_relaxed_i64(local + 8), load_relaxed_i64(local))


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
        flags = (word >> 32) & 0xFFFF
        size = word & 0xFFFFFFFF
        if flags & VRING_DESC_F_INDIRECT:
            size = min(size, _TABLE_MAX)
        if size > 0 and (flags & VRING_DESC_F_INDIRECT or not flags & VRING_DESC_F_WRITE):
            k = _want(vq, mem, k, addr, size)
        if not flags & VRING_DESC_F_NEXT:
            break
        i = (word >> 48) & 0xFFFF
    return k


@helper
def _want_table(vq: Record, mem: Any, table_hva: int, size: int, k: int) -> int:
    """Plan what the descriptors of one staged table want read."""
    for at in range(0, size - VRING_DESC_SIZE + 1, VRING_DESC_SIZE):
        addr = load_relaxed_i64(table_hva + at)
        word = load_relaxed_i64(table_hva + at + 8)
        flags = (word >> 32) & 0xFFFF
        length = word & 0xFFFFFFFF
        if length > 0 and not flags & (VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT):
            k = _want(vq, mem, k, addr, length)
        if k >= STAGE_IOVECS or not flags & VRING_DESC_F_NEXT:
            break
    return k


@implements(stage_chains, REMOTE_VRING)
def _stage_chains(vq: Record, mem: Any) -> int:
    vq["chain_bytes"] = 0
    last = int(vq["last_avail_idx"])
    if vq["stale"]:
        if _fetch_ring_remote(vq) < 0:
            return -1
        _empty_stage(vq)
    due = last == int(vq["staged_idx"])
    if not due and STAGE_SIZE - int(vq["stage_pos"]) >= STAGE_RESERVE:
        return 0
    miss_iova = vq["miss_iova"]
    miss_perm = vq["miss_perm"]
    _empty_stage(vq)
    n = min((int(vq["avail_idx"]) - last) & 0xFFFF, STAGE_CHAINS)
    num = int(vq["split_num"])
    k = 0
    for c in range(n):
        slot = (last + c) & (num - 1)
        head = load_relaxed_u16(int(vq["avail_hva"]) + VRING_AVAIL_RING + 2 * slot)
        if head >= num:
            break
        if _is_nearly_full(vq, k):
            n = max(c, 1)
            break
        k = _want_chain(vq, mem, head, k)
    _fetch_wanted(vq, k)
    # The second call: tables are the staged pieces that an indirect descriptor names.
    n_pieces = int(vq["n_pieces"])
    at = 0
    k = 0
    for c in range(n):
        slot = (last + c) & (num - 1)
        head = load_relaxed_u16(int(vq["avail_hva"]) + VRING_AVAIL_RING + 2 * slot)
        if head >= num:
            break
        if _is_nearly_full(vq, k):
            n = max(c, 1)
            break
        word = load_relaxed_i64(int(vq["desc_hva"]) + head * VRING_DESC_SIZE + 8)
        if (word >> 32) & VRING_DESC_F_INDIRECT:
            addr = load_relaxed_i64(int(vq["desc_hva"]) + head * VRING_DESC_SIZE)
            uva, _ = locate(mem, vq, addr, 1, VHOST_ACCESS_RO)
            while at < n_pieces:
                piece = int(vq["pieces_hva"]) + at * PIECE_SIZE
                at += 1
                if load_relaxed_i64(piece) == uva:
                    size = load_relaxed_i64(piece + 8)
                    k = _want_table(vq, mem, load_relaxed_i64(piece + 16), size, k)
                    break
    vq["buffer_at"] = n_pieces if k > 0 else 0
    vq["staged_idx"] = (last + n) & 0xFFFF
    _fetch_wanted(vq, k)
    vq["miss_iova"] = miss_iova  # what is not there is asked for when it is wanted
    vq["miss_perm"] = miss_perm
    return 0


@helper
def _in_piece(vq: Record, k: int, uva: int) -> int:
    """Bytes of piece *k* from *uva* on, 0 if it is not in it."""
    at = int(vq["pieces_hva"]) + k * PIECE_SIZE
    offset = uva - load_relaxed_i64(at)
    if offset < 0:
        return 0
    return max(load_relaxed_i64(at + 8) - offset, 0)


@helper
def _find_piece(vq: Record, uva: int) -> int:
    """The piece that holds *uva*, looked for where the next one is likely; -1: none."""
    n = int(vq["n_pieces"])
    for k in range(int(vq["table_at"]), min(int(vq["table_at"]) + 2, n)):
        if _in_piece(vq, k, uva) > 0:
            vq["table_at"] = k
            return k
    for k in range(int(vq["buffer_at"]), min(int(vq["buffer_at"]) + 2, n)):
        if _in_piece(vq, k, uva) > 0:
            vq["buffer_at"] = k
            return k
    for k in range(n):
        if _in_piece(vq, k, uva) > 0:
            vq["buffer_at"] = k
            return k
    return -1


@implements(reach, REMOTE_VRING)
def _reach(vq: Record, hva: int, n: int, access: int) -> tuple[int, int]:
    if access == VHOST_ACCESS_WO:
        return hva, n
    k = _find_piece(vq, hva)
    if k >= 0:
        at = int(vq["pieces_hva"]) + k * PIECE_SIZE
        found = load_relaxed_i64(at + 16) + hva - load_relaxed_i64(at)
        return found, min(n, _in_piece(vq, k, hva))
    if int(vq["chain_bytes"]) + n > MAX_FRAME:
        # No backend takes a chain of that length, so nobody looks at these bytes.
        return int(vq["stage_hva"]), n
    _flush_writes(vq)  # they share the pairs
    local = int(vq["stage_hva"]) + int(vq["stage_pos"])
    if int(vq["stage_pos"]) + n > STAGE_SIZE or _read_one(vq, 0, local, hva, n) < 0:
        return RING_UNMAPPED, 0
    vq["stage_pos"] += n
    if n != VRING_DESC_SIZE:
        vq["chain_bytes"] += n
    return local, n
