"""What versions of Linux's vhost_net do differently: the one table of it.

A device behaves as the version it is told; "newest" is the specification's way, and the only one
that goes beyond Linux.
"""

from __future__ import annotations

from dataclasses import dataclass

from vhostnet.errors import UsageError
from vhostnet.uapi.vhost import VHOST_NET_F_VIRTIO_NET_HDR
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    mask,
)


@dataclass(frozen=True, slots=True)
class LinuxAbi:
    """One version.

    Attributes:
        name: what `linux_abi=` calls it.
        features: what a character device offers, bits 0 to 63.
        features_array: GET_ and SET_FEATURES_ARRAY exist (6.17).
        num_buffers_for_version_1: num_buffers is written for VERSION_1 without MRG_RXBUF,
            as the specification wants (about 6.14).
        fork_owner: GET_ and SET_FORK_FROM_OWNER exist (6.17, and 6.12's stable series).
        iotlb_goes_with_its_feature: features without ACCESS_PLATFORM take the IOTLB away; in
            6.1 it stays until RESET_OWNER.
        packed_rings: RING_PACKED may be offered, by a door that does; Linux's driver has none.
    """

    name: str
    features: int
    features_array: bool
    num_buffers_for_version_1: bool
    fork_owner: bool
    iotlb_goes_with_its_feature: bool
    packed_rings: bool

    def ring_features(self, features: int) -> int:
        """Of what a door can offer, what this version has: a mask of VIRTIO_F_* bits."""
        if not self.packed_rings:
            features &= ~mask(VIRTIO_F_RING_PACKED)
        if not self.features & mask(VIRTIO_F_IN_ORDER):
            features &= ~mask(VIRTIO_F_IN_ORDER)
        return features


_6_1 = mask(
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VHOST_F_LOG_ALL,
    VHOST_NET_F_VIRTIO_NET_HDR,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_ACCESS_PLATFORM,
)
_6_12 = _6_1 | mask(VIRTIO_F_RING_RESET)
_NEWEST = _6_12 | mask(VIRTIO_F_IN_ORDER)

NEWEST = "newest"

LINUX_ABIS: dict[str, LinuxAbi] = {
    abi.name: abi
    for abi in (
        LinuxAbi(
            "6.1",
            _6_1,
            features_array=False,
            num_buffers_for_version_1=False,
            fork_owner=False,
            iotlb_goes_with_its_feature=False,
            packed_rings=False,
        ),
        LinuxAbi(
            "6.12",
            _6_12,
            features_array=False,
            num_buffers_for_version_1=False,
            fork_owner=True,
            iotlb_goes_with_its_feature=True,
            packed_rings=False,
        ),
        LinuxAbi(
            NEWEST,
            _NEWEST,
            features_array=True,
            num_buffers_for_version_1=True,
            fork_owner=True,
            iotlb_goes_with_its_feature=True,
            packed_rings=True,
        ),
    )
}


def linux_abi(name: str) -> LinuxAbi:
    """The version of this name; UsageError."""
    if name not in LINUX_ABIS:
        raise UsageError(f"linux-abi {name}: there are {', '.join(LINUX_ABIS)}")
    return LINUX_ABIS[name]
