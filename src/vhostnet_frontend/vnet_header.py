"""struct virtio_net_hdr (VIRTIO 1.2 section 5.1.6) as bytes; stdlib only."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vhostnet.uapi.virtio import (
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VNET_HDR_LEN,
    VNET_HDR_MRG_LEN,
)

_HEADER = struct.Struct("<BBHHHHH")


def header_size(features: int) -> int:
    """Bytes of header in front of every frame, for these acknowledged features."""
    long = features >> VIRTIO_F_VERSION_1 & 1 or features >> VIRTIO_NET_F_MRG_RXBUF & 1
    return VNET_HDR_MRG_LEN if long else VNET_HDR_LEN


@dataclass(frozen=True, slots=True)
class VnetHeader:
    """The header's fields; all zero is a plain frame."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, size: int = VNET_HDR_MRG_LEN) -> bytes:
        """The first *size* bytes; zeros beyond the twelfth."""
        data = _HEADER.pack(
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        )
        return data[:size].ljust(size, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> VnetHeader:
        """From 10 bytes (num_buffers is 0 then) or more."""
        return cls(*_HEADER.unpack(data[: _HEADER.size].ljust(_HEADER.size, b"\0")))
