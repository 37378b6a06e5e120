"""Which TCP segments may become one frame, and what the headers of that frame are.

The rules are those of Linux's GRO (inet_gro_receive, ipv6_gro_receive, tcp_gro_receive), and
stricter where GRO's result would not be segmented into the same bytes again:

* IPv4 without options and fragments, or IPv6 with TCP right behind it; no VLAN tag; no padding.
* Ethernet, TTL, TOS, DF, flow label, acknowledgement, window and TCP options equal (so timestamps
  are equal); the sequence number goes on; IP IDs count up by one, DF or not (GRO also takes IDs
  that stay the same with DF: segmented by the kernel they would count up).
* ACK, and nothing but PSH and ECE beside it; the reserved bits and the urgent pointer are 0 (GRO
  takes FIN at the end, and does not look at the urgent pointer).
* All segments as long as the first, the last one perhaps shorter.  A short one ends a merge,
  and so does PSH.
* Both checksums are right, and written as a sender computes them: 0xFFFF for 0 is right
  too, but not what comes out of segmentation.

What is merged bears no trace of the checksums that were in it: the kernel computes them again.  So
a segment with a wrong one must never get here.

All of it works on a private copy of the headers: what was checked is what is sent.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, hot
from vhostnet.native.libc_raw import copy_bytes
from vhostnet.native.ordering import load_i64_at, load_u8, store_relaxed_u16, store_u8
from vhostnet.uapi.virtio import (
    VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VNET_HDR_CSUM_OFFSET,
    VNET_HDR_CSUM_START,
    VNET_HDR_FLAGS,
    VNET_HDR_GSO_SIZE,
    VNET_HDR_GSO_TYPE,
    VNET_HDR_HDR_LEN,
)

from .checksum import fold, sum_of, swap16

Record = Any
#: Answers of `find_tcp`: it is in no TCP flow; it might be in any.
NOT_TCP = -1
UNCLEAR = -2
#: Where TCP begins in a frame, behind Ethernet and IPv4 or IPv6.
TCP_IN_IPV4, TCP_IN_IPV6 = 34, 54
#: No merged frame is longer (Linux: gro_max_size, and IP's own lengths).
MERGED_MAX = 65535
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
#: A tag, or something else that has an IP packet in it: 802.1Q, 802.1ad, MPLS, PPPoE.
_ETH_P_8021Q, _ETH_P_8021AD, _ETH_P_MPLS, _ETH_P_PPPOE = 0x8100, 0x88A8, 0x8847, 0x8864
_IPPROTO_TCP, _IPPROTO_UDP, _IPPROTO_ICMPV6, _NO_NEXT = 6, 17, 58, 59
_IP_DF, _IP_MF_OR_OFFSET = 0x4000, 0x3FFF
_IP, _IP_LEN, _IP_ID, _IP_FRAG, _IP_PROTO, _IP_CHECK, _IP_ADDRESSES = 14, 16, 18, 20, 23, 24, 26
_IPV6_LEN, _IPV6_NEXT, _IPV6_ADDRESSES = 18, 20, 22
_SEQ, _ACK, _DOFF, _FLAGS, _CHECK, _URGENT, _OPTIONS = 4, 8, 12, 13, 16, 18, 20
_TCP_PSH, _TCP_ACK, _TCP_ECE = 0x08, 0x10, 0x40
#: In words of eight bytes that are compared: what may differ is masked out.
_LOW_32 = 0xFFFFFFFF
_NOT_LEN_AND_ID = ~0xFFFFFFFF  # bytes 16 .. 19 of 16 .. 23: IPv4's length and ID
_NOT_LEN = ~0xFFFF0000  # bytes 18 and 19 of 16 .. 23: IPv6's length
_NOT_PSH = ~(_TCP_PSH << 40)  # in byte 13 of 8 .. 15 of TCP


@hot
def be16(hva: int) -> int:
    """A big-endian u16 of private memory."""
    return (load_u8(hva) << 8) | load_u8(hva + 1)


@helper
def _put_be16(hva: int, value: int) -> None:
    store_u8(hva, value >> 8)
    store_u8(hva + 1, value & 0xFF)


@hot
def _differ(a: int, b: int, at: int) -> int:
    """The bits in which eight bytes at offset *at* differ."""
    return load_i64_at(a, at) ^ load_i64_at(b, at)


@hot
def find_tcp(frame_hva: int, frame_len: int) -> int:
    """Where the TCP header of a frame begins, NOT_TCP or UNCLEAR.

    Args:
        frame_hva: private copy of the first COALESCE_HEADERS bytes.
        frame_len: of the whole frame.
    """
    if frame_len < TCP_IN_IPV4:
        return UNCLEAR
    kind = be16(frame_hva + 12)
    if kind == _ETH_P_IP:
        version = load_u8(frame_hva + _IP)
        if version >> 4 == 4 and load_u8(frame_hva + _IP_PROTO) != _IPPROTO_TCP:
            return NOT_TCP
        if version != 0x45 or be16(frame_hva + _IP_FRAG) & _IP_MF_OR_OFFSET:
            return UNCLEAR
        return TCP_IN_IPV4 if frame_len >= TCP_IN_IPV4 + _OPTIONS else UNCLEAR
    if kind == _ETH_P_IPV6:
        if frame_len < TCP_IN_IPV6 or load_u8(frame_hva + _IP) >> 4 != 6:
            return UNCLEAR
        proto = load_u8(frame_hva + _IPV6_NEXT)
        if proto == _IPPROTO_UDP or proto == _IPPROTO_ICMPV6 or proto == _NO_NEXT:
            return NOT_TCP
        if proto != _IPPROTO_TCP or frame_len < TCP_IN_IPV6 + _OPTIONS:
            return UNCLEAR
        return TCP_IN_IPV6
    if kind == _ETH_P_8021Q or kind == _ETH_P_8021AD:
        return UNCLEAR
    if kind == _ETH_P_MPLS or kind == _ETH_P_PPPOE:
        return UNCLEAR
    return NOT_TCP


@hot
def headers_of_mergeable(frame_hva: int, frame_len: int, tcp: int) -> int:
    """Bytes of headers of a segment that GRO would look at; 0: it goes out as it is.

    Args:
        frame_hva, frame_len: as `find_tcp`.
        tcp: what that answered.

    TCP's checksum is not looked at here.
    """
    if tcp == TCP_IN_IPV4:
        if be16(frame_hva + _IP_LEN) != frame_len - _IP:
            return 0
        if be16(frame_hva + _IP_FRAG) & ~_IP_DF:
            return 0
        if fold(sum_of(frame_hva + _IP, 20)) != 0xFFFF or be16(frame_hva + _IP_CHECK) == 0xFFFF:
            return 0
    elif be16(frame_hva + _IPV6_LEN) != frame_len - TCP_IN_IPV6:
        return 0
    tcp_hva = frame_hva + tcp
    doff = load_u8(tcp_hva + _DOFF)
    headers = tcp + (doff >> 4) * 4
    if doff & 15 or doff < 0x50 or headers >= frame_len:
        return 0
    if load_u8(tcp_hva + _FLAGS) & ~(_TCP_PSH | _TCP_ECE) != _TCP_ACK:
        return 0
    return headers if be16(tcp_hva + _URGENT) == 0 else 0


@hot
def is_pushed(frame_hva: int, tcp: int) -> bool:
    """Whether the segment has PSH."""
    return load_u8(frame_hva + tcp + _FLAGS) & _TCP_PSH != 0


@hot
def sequence_of(frame_hva: int, tcp: int) -> int:
    """The segment's sequence number."""
    at = frame_hva + tcp + _SEQ
    return (be16(at) << 16) | be16(at + 2)


