"""Fetch the buffers of the next packets while others are worked on.

A buffer was last touched by the driver's processor.  Ours has to ask for each line of it, some
100 ns, and no processor looks so far ahead by itself.  What is read of the guest here is only a
hint: it is read again, and checked, when the chain's turn comes.

That is worth it for buffers that are written to, and for packets whose bytes decide what is done
with them.  Where a packet is only copied away it is worth it if the driver is well ahead of us: the
first look at a buffer is then most of the time that a packet takes.  It is not if we wait for the
driver, whose lines we would take away while it writes.  A split ring's index says how far ahead it
is; a packed ring's next descriptors are at hand, and it gained either way.  Asking for descriptors
made nothing faster (docs/benchmarks.md has what was tried).
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, implements
from vhostnet.native.ordering import load_relaxed_i64, load_relaxed_u16
from vhostnet.native.prefetch import prefetch_read, prefetch_write
from vhostnet.uapi.virtio import VRING_AVAIL_RING, VRING_DESC_SIZE

from .layout import (
    IOTLB_ENTRY,
    MAPPED_REGION,
    PACKED_VRING,
    REMOTE_PACKED_VRING,
    REMOTE_VRING,
    SPLIT_VRING,
    VHOST_ACCESS_WO,
)

Record = Any
#: Chains between the one that is worked on and the one whose buffer is fetched.
BUFFERS_AHEAD = 6
#: Chains seen in a split ring, and not yet taken, with which the driver is well ahead of us.
BACKLOG = 32
#: of a buffer that is copied to or from; the processor goes on by itself behind so many.
MOST_BYTES = 512
CACHE_LINE = 64
#: virtio_net_hdr and the headers of a frame, and a small frame whole.
HEADERS = 128
#: An Ethernet frame of 1514 bytes, and its virtio_net_hdr.
WHOLE_FRAME = 1536


@family
def _fetch_buffer(mem: Any, vq: Record, gpa: int, need: int, access: int) -> None:
    """Ask for the first *need* bytes of a buffer, if it lies in the region that was used last."""
    raise NotImplementedError


@implements(_fetch_buffer, IOTLB_ENTRY)
def _fetch_virtual(mem: Any, vq: Record, gpa: int, need: int, access: int) -> None:
    pass  # a search is more than a hint is worth


@implements(_fetch_buffer, MAPPED_REGION, is_hot=True)
def _fetch_mapped(mem: Any, vq: Record, gpa: int, need: int, access: int) -> None:
    i = int(vq["last_region"])
    if i >= len(mem):
        return
    offset = gpa - int(mem[i]["gpa"])
    if offset < 0 or offset >= int(mem[i]["size"]):
        return
    hva = int(mem[i]["hva"]) + offset
    for at in range(0, need + CACHE_LINE - 1, CACHE_LINE):
        if access == VHOST_ACCESS_WO:
            prefetch_write(hva + at)
        else:
            prefetch_read(hva + at)


@family
def look_ahead(vq: Record, mem: Any, need: int, access: int) -> None:
    """Before the next chain is taken.

    Args:
        need: bytes of a buffer that will be used, more or less; of a shorter one all are asked for.
        access: VHOST_ACCESS_*, what for.
    """
    raise NotImplementedError


@implements(look_ahead, SPLIT_VRING, is_hot=True)
def _look_ahead_split(vq: Record, mem: Any, need: int, access: int) -> None:
    last = int(vq["last_avail_idx"])
    end = min((int(vq["avail_idx"]) - last) & 0xFFFF, BUFFERS_AHEAD + 1)
    n = (int(vq["fetch_idx"]) - last) & 0xFFFF
    if n > BUFFERS_AHEAD + 1:  # behind, or the ring has started anew
        n = 0
    mask = int(vq["split_num"]) - 1
    # one a call, as a rule; more where the driver has just added some to an empty ring
    while n < end:
        slot = (last + n) & mask
        head = load_relaxed_u16(int(vq["avail_hva"]) + VRING_AVAIL_RING + 2 * slot) & mask
        desc_hva = int(vq["desc_hva"]) + head * VRING_DESC_SIZE
        length = load_relaxed_i64(desc_hva + 8) & 0xFFFFFFFF
        _fetch_buffer(mem, vq, load_relaxed_i64(desc_hva), min(need, length), access)
        n += 1
    vq["fetch_idx"] = (last + n) & 0xFFFF


@family
def copied_ahead(vq: Record) -> int:
    """How many bytes of a packet that is only copied are worth asking for ahead; 0: none."""
    raise NotImplementedError


@implements(copied_ahead, PACKED_VRING, is_hot=True)
def _copied_ahead_packed(vq: Record) -> int:  # noqa: ARG001
    return MOST_BYTES


@implements(copied_ahead, SPLIT_VRING, is_hot=True)
def _copied_ahead_split(vq: Record) -> int:
    backlog = (int(vq["avail_idx"]) - int(vq["last_avail_idx"])) & 0xFFFF
    return MOST_BYTES if backlog > BACKLOG else 0


@implements(copied_ahead, REMOTE_VRING, REMOTE_PACKED_VRING)
def _copied_ahead_remote(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(look_ahead, REMOTE_VRING, REMOTE_PACKED_VRING)
def _look_ahead_remote(vq: Record, mem: Any, need: int, access: int) -> None:
    pass  # what is written goes to copies of ours


@implements(look_ahead, PACKED_VRING, is_hot=True)
def _look_ahead_packed(vq: Record, mem: Any, need: int, access: int) -> None:
    pos = int(vq["avail_pos"]) + BUFFERS_AHEAD
    num = int(vq["packed_num"])
    if pos >= num:
        pos -= num
    if pos < num:  # a small ring: never mind
        desc_hva = int(vq["ring_hva"]) + pos * VRING_DESC_SIZE
        length = load_relaxed_i64(desc_hva + 8) & 0xFFFFFFFF
        _fetch_buffer(mem, vq, load_relaxed_i64(desc_hva), min(need, length), access)
