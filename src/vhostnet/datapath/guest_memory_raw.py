"""From guest addresses to ours, never outside what the device may reach.

Two questions, each with a body for each answer.  What do addresses mean?  The dtype of the
table says it:

* MAPPED_REGION[n]: guest physical addresses.
* IOTLB_ENTRY[n]: I/O virtual addresses, behind a virtual IOMMU; what is not in the table may be
  there later, when the front-end has been asked.

And how do we get at the memory behind them?  The dtype of the ring says that:

* SPLIT_VRING, PACKED_VRING: it is mapped into our process.
* REMOTE_VRING, REMOTE_PACKED_VRING: it is the owner's alone, and reached with system calls
  (owner_memory_raw.py).

Tables are sorted by address and have no overlaps.  `translate` is all that rings need, and it
never answers with a byte that the table does not hold.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, helper, hot, implements
from vhostnet.native.libc_raw import copy_bytes

from .codes import RING_FORBIDDEN, RING_MISS, RING_UNMAPPED
from .layout import (
    IOTLB_ENTRY,
    MAPPED_REGION,
    PACKED_VRING,
    SPLIT_VRING,
    VHOST_ACCESS_RO,
)

Record = Any


@family
def locate(mem: Any, vq: Record, addr: int, size: int, access: int) -> tuple[int, int]:
    """Find where the table has the guest's bytes [addr, addr + size).

    Args:
        mem: the table.
        vq: the ring that asks; keeps the index of the last entry that matched, and an
            IOTLB's miss.
        addr: signed 64-bit view of a guest address; hostile.
        size: bytes wanted, 1 .. 2**32.
        access: VHOST_ACCESS_*.

    Returns:
        (hva, n): the first n of the bytes are at hva, 1 <= n <= size; (a ring code, 0) if
        the first byte is not to be had.  For a remote ring the address is the owner's.

    Source: Linux translate_desc().
    """
    raise NotImplementedError


@family
def reach(vq: Record, hva: int, n: int, access: int) -> tuple[int, int]:
    """From what `locate` found to memory of our own process.

    Args:
        hva, n: what it answered, n > 0.

    Returns:
        (hva, n) as `translate`.
    """
    raise NotImplementedError


@implements(reach, SPLIT_VRING, PACKED_VRING)
def _reach_mapped(vq: Record, hva: int, n: int, access: int) -> tuple[int, int]:  # noqa: ARG001
    return hva, n


@hot
def translate(mem: Any, vq: Record, addr: int, size: int, access: int) -> tuple[int, int]:
    """Find our address of the guest's bytes [addr, addr + size); arguments as `locate`.

    Returns:
        (hva, n): the first n of the bytes are at hva, 1 <= n <= size; (a ring code, 0) if
        the first byte is not to be had.  What a remote ring is to write to is still the
        owner's address: it goes to `deliver`.
    """
    hva, n = locate(mem, vq, addr, size, access)
    if n == 0:
        return hva, 0
    return reach(vq, hva, n, access)


@implements(locate, MAPPED_REGION, is_hot=True)
def _locate_region(
    mem: Any,
    vq: Record,
    addr: int,
    size: int,
    access: int,  # noqa: ARG001
) -> tuple[int, int]:
    n = len(mem)
    i = int(vq["last_region"])
    if i < n:
        offset = addr - int(mem[i]["gpa"])
        room = int(mem[i]["size"]) - offset
        if offset >= 0 and room > 0:
            return int(mem[i]["hva"]) + offset, min(size, room)
    # the last region whose gpa is not above ours
    low = 0
    high = n
    while low < high:
        mid = (low + high) // 2
        if int(mem[mid]["gpa"]) <= addr:
            low = mid + 1
        else:
            high = mid
    if low == 0:
        return RING_UNMAPPED, 0
    i = low - 1
    offset = addr - int(mem[i]["gpa"])
    room = int(mem[i]["size"]) - offset
    if room <= 0:
        return RING_UNMAPPED, 0
    vq["last_region"] = i
    return int(mem[i]["hva"]) + offset, min(size, room)


@implements(locate, IOTLB_ENTRY)
def _locate_iotlb(mem: Any, vq: Record, addr: int, size: int, access: int) -> tuple[int, int]:
    low = 0
    high = len(mem)
    while low < high:
        mid = (low + high) // 2
        if int(mem[mid]["iova"]) <= addr:
            low = mid + 1
        else:
            high = mid
    if low > 0:
        i = low - 1
        offset = addr - int(mem[i]["iova"])
        room = int(mem[i]["iova_size"]) - offset
        if room > 0:
            if int(mem[i]["perm"]) & access != access:
                return RING_FORBIDDEN, 0
            return int(mem[i]["iova_hva"]) + offset, min(size, room)
    vq["miss_iova"] = addr
    vq["miss_perm"] = access
    return RING_MISS, 0


@helper
def read_guest(mem: Any, vq: Record, addr: int, size: int, dst_hva: int) -> int:
    """Copy *size* bytes at *addr* to private memory, across table entries.

    Returns:
        *size*, or the ring code of the first byte that is not to be had.
    """
    done = 0
    while done < size:
        hva, n = translate(mem, vq, addr + done, size - done, VHOST_ACCESS_RO)
        if n == 0:
            return hva
        copy_bytes(dst_hva + done, hva, n)
        done += n
    return done
