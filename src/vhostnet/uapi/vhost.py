"""uapi/linux/vhost.h and vhost_types.h: the ioctls of a vhost character device, their structs.

A `*_F_*` name is a bit number, as in the headers; its mask is `1 << F`.  The structs that
vhost-user took over unchanged (vring state, vring addr) are declared in `uapi/vhost_user.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from vhostnet.uapi.vhost_user import (
    IOTLB_MESSAGE_NAMES,
    NOTHING,
    VRING_ADDR,
    VRING_STATE,
    VringAddr,
    VringState,
)
from vhostnet.uapi.virtio import FEATURE_NAMES
from vhostnet.uapi.wire import (
    ADDRESS,
    I32,
    U8,
    U16,
    U32,
    U64,
    Bits,
    Form,
    Layout,
    SizeFrom,
    Values,
)

__all__ = ["VRING_ADDR", "VRING_STATE", "VringAddr", "VringState"]

# --- ioctls ------------------------------------------------------------------------------------
VHOST_GET_FEATURES: Final = 0x8008AF00
VHOST_SET_FEATURES: Final = 0x4008AF00
VHOST_SET_OWNER: Final = 0x0000AF01
VHOST_RESET_OWNER: Final = 0x0000AF02
#: The size in the number is that of the head; the argument goes on with the regions.
VHOST_SET_MEM_TABLE: Final = 0x4008AF03
VHOST_SET_LOG_BASE: Final = 0x4008AF04
VHOST_SET_LOG_FD: Final = 0x4004AF07
VHOST_NEW_WORKER: Final = 0x8004AF08
VHOST_FREE_WORKER: Final = 0x4004AF09
VHOST_SET_VRING_NUM: Final = 0x4008AF10
VHOST_SET_VRING_ADDR: Final = 0x4028AF11
VHOST_SET_VRING_BASE: Final = 0x4008AF12
VHOST_GET_VRING_BASE: Final = 0xC008AF12
VHOST_SET_VRING_ENDIAN: Final = 0x4008AF13
VHOST_GET_VRING_ENDIAN: Final = 0x4008AF14
VHOST_ATTACH_VRING_WORKER: Final = 0x4008AF15
VHOST_GET_VRING_WORKER: Final = 0xC008AF16
VHOST_SET_VRING_KICK: Final = 0x4008AF20
VHOST_SET_VRING_CALL: Final = 0x4008AF21
VHOST_SET_VRING_ERR: Final = 0x4008AF22
VHOST_SET_VRING_BUSYLOOP_TIMEOUT: Final = 0x4008AF23
#: Writes its argument back, although its number says that it only reads.
VHOST_GET_VRING_BUSYLOOP_TIMEOUT: Final = 0x4008AF24
VHOST_SET_BACKEND_FEATURES: Final = 0x4008AF25
VHOST_GET_BACKEND_FEATURES: Final = 0x8008AF26
VHOST_NET_SET_BACKEND: Final = 0x4008AF30
#: Since Linux 6.17.  The size in the numbers is that of the head.
VHOST_GET_FEATURES_ARRAY: Final = 0x8008AF83
VHOST_SET_FEATURES_ARRAY: Final = 0x4008AF83
VHOST_SET_FORK_FROM_OWNER: Final = 0x4001AF84
VHOST_GET_FORK_FROM_OWNER: Final = 0x8001AF85

# --- bits --------------------------------------------------------------------------------------
#: Virtio features that only vhost knows.
VHOST_F_LOG_ALL: Final = 26
VHOST_NET_F_VIRTIO_NET_HDR: Final = 27
#: Backend features.
VHOST_BACKEND_F_IOTLB_MSG_V2: Final = 1
#: Flags of vhost_vring_addr.
VHOST_VRING_F_LOG: Final = 0

# --- IOTLB messages ----------------------------------------------------------------------------
VHOST_IOTLB_MSG: Final = 1
VHOST_IOTLB_MSG_V2: Final = 2

VHOST_ACCESS_RO: Final = 1
VHOST_ACCESS_WO: Final = 2
VHOST_ACCESS_RW: Final = 3

VHOST_IOTLB_MISS: Final = 1
VHOST_IOTLB_UPDATE: Final = 2
VHOST_IOTLB_INVALIDATE: Final = 3
VHOST_IOTLB_ACCESS_FAIL: Final = 4
VHOST_IOTLB_BATCH_BEGIN: Final = 5
VHOST_IOTLB_BATCH_END: Final = 6

#: One bit of the dirty bitmap stands for so many bytes of guest memory.
VHOST_PAGE_SIZE: Final = 0x1000

IOCTL_NAMES: Final[dict[int, str]] = {
    number: name.removeprefix("VHOST_")
    for name, number in list(globals().items())
    if isinstance(number, int) and number >> 8 & 0xFF == 0xAF
}
"""ioctl number to short name: 0xAF01 is "SET_OWNER"."""


@dataclass(frozen=True, slots=True)
class Features:
    """A word of features: virtio's, and two of vhost's."""

    features: Annotated[
        int, "Q", Bits({**FEATURE_NAMES, VHOST_NET_F_VIRTIO_NET_HDR: "VIRTIO_NET_HDR"})
    ]


@dataclass(frozen=True, slots=True)
class BackendFeatures:
    """The word of VHOST_GET_ and VHOST_SET_BACKEND_FEATURES."""

    features: Annotated[int, "Q", Bits({VHOST_BACKEND_F_IOTLB_MSG_V2: "IOTLB_MSG_V2"})]


@dataclass(frozen=True, slots=True)
class LogBase:
    """Where the dirty bitmap lies in the owner's process."""

    log_base: ADDRESS


