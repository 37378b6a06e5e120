"""From the rings of blocks of all captured queues into one stream, oldest packet first."""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, kernel
from vhostnet.native.libc_raw import copy_bytes
from vhostnet.native.ordering import (
    load_i64_at,
    load_relaxed_i32,
    load_relaxed_i64,
    smp_rmb,
    store_release_i64,
)

from .capture import JUMP
from .layout import CAPTURE, field_offset

_BLOCKS = field_offset(CAPTURE, "blocks_hva")
_SIZE = field_offset(CAPTURE, "blocks_size")
_TAIL = field_offset(CAPTURE, "blocks_tail")
_HEAD = field_offset(CAPTURE, "blocks_head")
_U32 = 0xFFFFFFFF


@helper
def _first_block(capture_hva: int) -> int:
    """Address of the oldest block of a ring, or 0."""
    tail = load_i64_at(capture_hva, _TAIL)
    if load_relaxed_i64(capture_hva + _HEAD) == tail:
        return 0
    smp_rmb()  # the head before what it has made visible
    size = load_i64_at(capture_hva, _SIZE)
    hva = load_i64_at(capture_hva, _BLOCKS) + (tail & (size - 1))
    if load_relaxed_i32(hva) & _U32 == JUMP:
        tail += size - (tail & (size - 1))
        store_release_i64(capture_hva + _TAIL, tail)
        hva = load_i64_at(capture_hva, _BLOCKS)
    return hva


@helper
def _time_of(block_hva: int) -> int:
    high = load_relaxed_i32(block_hva + 12) & _U32
    return high << 32 | (load_relaxed_i32(block_hva + 16) & _U32)


@kernel
def capture_merge(
    captures: Any, n: int, before_ns: int, out: Any, most_packets: int
) -> tuple[int, int]:
    """Take blocks in the order of their times.

    Args:
        captures: i8[]: addresses of *n* CAPTURE records.
        before_ns: later blocks stay, since an older one may still come from another ring.
        out: u8[], room for the blocks.
        most_packets: take no more than so many.

    Returns:
        (bytes in *out*, packets).
    """
    used = 0
    packets = 0
    room = len(out)
    out_hva = out.ctypes.data
    while packets < most_packets:
        best = -1
        best_ns = before_ns
        best_hva = 0
        for k in range(n):
            block_hva = _first_block(int(captures[k]))
            if block_hva != 0 and _time_of(block_hva) < best_ns:
                best, best_ns, best_hva = k, _time_of(block_hva), block_hva
        if best < 0:
            break
        size = load_relaxed_i32(best_hva + 4) & _U32
        if used + size > room:
            break
        copy_bytes(out_hva + used, best_hva, size)
        used += size
        packets += 1
        capture_hva = int(captures[best])
        tail = load_i64_at(capture_hva, _TAIL) + ((size + 7) & ~7)
        store_release_i64(capture_hva + _TAIL, tail)
    return used, packets
