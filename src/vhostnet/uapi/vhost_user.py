"""vhost-user as its protocol document says it: numbers and structs, nothing else.

Source: QEMU docs/interop/vhost-user.rst ("Message Specification", "Protocol features",
"Front-end message types").  Constants keep the spelling used there; a `*_F_*` is a bit number,
its mask is `1 << F`.  Only the structs of messages that this back-end answers are declared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from vhostnet.uapi.virtio import FEATURE_NAMES, STATUS_NAMES
from vhostnet.uapi.wire import ADDRESS, U16, U32, U64, Bits, Layout, SizeFrom, Values

# --- Requests of the front-end, in the order of the document -----------------------------------
VHOST_USER_GET_FEATURES: Final = 1
VHOST_USER_SET_FEATURES: Final = 2
VHOST_USER_SET_OWNER: Final = 3
VHOST_USER_RESET_OWNER: Final = 4
VHOST_USER_SET_MEM_TABLE: Final = 5
VHOST_USER_SET_LOG_BASE: Final = 6
VHOST_USER_SET_LOG_FD: Final = 7
VHOST_USER_SET_VRING_NUM: Final = 8
VHOST_USER_SET_VRING_ADDR: Final = 9
VHOST_USER_SET_VRING_BASE: Final = 10
VHOST_USER_GET_VRING_BASE: Final = 11
VHOST_USER_SET_VRING_KICK: Final = 12
VHOST_USER_SET_VRING_CALL: Final = 13
VHOST_USER_SET_VRING_ERR: Final = 14
VHOST_USER_GET_PROTOCOL_FEATURES: Final = 15
VHOST_USER_SET_PROTOCOL_FEATURES: Final = 16
VHOST_USER_GET_QUEUE_NUM: Final = 17
VHOST_USER_SET_VRING_ENABLE: Final = 18
VHOST_USER_SEND_RARP: Final = 19
VHOST_USER_NET_SET_MTU: Final = 20
VHOST_USER_SET_BACKEND_REQ_FD: Final = 21
VHOST_USER_IOTLB_MSG: Final = 22
VHOST_USER_SET_VRING_ENDIAN: Final = 23
VHOST_USER_GET_CONFIG: Final = 24
VHOST_USER_SET_CONFIG: Final = 25
VHOST_USER_CREATE_CRYPTO_SESSION: Final = 26
VHOST_USER_CLOSE_CRYPTO_SESSION: Final = 27
VHOST_USER_POSTCOPY_ADVISE: Final = 28
VHOST_USER_POSTCOPY_LISTEN: Final = 29
VHOST_USER_POSTCOPY_END: Final = 30
VHOST_USER_GET_INFLIGHT_FD: Final = 31
VHOST_USER_SET_INFLIGHT_FD: Final = 32
VHOST_USER_GPU_SET_SOCKET: Final = 33
VHOST_USER_RESET_DEVICE: Final = 34
VHOST_USER_VRING_KICK: Final = 35
VHOST_USER_GET_MAX_MEM_SLOTS: Final = 36
VHOST_USER_ADD_MEM_REG: Final = 37
VHOST_USER_REM_MEM_REG: Final = 38
VHOST_USER_SET_STATUS: Final = 39
VHOST_USER_GET_STATUS: Final = 40
VHOST_USER_GET_SHARED_OBJECT: Final = 41
VHOST_USER_SET_DEVICE_STATE_FD: Final = 42
VHOST_USER_CHECK_DEVICE_STATE: Final = 43

# --- Header flags ------------------------------------------------------------------------------
VHOST_USER_VERSION_MASK: Final = 0x3
VHOST_USER_VERSION: Final = 0x1
VHOST_USER_REPLY_MASK: Final = 0x1 << 2
VHOST_USER_NEED_REPLY_MASK: Final = 0x1 << 3

# --- Virtio feature bit that only vhost-user knows ---------------------------------------------
VHOST_USER_F_PROTOCOL_FEATURES: Final = 30

# --- Protocol feature bits ---------------------------------------------------------------------
VHOST_USER_PROTOCOL_F_MQ: Final = 0
VHOST_USER_PROTOCOL_F_LOG_SHMFD: Final = 1
VHOST_USER_PROTOCOL_F_RARP: Final = 2
VHOST_USER_PROTOCOL_F_REPLY_ACK: Final = 3
VHOST_USER_PROTOCOL_F_MTU: Final = 4
VHOST_USER_PROTOCOL_F_BACKEND_REQ: Final = 5
VHOST_USER_PROTOCOL_F_CROSS_ENDIAN: Final = 6
VHOST_USER_PROTOCOL_F_CRYPTO_SESSION: Final = 7
VHOST_USER_PROTOCOL_F_PAGEFAULT: Final = 8
VHOST_USER_PROTOCOL_F_CONFIG: Final = 9
VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD: Final = 10
VHOST_USER_PROTOCOL_F_HOST_NOTIFIER: Final = 11
VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD: Final = 12
VHOST_USER_PROTOCOL_F_RESET_DEVICE: Final = 13
VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS: Final = 14
VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS: Final = 15
VHOST_USER_PROTOCOL_F_STATUS: Final = 16
VHOST_USER_PROTOCOL_F_XEN_MMAP: Final = 17
VHOST_USER_PROTOCOL_F_SHARED_OBJECT: Final = 18
VHOST_USER_PROTOCOL_F_DEVICE_STATE: Final = 19

# --- The u64 of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR --------------------------------
VHOST_USER_VRING_IDX_MASK: Final = 0xFF
VHOST_USER_VRING_NOFD_MASK: Final = 0x1 << 8

_REQUEST_PREFIX = "VHOST_USER_"
_FEATURE_PREFIX = "VHOST_USER_PROTOCOL_F_"
_NOT_REQUESTS = ("VHOST_USER_PROTOCOL_F_", "VHOST_USER_F_", "VHOST_USER_VERSION")

PROTOCOL_FEATURE_NAMES: Final[dict[int, str]] = {
    value: name.removeprefix(_FEATURE_PREFIX)
    for name, value in list(globals().items())
    if name.startswith(_FEATURE_PREFIX)
}
"""Bit number to short name: 3 is "REPLY_ACK"."""

REQUEST_NAMES: Final[dict[int, str]] = {
    value: name.removeprefix(_REQUEST_PREFIX)
    for name, value in list(globals().items())
    if name.startswith(_REQUEST_PREFIX)
    and not name.startswith(_NOT_REQUESTS)
    and not name.endswith("_MASK")
}
"""Request number to short name: 5 is "SET_MEM_TABLE"."""


@dataclass(frozen=True, slots=True)
class Header:
    """Before every message.

    ::

        struct { u32 request; u32 flags; u32 size; };   /* size: bytes of payload */
    """

    request: U32
    flags: U32
    size: U32


@dataclass(frozen=True, slots=True)
class Nothing:
    """The payload of a message that has none."""


@dataclass(frozen=True, slots=True)
class Number:
    """A single number.

    ::

        u64 u64;
    """

    u64: U64


@dataclass(frozen=True, slots=True)
class Features:
    """The number of GET_FEATURES and SET_FEATURES: virtio's bits, and two of vhost's."""

    u64: Annotated[
        int, "Q", Bits({**FEATURE_NAMES, VHOST_USER_F_PROTOCOL_FEATURES: "PROTOCOL_FEATURES"})
    ]


@dataclass(frozen=True, slots=True)
class ProtocolFeatures:
    """The number of GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES."""

    u64: Annotated[int, "Q", Bits(PROTOCOL_FEATURE_NAMES)]


@dataclass(frozen=True, slots=True)
class Status:
    """The number of GET_STATUS and SET_STATUS: virtio's device status, a byte."""

    u64: Annotated[int, "Q", Bits(STATUS_NAMES)]