@dataclass(frozen=True, slots=True)
class LogFile:
    """The descriptor that is signalled for the dirty log, or -1."""

    fd: I32


@dataclass(frozen=True, slots=True)
class Switch:
    """A byte that is 0 or 1."""

    enabled: U8


@dataclass(frozen=True, slots=True)
class VringFile:
    """A descriptor for a ring: kick, call, err or backend.

    ::

        struct vhost_vring_file { unsigned int index; int fd; };    /* -1: none */
    """

    index: U32
    fd: I32


@dataclass(frozen=True, slots=True)
class MemoryHead:
    """What stands before the regions of VHOST_SET_MEM_TABLE.

    ::

        struct vhost_memory {
                __u32 nregions;
                __u32 padding;
                struct vhost_memory_region regions[];
        };
    """

    nregions: U32
    padding: U32


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One piece of the guest's memory, at an address of the owner's process.

    ::

        struct vhost_memory_region {
                __u64 guest_phys_addr;
                __u64 memory_size;      /* bytes */
                __u64 userspace_addr;
                __u64 flags_padding;    /* no flags are currently specified */
        };
    """

    guest_phys_addr: ADDRESS
    memory_size: Annotated[int, "Q", SizeFrom("guest_phys_addr")]
    userspace_addr: ADDRESS
    flags_padding: U64


@dataclass(frozen=True, slots=True)
class FeaturesHead:
    """What stands before the 64-bit words of VHOST_GET_ and VHOST_SET_FEATURES_ARRAY.

    ::

        struct vhost_features_array { __u64 count; __u64 features[]; };
    """

    count: U64


@dataclass(frozen=True, slots=True)
class IotlbMsg:
    """One translation that is missing, made or taken back.

    ::

        struct vhost_iotlb_msg {
                __u64 iova;
                __u64 size;
                __u64 uaddr;
                __u8 perm;      /* VHOST_ACCESS_* */
                __u8 type;      /* VHOST_IOTLB_* */
        };                      /* padded to 32 bytes */
    """

    iova: ADDRESS
    size: Annotated[int, "Q", SizeFrom("iova")]
    uaddr: ADDRESS
    perm: Annotated[int, "B", Bits({0: "RO", 1: "WO"})]
    type: Annotated[int, "B", Values(IOTLB_MESSAGE_NAMES)]
    padding_16: U16 = 0
    padding_32: U32 = 0


@dataclass(frozen=True, slots=True)
class Msg:
    """What is read from and written to the character device: 72 bytes, either version.

    ::

        struct vhost_msg_v2 {           /* struct vhost_msg has a hole in place of asid */
                __u32 type;             /* VHOST_IOTLB_MSG or VHOST_IOTLB_MSG_V2 */
                __u32 asid;
                union { struct vhost_iotlb_msg iotlb; __u8 padding[64]; };
        };
    """

    type: U32
    asid: U32
    iotlb: IotlbMsg
    rest_0: U64 = 0
    rest_1: U64 = 0
    rest_2: U64 = 0
    rest_3: U64 = 0


NUMBER_SIZE: Final = 8
VRING_FILE: Final = Layout(VringFile)
MEMORY_HEAD: Final = Layout(MemoryHead)
MEMORY_REGION: Final = Layout(MemoryRegion)
FEATURES_HEAD: Final = Layout(FeaturesHead)
IOTLB_MSG: Final = Layout(IotlbMsg)
MSG: Final = Layout(Msg)
FEATURES: Final = Layout(Features)
BACKEND_FEATURES: Final = Layout(BackendFeatures)

IOCTL_FORMS: Final[dict[int, Form]] = {
    VHOST_GET_FEATURES: Form(FEATURES),
    VHOST_SET_FEATURES: Form(FEATURES),
    VHOST_SET_OWNER: Form(NOTHING),
    VHOST_RESET_OWNER: Form(NOTHING),
    VHOST_SET_MEM_TABLE: Form(MEMORY_HEAD, MEMORY_REGION),
    VHOST_SET_LOG_BASE: Form(Layout(LogBase)),
    VHOST_SET_LOG_FD: Form(Layout(LogFile)),
    VHOST_SET_VRING_NUM: Form(VRING_STATE),
    VHOST_SET_VRING_ADDR: Form(VRING_ADDR),
    VHOST_SET_VRING_BASE: Form(VRING_STATE),
    VHOST_GET_VRING_BASE: Form(VRING_STATE),
    VHOST_SET_VRING_KICK: Form(VRING_FILE),
    VHOST_SET_VRING_CALL: Form(VRING_FILE),
    VHOST_SET_VRING_ERR: Form(VRING_FILE),
    VHOST_SET_VRING_BUSYLOOP_TIMEOUT: Form(VRING_STATE),
    VHOST_GET_VRING_BUSYLOOP_TIMEOUT: Form(VRING_STATE),
    VHOST_SET_BACKEND_FEATURES: Form(BACKEND_FEATURES),
    VHOST_GET_BACKEND_FEATURES: Form(BACKEND_FEATURES),
    VHOST_NET_SET_BACKEND: Form(VRING_FILE),
    VHOST_GET_FEATURES_ARRAY: Form(FEATURES_HEAD, FEATURES),
    VHOST_SET_FEATURES_ARRAY: Form(FEATURES_HEAD, FEATURES),
    VHOST_SET_FORK_FROM_OWNER: Form(Layout(Switch)),
    VHOST_GET_FORK_FROM_OWNER: Form(Layout(Switch)),
}
"""What the argument of each ioctl that is answered points at, whichever way it is copied."""