@hot
def flow_hash(frame_hva: int, tcp: int) -> int:
    """At least 16 bits of a hash of addresses and ports, not negative."""
    ports = load_i64_at(frame_hva, tcp) & _LOW_32
    if tcp == TCP_IN_IPV4:
        mixed = load_i64_at(frame_hva, _IP_ADDRESSES)
    else:
        mixed = load_i64_at(frame_hva, _IPV6_ADDRESSES)
        mixed ^= load_i64_at(frame_hva, _IPV6_ADDRESSES + 8) >> 7
        mixed ^= load_i64_at(frame_hva, _IPV6_ADDRESSES + 16) >> 3
        mixed ^= load_i64_at(frame_hva, _IPV6_ADDRESSES + 24)
    # factors of 24 bits: a product of 56 bits is the same in the interpreter
    addresses = (mixed ^ (mixed >> 32)) & _LOW_32
    return ((ports * 0x9E3779) ^ (addresses * 0x85EBCB)) >> 20


@hot
def is_same_flow(a: int, b: int, tcp: int) -> bool:
    """Whether two frames with TCP at *tcp*, the second perhaps elsewhere, are of one flow."""
    if (load_u8(a + _IP) ^ load_u8(b + _IP)) >> 4:
        return False
    differ = _differ(a, b, tcp) & _LOW_32
    if tcp == TCP_IN_IPV4:
        return (differ | _differ(a, b, _IP_ADDRESSES)) == 0
    for at in range(_IPV6_ADDRESSES, TCP_IN_IPV6, 8):
        differ |= _differ(a, b, at)
    return differ == 0


