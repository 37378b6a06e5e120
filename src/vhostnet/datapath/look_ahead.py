"""Fetch the buffers that packets will be written to while others are worked on.

A receive buffer was last read by the driver's processor.  To write to it ours has to ask for the
line first, some 100 ns, and no processor looks so far ahead by itself.  What is read of the guest
here is only a hint: it is read again, and checked, when the chain's turn comes.

Buffers that are only read, and descriptors, are left to the processor: asking for them ahead
made nothing faster (docs/benchmarks.md has what was tried).
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, implements
from vhostnet.native.ordering import load_relaxed_i64, load_relaxed_u16
from vhostnet.native.prefetch import prefetch_write
from vhostnet.uapi.virtio import VRING_AVAIL_RING, VRING_DESC_SIZE

from .layout import (
    IOTLB_ENTRY,
    MAPPED_REGION,
    PACKED_VRING,
    REMOTE_PACKED_VRING,
    REMOTE_VRING,
    SPLIT_VRING,
)

Record = Any
#: Chains between the one that is worked on and the one whose buffer is fetched.
BUFFERS_AHEAD = 6
#: of a buffer; the processor goes on by itself behind so many.
MOST_BYTES = 512
CACHE_LINE = 64


@family
def _fetch_buffer(mem: Any, vq: Record, gpa: int, need: int) -> None:
    """Ask for the first *need* bytes of a buffer, if it lies in the region that was used last."""
    raise NotImplementedError


@implements(_fetch_buffer, IOTLB_ENTRY)
def _fetch_virtual(mem: Any, vq: Record, gpa: int, need: int) -> None:
    pass  # a search is more than a hint is worth


@implements(_fetch_buffer, MAPPED_REGION)
def _fetch_mapped(mem: Any, vq: Record, gpa: int, need: int) -> None:
    i = int(vq["last_region"])
    if i >= len(mem):
        return
    offset = gpa - int(mem[i]["gpa"])
    if offset < 0 or offset >= int(mem[i]["size"]):
        return
    hva = int(mem[i]["hva"]) + offset
    for at in range(0, min(need, MOST_BYTES) + CACHE_LINE - 1, CACHE_LINE):
        prefetch_write(hva + at)


@family
def look_ahead(vq: Record, mem: Any, need: int) -> None:
    """Before the chain at last_avail_idx is taken for a packet of ours, with avail_idx known."""
    raise NotImplementedError


@implements(look_ahead, SPLIT_VRING)
def _look_ahead_split(vq: Record, mem: Any, need: int) -> None:
    last = int(vq["last_avail_idx"])
    if ((int(vq["avail_idx"]) - last) & 0xFFFF) <= BUFFERS_AHEAD:
        return
    mask = int(vq["split_num"]) - 1
    slot = (last + BUFFERS_AHEAD) & mask
    head = load_relaxed_u16(int(vq["avail_hva"]) + VRING_AVAIL_RING + 2 * slot) & mask
    _fetch_buffer(mem, vq, load_relaxed_i64(int(vq["desc_hva"]) + head * VRING_DESC_SIZE), need)


@implements(look_ahead, REMOTE_VRING, REMOTE_PACKED_VRING)
def _look_ahead_remote(vq: Record, mem: Any, need: int) -> None:
    pass  # what is written goes to copies of ours


@implements(look_ahead, PACKED_VRING)
def _look_ahead_packed(vq: Record, mem: Any, need: int) -> None:
    pos = int(vq["avail_pos"]) + BUFFERS_AHEAD
    num = int(vq["packed_num"])
    if pos >= num:
        pos -= num
    if pos < num:  # a small ring: never mind
        _fetch_buffer(mem, vq, load_relaxed_i64(int(vq["ring_hva"]) + pos * VRING_DESC_SIZE), need)