@dataclass(frozen=True, slots=True)
class VringFile:
    """The number of SET_VRING_KICK, _CALL and _ERR: a ring's index, and bit 8: no descriptor."""

    u64: Annotated[int, "Q", Bits({8: "NOFD"}, VHOST_USER_VRING_IDX_MASK)]


@dataclass(frozen=True, slots=True)
class VringState:
    """The document's "Vring state description".

    ::

        struct vhost_vring_state { unsigned int index; unsigned int num; };
    """

    index: U32
    num: U32


@dataclass(frozen=True, slots=True)
class VringAddr:
    """Where a ring's parts are; ring addresses are the front-end's virtual addresses.

    ::

        struct vhost_vring_addr {
                unsigned int index;
                unsigned int flags;         /* bit 0: log writes to the used ring */
                __u64 desc_user_addr;
                __u64 used_user_addr;
                __u64 avail_user_addr;
                __u64 log_guest_addr;       /* guest physical */
        };
    """

    index: U32
    flags: U32
    desc_user_addr: ADDRESS
    used_user_addr: ADDRESS
    avail_user_addr: ADDRESS
    log_guest_addr: ADDRESS


@dataclass(frozen=True, slots=True)
class Log:
    """Where the dirty bitmap lies in the file that comes along.

    ::

        typedef struct VhostUserLog {
            uint64_t mmap_size;
            uint64_t mmap_offset;
        } VhostUserLog;
    """

    mmap_size: ADDRESS
    mmap_offset: ADDRESS


