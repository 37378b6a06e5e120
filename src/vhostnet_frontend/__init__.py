"""The driver half of virtio-net: a Python program as the guest, against any vhost back-end.

    guest_memory          memory that is shared with a back-end, with guards and canaries
    transport             the verbs of a vhost device, the same for all transports
    vhost_user_transport  ... over a vhost-user socket
    ioctl_transport       ... over a character device such as /dev/vhost-net
    in_process_transport  ... on an object in this process
    split_ring            the split ring's driver side, honest or not
    packed_ring           the packed ring's
    netdev                `NetDriver`: a whole network driver
    scenarios             malformed rings, each with the rule it breaks
    tap                   open a TAP for a kernel back-end
    fast_ring             compiled: millions of frames a second

Importing this package imports neither numba nor numpy, so that it also runs where there is
nothing but python3; the names of `fast_ring` are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .guest_memory import DirtyLog, GuestMemory, Region, RegionSpec
from .in_process_transport import Conversions, InProcessTransport
from .ioctl_transport import IoctlTransport
from .netdev import DEFAULT_FEATURES, NetDriver, Packet
from .packed_ring import PackedRing
from .ring import Buffer, DriverRing, RingFull, Used
from .split_ring import SplitRing
from .tap import open_tap
from .transport import NoSuchVerb, Transport, VerbError
from .vhost_user_transport import VhostUserTransport
from .vnet_header import VnetHeader

if TYPE_CHECKING:
    from .fast_ring import Counts, FastReceiver, FastSender

__all__ = [
    "DEFAULT_FEATURES",
    "Buffer",
    "Conversions",
    "Counts",
    "DirtyLog",
    "DriverRing",
    "FastReceiver",
    "FastSender",
    "GuestMemory",
    "InProcessTransport",
    "IoctlTransport",
    "NetDriver",
    "NoSuchVerb",
    "PackedRing",
    "Packet",
    "Region",
    "RegionSpec",
    "RingFull",
    "SplitRing",
    "Transport",
    "Used",
    "VerbError",
    "VhostUserTransport",
    "VnetHeader",
    "open_tap",
]

_COMPILED = ("Counts", "FastReceiver", "FastSender")


def __getattr__(name: str) -> Any:
    if name in _COMPILED:
        from . import fast_ring

        return getattr(fast_ring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
