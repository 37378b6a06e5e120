"""From guest addresses to ours, never outside a region.

A region table is the parameter that says *how* guest memory is reached: MAPPED_REGION[n]
is memory mapped into our process, sorted by gpa, without overlaps.  `translate` is all that
rings need, and it never answers with a byte that no region holds.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, helper, implements
from vhostnet.native.libc_raw import copy_bytes

from .layout import MAPPED_REGION

Record = Any


@family
def translate(mem: Any, vq: Record, gpa: int, size: int) -> tuple[int, int]:
    """Find our address of the guest's bytes [gpa, gpa + size).

    Args:
        mem: region table; its dtype chooses the body.
        vq: the ring that asks; keeps the index of the last region that matched.
        gpa: signed 64-bit view of a guest physical address; hostile.
        size: bytes wanted, 1 .. 2**32.

    Returns:
        (hva, n): the first n of the bytes are at hva, 1 <= n <= size; (0, 0) if the first
        byte is in no region.

    Source: Linux translate_desc().
    """
    raise NotImplementedError


@implements(translate, MAPPED_REGION)
def _translate_mapped(mem: Any, vq: Record, gpa: int, size: int) -> tuple[int, int]:
    n = len(mem)
    i = int(vq["last_region"])
    if i < n:
        offset = gpa - int(mem[i]["gpa"])
        room = int(mem[i]["size"]) - offset
        if offset >= 0 and room > 0:
            return int(mem[i]["hva"]) + offset, min(size, room)
    # the last region whose gpa is not above ours
    low = 0
    high = n
    while low < high:
        mid = (low + high) // 2
        if int(mem[mid]["gpa"]) <= gpa:
            low = mid + 1
        else:
            high = mid
    if low == 0:
        return 0, 0
    i = low - 1
    offset = gpa - int(mem[i]["gpa"])
    room = int(mem[i]["size"]) - offset
    if room <= 0:
        return 0, 0
    vq["last_region"] = i
    return int(mem[i]["hva"]) + offset, min(size, room)


@helper
def read_guest(mem: Any, vq: Record, gpa: int, size: int, dst_hva: int) -> int:
    """Copy *size* bytes at *gpa* to private memory, across regions; returns bytes copied."""
    done = 0
    while done < size:
        hva, n = translate(mem, vq, gpa + done, size - done)
        if n == 0:
            break
        copy_bytes(dst_hva + done, hva, n)
        done += n
    return done
