"""The dirty log: which of the guest's pages we have written, for live migration.

A bitmap with one bit a page of 4096 bytes of guest physical memory: byte `page / 8`, bit
`page % 8`.  It is shared with the front-end and with other devices, so bits are set atomically;
a page beyond the bitmap is not logged (a front-end that is honest sizes it for all regions).

A bit may be read and cleared at any moment, so it is set after the data are written: the other
way round, the front-end could copy the page between the two.

Source: Linux log_write(), vhost_log_write(), log_used().
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper
from vhostnet.native.ordering import atomic_or_u8, smp_wmb

from .vring_ops import signal_eventfd

Record = Any
LOG_PAGE_SHIFT = 12


@helper
def log_write(vq: Record, gpa: int, size: int) -> None:
    """Mark the pages of [gpa, gpa + size) dirty."""
    if size <= 0 or gpa < 0:
        return
    page = gpa >> LOG_PAGE_SHIFT
    last = (gpa + size - 1) >> LOG_PAGE_SHIFT
    while page <= last:
        if (page >> 3) >= int(vq["log_size"]):
            break
        atomic_or_u8(int(vq["log_hva"]) + (page >> 3), 1 << (page & 7))
        page += 1


@helper
def log_write_hva(vq: Record, regions: Any, hva: int, size: int) -> None:
    """Mark the pages behind our addresses [hva, hva + size) dirty, under every gpa they have."""
    for i in range(len(regions)):
        start = int(regions[i]["hva"])
        low = max(hva, start)
        high = min(hva + size, start + int(regions[i]["size"]))
        if low < high:
            log_write(vq, int(regions[i]["gpa"]) + (low - start), high - low)


@helper
def log_data(vq: Record, regions: Any, iov: Any, n: int, total: int) -> None:
    """Log what one packet of *total* bytes has written to iov[:n]."""
    smp_wmb()  # the data before the bit
    left = total
    for i in range(n):
        if left <= 0:
            break
        piece = min(left, int(iov[i]["iov_len"]))
        log_write_hva(vq, regions, int(iov[i]["iov_base"]), piece)
        left -= piece
    signal_eventfd(int(vq["log_fd"]), int(vq["one_hva"]))


@helper
def log_used(vq: Record, offset: int, size: int) -> None:
    """Log our write of *size* bytes at *offset* of the used ring."""
    smp_wmb()  # the write before the bit
    log_write(vq, int(vq["log_used_gpa"]) + offset, size)
