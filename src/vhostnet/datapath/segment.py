"""Cutting a segmentation offload's frame into what a network would carry.

The sender has left it to its card to cut one large frame (VIRTIO_NET_HDR_GSO_*); a receiver that
did not ack the type gets the pieces.  What Linux's tcp_gso_segment(), udp_gso_segment() and
inet_gso_segment() do, over a frame in private memory: every header is the first one's but for
lengths, IP identification, sequence number, flags and checksums.

A frame is hostile: whatever its header says, no byte beyond it is read, and one that is not what
its header says is refused.
"""

from __future__ import annotations

from vhostnet.native._jit import helper
from vhostnet.native.libc_raw import copy_bytes
from vhostnet.native.ordering import load_u8, store_u8
from vhostnet.uapi.virtio import (
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
)

from .checksum import internet_checksum
from .layout import PORT_TEMPLATE_SIZE

ETH_TYPE = 12
ETH_P_IP, ETH_P_IPV6, ETH_P_8021Q, ETH_P_8021AD = 0x0800, 0x86DD, 0x8100, 0x88A8
MAX_VLANS = 2
IP_MIN, IP6_MIN, TCP_MIN, UDP_LEN = 20, 40, 20, 8
IPPROTO_TCP, IPPROTO_UDP = 6, 17
TCP_CSUM, UDP_CSUM = 16, 6
TCP_FIN_PSH, TCP_CWR = 0x09, 0x80
#: `frame_headers`: not a frame that its header describes.
NOT_CUTTABLE = -1


@helper
def load_be16(hva: int) -> int:
    """Read 16 bits in network order."""
    return (load_u8(hva) << 8) | load_u8(hva + 1)


@helper
def store_be16(hva: int, value: int) -> None:
    """Write 16 bits in network order."""
    store_u8(hva, (value >> 8) & 0xFF)
    store_u8(hva + 1, value & 0xFF)


@helper
def _ip_header(hva: int, frame_len: int) -> tuple[int, int]:
    """Offset and Ethernet type of what follows Ethernet and VLAN headers; (-1, 0): nothing."""
    at = ETH_TYPE
    for _ in range(MAX_VLANS + 1):
        if at + 2 > frame_len:
            break
        ethertype = load_be16(hva + at)
        if ethertype != ETH_P_8021Q and ethertype != ETH_P_8021AD:
            return at + 2, ethertype
        at += 4
    return NOT_CUTTABLE, 0


@helper
def frame_headers(
    hva: int, frame_len: int, gso_type: int, csum_start: int, csum_offset: int
) -> tuple[int, int, int]:
    """Find the headers that each segment repeats.

    Args:
        hva: the frame, in private memory.
        gso_type: VIRTIO_NET_HDR_GSO_*, without the ECN bit.
        csum_start, csum_offset: of the same header; they say where the transport's header is.

    Returns:
        (offset of the IP header, of the transport's, of the payload); (-1, 0, 0) for a frame
        that is not of this type.
    """
    l3, ethertype = _ip_header(hva, frame_len)
    l4 = csum_start
    is_udp = gso_type == VIRTIO_NET_HDR_GSO_UDP_L4
    if l3 < 0:
        return NOT_CUTTABLE, 0, 0
    if ethertype == ETH_P_IP and (gso_type == VIRTIO_NET_HDR_GSO_TCPV4 or is_udp):
        if l3 + IP_MIN > l4 or l4 > frame_len:
            return NOT_CUTTABLE, 0, 0
        version_ihl = load_u8(hva + l3)
        if version_ihl >> 4 != 4 or l3 + 4 * (version_ihl & 15) != l4:
            return NOT_CUTTABLE, 0, 0
        if load_be16(hva + l3 + 6) & 0x3FFF:  # a fragment has no transport header to repeat
            return NOT_CUTTABLE, 0, 0
        if load_u8(hva + l3 + 9) != (IPPROTO_UDP if is_udp else IPPROTO_TCP):
            return NOT_CUTTABLE, 0, 0
    elif ethertype == ETH_P_IPV6 and (gso_type == VIRTIO_NET_HDR_GSO_TCPV6 or is_udp):
        # extension headers may lie between: they are repeated as they are
        if l3 + IP6_MIN > l4 or l4 > frame_len or load_u8(hva + l3) >> 4 != 6:
            return NOT_CUTTABLE, 0, 0
    else:
        return NOT_CUTTABLE, 0, 0
    payload = l4 + UDP_LEN
    if is_udp:
        if csum_offset != UDP_CSUM:
            return NOT_CUTTABLE, 0, 0
    else:
        if csum_offset != TCP_CSUM or l4 + TCP_MIN > frame_len:
            return NOT_CUTTABLE, 0, 0
        data_offset = 4 * (load_u8(hva + l4 + 12) >> 4)
        if data_offset < TCP_MIN:
            return NOT_CUTTABLE, 0, 0
        payload = l4 + data_offset
    if payload > frame_len or payload > PORT_TEMPLATE_SIZE:
        return NOT_CUTTABLE, 0, 0
    return l3, l4, payload


