"""The Internet checksum (RFC 1071): verified before segments are merged, and completed for guests
that cannot complete partial ones.

A host that hands us a frame with VIRTIO_NET_HDR_F_NEEDS_CSUM has put the pseudo header's
sum into the checksum field and leaves the rest to the receiver.  Most drivers accept that;
old DHCP clients that read raw frames do not.
"""

from __future__ import annotations

from vhostnet.native._jit import helper, hot
from vhostnet.native.ordering import load_i64_at, load_relaxed_u16, load_u8, store_u8
from vhostnet.uapi.virtio import (
    VIRTIO_NET_HDR_F_DATA_VALID,
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE,
    VNET_HDR_CSUM_OFFSET,
    VNET_HDR_CSUM_START,
    VNET_HDR_FLAGS,
    VNET_HDR_GSO_TYPE,
)


@hot
def fold(total: int) -> int:
    """A ones' complement sum of 16 bits, from one of up to 62."""
    total = (total & 0xFFFFFFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@hot
def swap16(value: int) -> int:
    """16 bits with their bytes exchanged."""
    return (value >> 8) | ((value & 0xFF) << 8)


@hot
def sum_of(hva: int, size: int) -> int:
    """The ones' complement sum of *size* bytes as little-endian words, not folded.

    Which byte comes first makes no difference until the end (RFC 1071, section 2 B): the folded sum
    is the big-endian one with its bytes exchanged.  Eight bytes at a time: a vector loop.
    """
    total = 0
    words = size >> 3
    for i in range(words):
        word = load_i64_at(hva, 8 * i)
        total += (word & 0xFFFFFFFF) + ((word >> 32) & 0xFFFFFFFF)
    for i in range(8 * words, size):
        total += load_u8(hva + i) << (8 * (i & 1))
    return total


@helper
def internet_checksum(hva: int, size: int) -> int:
    """The ones' complement sum of *size* bytes, complemented, as big-endian 16 bits."""
    total = 0
    i = 0
    while i + 1 < size:
        total += (load_u8(hva + i) << 8) | load_u8(hva + i + 1)
        i += 2
    if i < size:
        total += load_u8(hva + i) << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@helper
def fill_partial_checksum(hva: int, hdr_len: int, total: int, guest_csum: int) -> None:
    """Complete the checksum of one packet in private memory.

    Args:
        hva: the packet, virtio_net_hdr first.
        hdr_len: bytes of header.
        total: bytes of header and frame.
        guest_csum: the guest acked GUEST_CSUM, so that it may be told DATA_VALID.

    A GSO packet is left alone: its segments get their checksums when it is cut.
    """
    flags = load_u8(hva + VNET_HDR_FLAGS)
    if not flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return
    if load_u8(hva + VNET_HDR_GSO_TYPE) != VIRTIO_NET_HDR_GSO_NONE:
        return
    start = load_relaxed_u16(hva + VNET_HDR_CSUM_START)
    field = start + load_relaxed_u16(hva + VNET_HDR_CSUM_OFFSET)
    frame_len = total - hdr_len
    if start >= frame_len or field + 2 > frame_len:
        return
    frame_hva = hva + hdr_len
    value = internet_checksum(frame_hva + start, frame_len - start)
    if value == 0:
        value = 0xFFFF  # RFC 768: zero would say "no checksum"; for TCP the two are equal
    store_u8(frame_hva + field, value >> 8)
    store_u8(frame_hva + field + 1, value & 0xFF)
    flags &= ~VIRTIO_NET_HDR_F_NEEDS_CSUM
    if guest_csum:
        flags |= VIRTIO_NET_HDR_F_DATA_VALID
    store_u8(hva + VNET_HDR_FLAGS, flags)