LOG: Final = Layout(Log)


VHOST_IOTLB_MISS: Final = 1
VHOST_IOTLB_UPDATE: Final = 2
VHOST_IOTLB_INVALIDATE: Final = 3
IOTLB_MESSAGE_NAMES: Final = {1: "MISS", 2: "UPDATE", 3: "INVALIDATE", 4: "ACCESS_FAIL"}


@dataclass(frozen=True, slots=True)
class Iotlb:
    """A message about the IOTLB, either way.

    ::

        struct vhost_iotlb_msg {
            uint64_t iova;
            uint64_t size;
            uint64_t uaddr;
            uint8_t perm;    /* VHOST_ACCESS_RO 1, _WO 2, _RW 3 */
            uint8_t type;    /* VHOST_IOTLB_MISS 1, _UPDATE 2, _INVALIDATE 3, _ACCESS_FAIL 4 */
        };                   /* and 6 bytes of padding */
    """

    iova: ADDRESS
    size: Annotated[int, "Q", SizeFrom("iova")]
    uaddr: ADDRESS
    perm: Annotated[int, "B", Bits({0: "RO", 1: "WO"})]
    type: Annotated[int, "B", Values(IOTLB_MESSAGE_NAMES)]
    padding1: U16
    padding2: U32


IOTLB: Final = Layout(Iotlb)

# Requests of our own, on the back-end channel.
VHOST_USER_BACKEND_IOTLB_MSG: Final = 1


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One piece of the guest's memory, shared by a file descriptor.

    ::

        typedef struct VhostUserMemoryRegion {
            uint64_t guest_phys_addr;
            uint64_t memory_size;           /* bytes */
            uint64_t userspace_addr;        /* the front-end's virtual address */
            uint64_t mmap_offset;           /* bytes from the start of the descriptor's file */
        } VhostUserMemoryRegion;
    """

    guest_phys_addr: ADDRESS
    memory_size: Annotated[int, "Q", SizeFrom("guest_phys_addr")]
    userspace_addr: ADDRESS
    mmap_offset: ADDRESS

    @property
    def key(self) -> tuple[int, int, int]:
        """What identifies a region in REM_MEM_REG: guest address, user address, size."""
        return self.guest_phys_addr, self.userspace_addr, self.memory_size


@dataclass(frozen=True, slots=True)
class MemoryTableHead:
    """What stands before the regions of SET_MEM_TABLE.

    ::

        typedef struct VhostUserMemory {
            uint32_t nregions;
            uint32_t padding;
            VhostUserMemoryRegion regions[nregions];
        } VhostUserMemory;
    """

    nregions: U32
    padding: U32


@dataclass(frozen=True, slots=True)
class SingleRegion:
    """The payload of ADD_MEM_REG and REM_MEM_REG.

    ::

        typedef struct VhostUserMemRegMsg {
            uint64_t padding;
            VhostUserMemoryRegion region;
        } VhostUserMemRegMsg;
    """

    padding: U64
    region: MemoryRegion


HEADER: Final = Layout(Header)
NOTHING: Final = Layout(Nothing)
NUMBER: Final = Layout(Number)
FEATURES: Final = Layout(Features)
PROTOCOL_FEATURES: Final = Layout(ProtocolFeatures)
STATUS: Final = Layout(Status)
VRING_FILE: Final = Layout(VringFile)
VRING_STATE: Final = Layout(VringState)
VRING_ADDR: Final = Layout(VringAddr)
MEMORY_REGION: Final = Layout(MemoryRegion)
MEMORY_TABLE_HEAD: Final = Layout(MemoryTableHead)
SINGLE_REGION: Final = Layout(SingleRegion)