@helper
def _partial_sum(hva: int, size: int) -> int:
    return internet_checksum(hva, size) ^ 0xFFFF


@helper
def transport_checksum(hva: int, l3: int, l4: int, size: int, protocol: int) -> int:
    """The checksum of TCP or UDP over IPv4 or IPv6; its field must be zero.

    Args:
        hva: the frame; *l3* and *l4* are offsets of its headers.
        size: bytes from the transport's header on.
    """
    if load_u8(hva + l3) >> 4 == 4:
        total = _partial_sum(hva + l3 + 12, 8)
    else:
        total = _partial_sum(hva + l3 + 8, 32)
    total += protocol + (size >> 16) + (size & 0xFFFF) + _partial_sum(hva + l4, size)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    value = ~total & 0xFFFF
    # RFC 768: zero would say "no checksum"; TCP's verification takes both for the same
    return value if value != 0 or protocol != IPPROTO_UDP else 0xFFFF


@helper
def make_segment(
    hva: int,
    template_hva: int,
    l3: int,
    l4: int,
    headers: int,
    is_udp: bool,
    at: int,
    size: int,
    index: int,
    is_last: bool,
) -> None:
    """Write the headers of one segment in front of its payload.

    Args:
        hva: where the segment begins; its payload is at hva + headers.
        template_hva: the uncut frame's headers.
        at, size: which of the uncut payload's bytes it has.
        index: how many segments were before it.
    """
    copy_bytes(hva, template_hva, headers)
    if load_u8(hva + l3) >> 4 == 4:
        store_be16(hva + l3 + 2, headers - l3 + size)
        store_be16(hva + l3 + 4, (load_be16(template_hva + l3 + 4) + index) & 0xFFFF)
        store_be16(hva + l3 + 10, 0)
        store_be16(hva + l3 + 10, internet_checksum(hva + l3, l4 - l3))
    else:
        store_be16(hva + l3 + 4, headers - l3 - IP6_MIN + size)
    transport_len = headers - l4 + size
    if is_udp:
        store_be16(hva + l4 + 4, transport_len)
        store_be16(hva + l4 + UDP_CSUM, 0)
        value = transport_checksum(hva, l3, l4, transport_len, IPPROTO_UDP)
        store_be16(hva + l4 + UDP_CSUM, value)
        return
    sequence = (load_be16(template_hva + l4 + 4) << 16) | load_be16(template_hva + l4 + 6)
    sequence = (sequence + at) & 0xFFFFFFFF
    store_be16(hva + l4 + 4, sequence >> 16)
    store_be16(hva + l4 + 6, sequence & 0xFFFF)
    flags = load_u8(hva + l4 + 13)
    if not is_last:
        flags &= ~TCP_FIN_PSH
    if index > 0:
        flags &= ~TCP_CWR
    store_u8(hva + l4 + 13, flags)
    store_be16(hva + l4 + TCP_CSUM, 0)
    store_be16(hva + l4 + TCP_CSUM, transport_checksum(hva, l3, l4, transport_len, IPPROTO_TCP))