@hot
def goes_on(first: int, frame_hva: int, tcp: int, headers: int, n: int) -> bool:
    """Whether a frame's headers are those of the *n*th segment behind *first*, of the same flow.

    Length and sequence number are the caller's to compare.
    """
    differ = _differ(first, frame_hva, 0) | _differ(first, frame_hva, 8)
    if tcp == TCP_IN_IPV4:
        differ |= _differ(first, frame_hva, 16) & _NOT_LEN_AND_ID
        differ |= (be16(first + _IP_ID) + n - be16(frame_hva + _IP_ID)) & 0xFFFF
    else:
        differ |= _differ(first, frame_hva, 16) & _NOT_LEN
    differ |= _differ(first, frame_hva, tcp + _ACK) & _NOT_PSH  # and flags and window
    for at in range(tcp + _OPTIONS, headers, 4):
        differ |= _differ(first, frame_hva, at) & _LOW_32
    return differ == 0


@hot
def _pseudo_header(frame_hva: int, tcp: int, tcp_len: int) -> int:
    """The sum of TCP's pseudo header, as `sum_of`."""
    if tcp == TCP_IN_IPV4:
        total = sum_of(frame_hva + _IP_ADDRESSES, 8)
    else:
        total = sum_of(frame_hva + _IPV6_ADDRESSES, 32)
    return total + swap16(tcp_len) + swap16(_IPPROTO_TCP)


@hot
def checksum_is_right(
    frame_hva: int, frame_len: int, tcp: int, headers: int, payload_sum: int
) -> bool:
    """Whether TCP's checksum is the one that a sender computes.

    Args:
        headers: bytes of headers.
        payload_sum: of what is behind them, as `sum_of`.
    """
    total = _pseudo_header(frame_hva, tcp, frame_len - tcp) + payload_sum
    total += sum_of(frame_hva + tcp, headers - tcp)
    return fold(total) == 0xFFFF and be16(frame_hva + tcp + _CHECK) != 0xFFFF


@helper
def make_merged_headers(
    hva: int, first_hva: int, hdr_len: int, headers: int, payload: int, mss: int, push: int
) -> None:
    """Write the headers of a merged frame: a GSO frame whose checksum is left to the receiver.

    Args:
        hva: u8[COALESCE_ROOM], to write to.
        first_hva: virtio_net_hdr and headers of the first segment.
        hdr_len: bytes of virtio_net_hdr.
        headers: bytes of Ethernet, IP and TCP headers.
        payload: bytes of all segments' payload.
        mss: bytes of the first one's.
        push: the last one has PSH.
    """
    copy_bytes(hva, first_hva, hdr_len + headers)
    frame_hva = hva + hdr_len
    if load_u8(frame_hva + _IP) >> 4 == 4:
        tcp = TCP_IN_IPV4
        gso = VIRTIO_NET_HDR_GSO_TCPV4
        _put_be16(frame_hva + _IP_LEN, headers - _IP + payload)
        store_relaxed_u16(frame_hva + _IP_CHECK, 0)
        store_relaxed_u16(frame_hva + _IP_CHECK, ~fold(sum_of(frame_hva + _IP, 20)) & 0xFFFF)
    else:
        tcp = TCP_IN_IPV6
        gso = VIRTIO_NET_HDR_GSO_TCPV6
        _put_be16(frame_hva + _IPV6_LEN, headers - TCP_IN_IPV6 + payload)
    pseudo = fold(_pseudo_header(frame_hva, tcp, headers - tcp + payload))
    store_relaxed_u16(frame_hva + tcp + _CHECK, pseudo)
    if push:
        flags = load_u8(frame_hva + tcp + _FLAGS)
        store_u8(frame_hva + tcp + _FLAGS, flags | _TCP_PSH)
    store_u8(hva + VNET_HDR_FLAGS, VIRTIO_NET_HDR_F_NEEDS_CSUM)
    store_u8(hva + VNET_HDR_GSO_TYPE, gso)
    store_relaxed_u16(hva + VNET_HDR_HDR_LEN, headers)
    store_relaxed_u16(hva + VNET_HDR_GSO_SIZE, mss)
    store_relaxed_u16(hva + VNET_HDR_CSUM_START, tcp)
    store_relaxed_u16(hva + VNET_HDR_CSUM_OFFSET, _CHECK)
