"""uapi/linux/fuse.h: what a character device in user space (CUSE) needs of it.

The structs are those of FUSE 7.31; up to 7.45 nothing of them has changed its place (7.38 gave
a name to two bytes of padding in the header, 7.40 to four in the reply to OPEN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vhostnet.uapi.wire import I32, U16, U32, U64, Layout

FUSE_KERNEL_VERSION: Final = 7
#: The version whose structs these are; the kernel takes an older one than its own.
FUSE_KERNEL_MINOR_VERSION: Final = 31
#: read(2) of the device with less room than this is refused.
FUSE_MIN_READ_BUFFER: Final = 8192

# --- opcodes that a character device meets ------------------------------------------------------
FUSE_OPEN: Final = 14
FUSE_READ: Final = 15
FUSE_WRITE: Final = 16
FUSE_RELEASE: Final = 18
FUSE_FSYNC: Final = 20
FUSE_FLUSH: Final = 25
FUSE_INTERRUPT: Final = 36
FUSE_DESTROY: Final = 38
FUSE_IOCTL: Final = 39
FUSE_POLL: Final = 40
CUSE_INIT: Final = 4096

OPCODE_NAMES: Final[dict[int, str]] = {
    FUSE_OPEN: "OPEN",
    FUSE_READ: "READ",
    FUSE_WRITE: "WRITE",
    FUSE_RELEASE: "RELEASE",
    FUSE_FSYNC: "FSYNC",
    FUSE_FLUSH: "FLUSH",
    FUSE_INTERRUPT: "INTERRUPT",
    FUSE_DESTROY: "DESTROY",
    FUSE_IOCTL: "IOCTL",
    FUSE_POLL: "POLL",
    CUSE_INIT: "CUSE_INIT",
}
"""Opcode to short name, for people."""

#: Code of an unrequested message of ours: in the place of the error, with unique 0.
FUSE_NOTIFY_POLL: Final = 1

# --- flags ---------------------------------------------------------------------------------------
CUSE_UNRESTRICTED_IOCTL: Final = 1 << 0
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_NONSEEKABLE: Final = 1 << 2
FUSE_IOCTL_COMPAT: Final = 1 << 0
FUSE_IOCTL_UNRESTRICTED: Final = 1 << 1
FUSE_IOCTL_RETRY: Final = 1 << 2
FUSE_POLL_SCHEDULE_NOTIFY: Final = 1 << 0

#: asm-generic/fcntl.h and poll.h, of which requests and replies carry bits.
O_NONBLOCK: Final = 0o4000
POLLIN: Final = 0x0001
POLLRDNORM: Final = 0x0040

#: In and out together, of one RETRY.
FUSE_IOCTL_MAX_IOV: Final = 256
#: Bytes of one ioctl's data, in and out each: the kernel's default of 32 pages.
FUSE_IOCTL_MAX_DATA: Final = 32 * 4096
#: "DEVNAME=…" and what else describes the device, with the zeros behind each.
CUSE_INIT_INFO_MAX: Final = 4096
#: Reserved words behind `CuseInitOut`, all zero.
CUSE_INIT_OUT_SPARE: Final = 10 * 4
#: Errors of replies are -1 to -511; the kernel refuses others.
MAX_ERRNO: Final = 511


@dataclass(frozen=True, slots=True)
class InHeader:
    """Before every request.

    ::

        struct fuse_in_header {
                uint32_t len;           /* of the whole message */
                uint32_t opcode;
                uint64_t unique;
                uint64_t nodeid;
                uint32_t uid;
                uint32_t gid;
                uint32_t pid;           /* of the *thread*, in our pid namespace; 0: not there */
                uint16_t total_extlen;  /* extensions at the end, in units of 8 bytes */
                uint16_t padding;
        };
    """

    len: U32
    opcode: U32
    unique: U64
    nodeid: U64
    uid: U32
    gid: U32
    pid: U32
    total_extlen: U16
    padding: U16


@dataclass(frozen=True, slots=True)
class OutHeader:
    """Before every reply.

    ::

        struct fuse_out_header {
                uint32_t len;
                int32_t  error;         /* 0, -errno, or the code of a notification */
                uint64_t unique;
        };
    """

    len: U32
    error: I32
    unique: U64


@dataclass(frozen=True, slots=True)
class CuseInitIn:
    """The first request: the kernel's version.

    ::

        struct cuse_init_in { uint32_t major, minor, unused, flags; };
    """

    major: U32
    minor: U32
    unused: U32
    flags: U32


@dataclass(frozen=True, slots=True)
class CuseInitOut:
    """Its reply; `CUSE_INIT_OUT_SPARE` zeros and the description follow.

    ::

        struct cuse_init_out {
                uint32_t major, minor, unused;
                uint32_t flags;                 /* CUSE_UNRESTRICTED_IOCTL */
                uint32_t max_read, max_write;
                uint32_t dev_major, dev_minor;  /* 0: the kernel chooses */
                uint32_t spare[10];
        };
    """

    major: U32
    minor: U32
    unused: U32
    flags: U32
    max_read: U32
    max_write: U32
    dev_major: U32
    dev_minor: U32


@dataclass(frozen=True, slots=True)
class OpenIn:
    """::

    struct fuse_open_in { uint32_t flags; uint32_t open_flags; };
    """

    flags: U32
    open_flags: U32


@dataclass(frozen=True, slots=True)
class OpenOut:
    """::

    struct fuse_open_out { uint64_t fh; uint32_t open_flags; int32_t backing_id; };
    """

    fh: U64
    open_flags: U32
    backing_id: I32 = 0


@dataclass(frozen=True, slots=True)
class ReleaseIn:
    """The last reference to an open file is gone.

    ::

        struct fuse_release_in {
                uint64_t fh;
                uint32_t flags;
                uint32_t release_flags;
                uint64_t lock_owner;
        };
    """

    fh: U64
    flags: U32
    release_flags: U32
    lock_owner: U64


@dataclass(frozen=True, slots=True)
class ReadIn:
    """::

    struct fuse_read_in {
            uint64_t fh;
            uint64_t offset;
            uint32_t size;
            uint32_t read_flags;
            uint64_t lock_owner;
            uint32_t flags;         /* the file's, O_NONBLOCK among them */
            uint32_t padding;
    };
    """

    fh: U64
    offset: U64
    size: U32
    read_flags: U32
    lock_owner: U64
    flags: U32
    padding: U32 = 0


@dataclass(frozen=True, slots=True)
class WriteIn:
    """*size* bytes follow.

    ::

        struct fuse_write_in {
                uint64_t fh;
                uint64_t offset;
                uint32_t size;
                uint32_t write_flags;
                uint64_t lock_owner;
                uint32_t flags;
                uint32_t padding;
        };
    """

    fh: U64
    offset: U64
    size: U32
    write_flags: U32
    lock_owner: U64
    flags: U32
    padding: U32 = 0


@dataclass(frozen=True, slots=True)
class WriteOut:
    """::

    struct fuse_write_out { uint32_t size; uint32_t padding; };
    """

    size: U32
    padding: U32 = 0


@dataclass(frozen=True, slots=True)
class IoctlIn:
    """*in_size* bytes follow: what the iovecs of the last RETRY named.

    ::

        struct fuse_ioctl_in {
                uint64_t fh;
                uint32_t flags;
                uint32_t cmd;
                uint64_t arg;
                uint32_t in_size;
                uint32_t out_size;      /* what the reply may bring */
        };
    """

    fh: U64
    flags: U32
    cmd: U32
    arg: U64
    in_size: U32
    out_size: U32


@dataclass(frozen=True, slots=True)
class IoctlIovec:
    """A piece of the caller's memory.

    ::

        struct fuse_ioctl_iovec { uint64_t base; uint64_t len; };
    """

    base: U64
    len: U64


@dataclass(frozen=True, slots=True)
class IoctlOut:
    """With FUSE_IOCTL_RETRY the iovecs follow, in before out; else the data.

    ::

        struct fuse_ioctl_out {
                int32_t  result;
                uint32_t flags;
                uint32_t in_iovs;
                uint32_t out_iovs;
        };
    """

    result: I32
    flags: U32
    in_iovs: U32
    out_iovs: U32


@dataclass(frozen=True, slots=True)
class PollIn:
    """::

    struct fuse_poll_in {
            uint64_t fh;
            uint64_t kh;            /* for FUSE_NOTIFY_POLL */
            uint32_t flags;         /* FUSE_POLL_SCHEDULE_NOTIFY */
            uint32_t events;
    };
    """

    fh: U64
    kh: U64
    flags: U32
    events: U32


@dataclass(frozen=True, slots=True)
class PollOut:
    """::

    struct fuse_poll_out { uint32_t revents; uint32_t padding; };
    """

    revents: U32
    padding: U32 = 0


@dataclass(frozen=True, slots=True)
class NotifyPollWakeupOut:
    """::

    struct fuse_notify_poll_wakeup_out { uint64_t kh; };
    """

    kh: U64


@dataclass(frozen=True, slots=True)
class InterruptIn:
    """A signal has come for the caller of request *unique*.

    ::

        struct fuse_interrupt_in { uint64_t unique; };
    """

    unique: U64


IN_HEADER: Final = Layout(InHeader)
OUT_HEADER: Final = Layout(OutHeader)
CUSE_INIT_IN: Final = Layout(CuseInitIn)
CUSE_INIT_OUT: Final = Layout(CuseInitOut)
OPEN_IN: Final = Layout(OpenIn)
OPEN_OUT: Final = Layout(OpenOut)
RELEASE_IN: Final = Layout(ReleaseIn)
READ_IN: Final = Layout(ReadIn)
WRITE_IN: Final = Layout(WriteIn)
WRITE_OUT: Final = Layout(WriteOut)
IOCTL_IN: Final = Layout(IoctlIn)
IOCTL_IOVEC: Final = Layout(IoctlIovec)
IOCTL_OUT: Final = Layout(IoctlOut)
POLL_IN: Final = Layout(PollIn)
POLL_OUT: Final = Layout(PollOut)
NOTIFY_POLL_WAKEUP_OUT: Final = Layout(NotifyPollWakeupOut)
INTERRUPT_IN: Final = Layout(InterruptIn)
