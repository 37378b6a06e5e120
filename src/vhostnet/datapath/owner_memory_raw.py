"""Memory that only its owner's process has, read and written by system calls: what rings share.

Theory of operation
-------------------
QEMU's guest memory is private unless it is told otherwise, and then no descriptor leads to it.
A ring's three parts are copies in our process (the *shadow*), at which the ring's code works as
ever; `ring_access` says when to bring them up to date, and `remote_split_ring` and
`remote_packed_ring` do it.  A system call costs as much as ten packets, so each carries a batch:

    one        the ring, when it is looked at for more
    one        of up to STAGE_CHAINS chains: the indirect tables, and what the chains' own
               descriptors want read
    one        what the tables' descriptors want read
    one        everything that is written to buffers, and the used entries
    one        what publishes these, after the above has returned

What was read for a chain lies in the *stage*, as pieces (owner's address, size, ours), and
`reach` finds it there.  Staging is only a way to be quick: what is not in the stage, because a
guess was wrong or a table was odd, is read when it is asked for.  So the walk that stages
checks nothing but its own bounds, and the walk that counts is the ring's.

Two ways lead to the memory.  /proc/PID/mem, opened when the owner became the owner, is tied to
its address space: after exec or exit it reads nothing, and it is never another process.  But
each range is a call.  process_vm_readv and writev take a batch, and a pid: after exec they reach
the new program, after exit whoever has the number.  They are used (`owner_batched`) only where
the door has both under control.

A word of 16 bits is copied byte by byte if it is asked for alone, so a guest could see, and
show, half an index.  Eight bytes are copied at once: words are fetched and pushed together
with their neighbours, where these are ours.

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
from vhostnet.native.ordering import load_relaxed_i64, store_i64
from vhostnet.uapi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
)

from .codes import RING_UNMAPPED
from .descriptors import SPLIT_FLAGS_SHIFT
from .guest_memory_raw import locate, reach
from .layout import (
    IOVEC_SIZE,
    MAX_FRAME,
    PIECE,
    REMOTE_PACKED_VRING,
    REMOTE_VRING,
    STAGE_IOVECS,
    STAGE_PIECES,
    STAGE_RESERVE,
    STAGE_SIZE,
    UIO_MAXIOV,
    VHOST_ACCESS_RO,
    VHOST_ACCESS_WO,
)
from .ring_access import deliver
from .vring_ops import signal_eventfd

Record = Any
#: What is copied at once.
WORD = 8
PIECE_SIZE = PIECE.itemsize
#: A large segmented packet of a Linux guest, with its header: bytes, and pieces.
LIKELY_CHAIN = 72 << 10
LIKELY_PIECES = 20
#: Entries of an indirect table that a chain can use.
_TABLE_MAX = UIO_MAXIOV * VRING_DESC_SIZE


# --- pairs of ranges, and the system calls on them ------------------------------------------


@helper
def set_pair(vq: Record, k: int, local: int, remote: int, size: int) -> None:
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
def transfer(vq: Record, first: int, n: int, is_write: bool) -> int:
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
        k = transfer(vq, k, n, is_write)
        if k < n:
            whole = False
            k += 1
    return whole


@helper
def read_one(vq: Record, k: int, local: int, remote: int, size: int) -> int:
    """Fetch one range, using pair *k*; 0 or -1."""
    set_pair(vq, k, local, remote, size)
    return 0 if transfer(vq, k, k + 1, False) == k + 1 else -1


# --- what is waiting to be written -----------------------------------------------------------


@helper
def flush_writes(vq: Record) -> None:
    """Carry over what was delivered.  A buffer that is not there any more loses its bytes."""
    n = int(vq["n_writes"])
    if n > 0:
        vq["n_writes"] = 0
        if not _transfer_all(vq, n, True):
            vq["ring_errors"] += 1
            signal_eventfd(int(vq["err_fd"]), int(vq["one_hva"]))


@helper
def empty_stage(vq: Record) -> None:
    """Nothing is staged any more; what waits to be written lies there and goes first."""
    flush_writes(vq)
    vq["stage_pos"] = 0
    vq["n_pieces"] = 0
    vq["buffer_at"] = 0
    vq["table_at"] = 0
    vq["n_staged"] = 0


@implements(deliver, REMOTE_VRING, REMOTE_PACKED_VRING)
def _deliver(vq: Record, iov: Any, n: int, src_hva: int, size: int) -> None:
    if int(vq["n_writes"]) + n + 2 > STAGE_IOVECS or int(vq["stage_pos"]) + size > STAGE_SIZE:
        empty_stage(vq)
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
            flush_writes(vq)
            k = 0
        set_pair(vq, k, local + done, int(iov[i]["iov_base"]), piece)
        k += 1
        done += piece
    vq["n_writes"] = k


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
    set_pair(vq, k, int(vq["stage_hva"]) + int(vq["stage_pos"]), uva, size)
    vq["stage_pos"] += size
    return k + 1


@helper
def is_nearly_full(vq: Record, k: int) -> bool:
    """Whether the next chain is better staged anew, with all the room there is."""
    room = STAGE_SIZE - STAGE_RESERVE - int(vq["stage_pos"])
    return room < LIKELY_CHAIN or k > STAGE_IOVECS - LIKELY_PIECES


@helper
def fetch_wanted(vq: Record, n: int) -> None:
    """Fetch the planned pairs; those before the first that fails become pieces."""
    if n == 0:
        return
    got = transfer(vq, 0, n, False)
    for k in range(got):
        local = int(vq["local_hva"]) + k * IOVEC_SIZE
        remote = load_relaxed_i64(int(vq["remote_hva"]) + k * IOVEC_SIZE)
        _add_piece(vq, remote, load_relaxed_i64(local + 8), load_relaxed_i64(local))


@helper
def _want_entries(vq: Record, mem: Any, table_hva: int, size: int, k: int, flags_shift: int) -> int:
    """Plan what the descriptors of one staged table want read."""
    for at in range(0, size - VRING_DESC_SIZE + 1, VRING_DESC_SIZE):
        addr = load_relaxed_i64(table_hva + at)
        word = load_relaxed_i64(table_hva + at + 8)
        flags = (word >> flags_shift) & 0xFFFF
        length = word & 0xFFFFFFFF
        if length > 0 and not flags & (VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT):
            k = _want(vq, mem, k, addr, length)
        if k >= STAGE_IOVECS:
            break
        # a packed table ends where it ends
        if flags_shift == SPLIT_FLAGS_SHIFT and not flags & VRING_DESC_F_NEXT:
            break
    return k


@helper
def want_descriptor(vq: Record, mem: Any, k: int, addr: int, size: int, flags: int) -> int:
    """Plan what one descriptor of the ring wants read: its table, or its buffer; as `_want`."""
    if flags & VRING_DESC_F_INDIRECT:
        return _want(vq, mem, k, addr, min(size, _TABLE_MAX)) if size > 0 else k
    return _want(vq, mem, k, addr, size) if size > 0 and not flags & VRING_DESC_F_WRITE else k


@helper
def want_table(
    vq: Record, mem: Any, table: int, at: int, n: int, k: int, flags_shift: int
) -> tuple[int, int]:
    """Plan what the descriptors of the table at guest address *table* want read.

    Args:
        at, n: it is looked for among the pieces at .. n - 1.

    Returns:
        (the piece after it, or *n*; the number of the next pair).
    """
    uva, _ = locate(mem, vq, table, 1, VHOST_ACCESS_RO)
    while at < n:
        piece = int(vq["pieces_hva"]) + at * PIECE_SIZE
        at += 1
        if load_relaxed_i64(piece) == uva:
            size = load_relaxed_i64(piece + 8)
            hva = load_relaxed_i64(piece + 16)
            return at, _want_entries(vq, mem, hva, size, k, flags_shift)
    return at, k


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


@implements(reach, REMOTE_VRING, REMOTE_PACKED_VRING)
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
    flush_writes(vq)  # they share the pairs
    local = int(vq["stage_hva"]) + int(vq["stage_pos"])
    if int(vq["stage_pos"]) + n > STAGE_SIZE or read_one(vq, 0, local, hva, n) < 0:
        return RING_UNMAPPED, 0
    vq["stage_pos"] += n
    if n != VRING_DESC_SIZE:
        vq["chain_bytes"] += n
    return local, n
