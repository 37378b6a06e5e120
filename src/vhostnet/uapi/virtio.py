"""VIRTIO 1.2: feature bits, ring layout constants and the network header.

A `*_F_*` name is a bit *number*, as in the headers; its mask is `1 << F`.
"""

from __future__ import annotations

# Section 6, reserved feature bits, and the two that only legacy interfaces have.
VIRTIO_F_NOTIFY_ON_EMPTY = 24
VIRTIO_F_ANY_LAYOUT = 27
VIRTIO_RING_F_INDIRECT_DESC = 28
VIRTIO_RING_F_EVENT_IDX = 29
VIRTIO_F_VERSION_1 = 32
VIRTIO_F_ACCESS_PLATFORM = 33
VIRTIO_F_RING_PACKED = 34
VIRTIO_F_ACCESS_PLATFORM = 33
VIRTIO_F_IN_ORDER = 35
VIRTIO_F_RING_RESET = 40

# Linux uapi/linux/vhost.h: between VMM and device only, never seen by a guest.
VHOST_F_LOG_ALL = 26

# Section 5.1.3, network device feature bits.
VIRTIO_NET_F_CSUM = 0
VIRTIO_NET_F_GUEST_CSUM = 1
VIRTIO_NET_F_MTU = 3
VIRTIO_NET_F_MAC = 5
VIRTIO_NET_F_GSO = 6
VIRTIO_NET_F_GUEST_TSO4 = 7
VIRTIO_NET_F_GUEST_TSO6 = 8
VIRTIO_NET_F_GUEST_ECN = 9
VIRTIO_NET_F_GUEST_UFO = 10
VIRTIO_NET_F_HOST_TSO4 = 11
VIRTIO_NET_F_HOST_TSO6 = 12
VIRTIO_NET_F_HOST_ECN = 13
VIRTIO_NET_F_HOST_UFO = 14
VIRTIO_NET_F_MRG_RXBUF = 15
VIRTIO_NET_F_STATUS = 16
VIRTIO_NET_F_CTRL_VQ = 17
VIRTIO_NET_F_CTRL_RX = 18
VIRTIO_NET_F_GUEST_ANNOUNCE = 21
VIRTIO_NET_F_MQ = 22
VIRTIO_NET_F_GUEST_USO4 = 54
VIRTIO_NET_F_GUEST_USO6 = 55
VIRTIO_NET_F_HOST_USO = 56

FEATURE_NAMES: dict[int, str] = {
    number: name.split("_F_", 1)[1]
    for name, number in sorted(globals().items())
    if "_F_" in name and isinstance(number, int)
}

# Section 2.1, the device status field: bit numbers (Linux's VIRTIO_CONFIG_S_*).
STATUS_NAMES: dict[int, str] = {
    0: "ACKNOWLEDGE",
    1: "DRIVER",
    2: "DRIVER_OK",
    3: "FEATURES_OK",
    6: "DEVICE_NEEDS_RESET",
    7: "FAILED",
}

# struct virtq_desc, section 2.7.5: le64 addr, le32 len, le16 flags, le16 next.
VRING_DESC_SIZE = 16
VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2
VRING_DESC_F_INDIRECT = 4

# struct virtq_avail, section 2.7.6: le16 flags, le16 idx, le16 ring[num], le16 used_event.
VRING_AVAIL_FLAGS = 0
VRING_AVAIL_IDX = 2
VRING_AVAIL_RING = 4
VRING_AVAIL_F_NO_INTERRUPT = 1

# struct virtq_used, section 2.7.8: le16 flags, le16 idx, {le32 id, le32 len} ring[num],
# le16 avail_event.
VRING_USED_FLAGS = 0
VRING_USED_IDX = 2
VRING_USED_RING = 4
VRING_USED_ELEM_SIZE = 8
VRING_USED_F_NO_NOTIFY = 1

#: Section 2.7: a split ring has at most this many entries.
VRING_NUM_MAX = 32768

# struct pvirtq_desc, section 2.8.13: le64 addr, le32 len, le16 id, le16 flags.  Bit numbers.
VRING_PACKED_DESC_F_AVAIL = 7
VRING_PACKED_DESC_F_USED = 15
# struct pvirtq_event_suppress, section 2.8.14: le16 off and wrap counter, le16 flags.
VRING_PACKED_EVENT_SIZE = 4
VRING_PACKED_EVENT_F_WRAP_CTR = 15
VRING_PACKED_EVENT_FLAG_ENABLE = 0
VRING_PACKED_EVENT_FLAG_DISABLE = 1
VRING_PACKED_EVENT_FLAG_DESC = 2

# struct virtio_net_hdr, section 5.1.6: u8 flags, u8 gso_type, le16 hdr_len, le16 gso_size,
# le16 csum_start, le16 csum_offset, le16 num_buffers (the last only in the 12-byte form).
VNET_HDR_FLAGS = 0
VNET_HDR_GSO_TYPE = 1
VNET_HDR_HDR_LEN = 2
VNET_HDR_GSO_SIZE = 4
VNET_HDR_CSUM_START = 6
VNET_HDR_CSUM_OFFSET = 8
VNET_HDR_NUM_BUFFERS = 10
VNET_HDR_LEN = 10
VNET_HDR_MRG_LEN = 12

VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
VIRTIO_NET_HDR_F_DATA_VALID = 2
VIRTIO_NET_HDR_GSO_NONE = 0
VIRTIO_NET_HDR_GSO_TCPV4 = 1
VIRTIO_NET_HDR_GSO_TCPV6 = 4
VIRTIO_NET_HDR_GSO_UDP_L4 = 5
#: A bit beside the type: the packet has ECN's CWR flag set.
VIRTIO_NET_HDR_GSO_ECN = 0x80


def mask(*bits: int) -> int:
    """The feature word with exactly these bit numbers set."""
    word = 0
    for bit in bits:
        word |= 1 << bit
    return word


def feature_names(features: int) -> list[str]:
    """Names of the set bits, for log lines; unknown bits as `bitN`."""
    return [
        FEATURE_NAMES.get(bit, f"bit{bit}")
        for bit in range(features.bit_length())
        if features >> bit & 1
    ]
