"""Buffers and indirect tables: what both ring formats make of a descriptor.

A descriptor is 16 bytes in both: an address, then a word of length, flags and one more field.
Split has flags and next in that order, packed has id and flags, so the shift of the flags tells
the formats apart.  Every descriptor is copied once; only the copy is used.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, hot
from vhostnet.native.ordering import load_relaxed_i64
from vhostnet.uapi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
)

from .codes import (
    RING_INDIRECT_LEN,
    RING_INDIRECT_NESTED,
    RING_INDIRECT_OVERRUN,
    RING_INDIRECT_TOO_BIG,
    RING_INDIRECT_UNMAPPED,
    RING_OUT_AFTER_IN,
    RING_TOO_MANY_IOVS,
    RING_UNMAPPED,
)
from .guest_memory_raw import locate, read_guest, translate
from .layout import UIO_MAXIOV, VHOST_ACCESS_RO, VHOST_ACCESS_WO

Record = Any
MAX_INDIRECT = 65536
#: Where the flags are in a descriptor's second word.
SPLIT_FLAGS_SHIFT = 32
PACKED_FLAGS_SHIFT = 48


@hot
def add_buffer(
    vq: Record, mem: Any, iov: Any, at: int, n: int, addr: int, size: int, access: int
) -> int:
    """Append the pieces of one buffer to iov[at + n:]; returns the new n or a ring code."""
    done = 0
    while done < size:
        if n >= UIO_MAXIOV:
            return RING_TOO_MANY_IOVS
        hva, piece = translate(mem, vq, addr + done, size - done, access)
        if piece == 0:
            return hva
        iov[at + n]["iov_base"] = hva
        iov[at + n]["iov_len"] = piece
        n += 1
        done += piece
    return n


@helper
def _table_error(code: int) -> int:
    """What an indirect table that is not to be had is called; a miss stays a miss."""
    return RING_INDIRECT_UNMAPPED if code == RING_UNMAPPED else code


@helper
def walk_indirect(
    vq: Record,
    mem: Any,
    iov: Any,
    at: int,
    n_out: int,
    n_in: int,
    table: int,
    size: int,
    flags_shift: int,
    n_before: int,
) -> tuple[int, int, int, int, int]:
    """Walk one indirect table; returns (n_out or ring code, n_in, bytes out, bytes in, entries).

    Entries are taken strictly in order.  A split table ends at the first entry without NEXT
    (the field `next` is ignored), a packed one at its end.  Empty buffers count as pieces of the
    chain, which has *n_before* already: they take time as well.

    Source: Linux get_indirect(); VIRTIO 1.2 section 2.8.7.
    """
    if size % VRING_DESC_SIZE != 0:
        return RING_INDIRECT_LEN, 0, 0, 0, 0
    count = size // VRING_DESC_SIZE
    if count > MAX_INDIRECT:
        return RING_INDIRECT_TOO_BIG, 0, 0, 0, 0
    # the whole table has to be there, even what the chain does not use
    checked = 0
    while checked < size:
        hva, piece = locate(mem, vq, table + checked, size - checked, VHOST_ACCESS_RO)
        if piece == 0:
            return _table_error(hva), 0, 0, 0, 0
        checked += piece
    out_len = 0
    in_len = 0
    found = 0
    while True:
        if found >= count:
            return RING_INDIRECT_OVERRUN, 0, 0, 0, 0
        if n_before + found >= UIO_MAXIOV:
            return RING_TOO_MANY_IOVS, 0, 0, 0, 0
        entry = table + found * VRING_DESC_SIZE
        found += 1
        hva, piece = translate(mem, vq, entry, VRING_DESC_SIZE, VHOST_ACCESS_RO)
        if piece < VRING_DESC_SIZE:  # across two regions: through private memory
            hva = int(vq["desc_copy_hva"])
            copied = read_guest(mem, vq, entry, VRING_DESC_SIZE, hva)
            if copied < VRING_DESC_SIZE:
                return _table_error(copied), 0, 0, 0, 0
        addr = load_relaxed_i64(hva)
        word = load_relaxed_i64(hva + 8)
        length = word & 0xFFFFFFFF
        flags = (word >> flags_shift) & 0xFFFF
        if flags & VRING_DESC_F_INDIRECT:
            return RING_INDIRECT_NESTED, 0, 0, 0, 0
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
        if flags_shift == PACKED_FLAGS_SHIFT:
            if found == count:
                return n_out, n_in, out_len, in_len, found
        elif not flags & VRING_DESC_F_NEXT:
            return n_out, n_in, out_len, in_len, found
