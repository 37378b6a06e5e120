"""Bytes of /dev/cuse to requests, replies to bytes.  Sans-IO.

One read(2) of the device brings one whole request, one write(2) takes one whole reply, so
there is no stream to cut.  The other end is the kernel; still, whatever bytes come, they are a
`Request` or a PeerError, because the next kernel's header may be longer.

Source: Linux include/uapi/linux/fuse.h, fs/fuse/dev.c, fs/fuse/cuse.c.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Sequence
from dataclasses import dataclass

from vhostnet.errors import PeerError
from vhostnet.uapi import fuse
from vhostnet.uapi.fuse import (
    CuseInitIn,
    CuseInitOut,
    InHeader,
    InterruptIn,
    IoctlIn,
    IoctlIovec,
    IoctlOut,
    NotifyPollWakeupOut,
    OpenIn,
    OpenOut,
    OutHeader,
    PollIn,
    PollOut,
    ReadIn,
    ReleaseIn,
    WriteIn,
    WriteOut,
)
from vhostnet.uapi.wire import Layout

Body = CuseInitIn | OpenIn | ReleaseIn | ReadIn | WriteIn | IoctlIn | PollIn | InterruptIn

_BODIES: dict[int, Layout[Body]] = {
    fuse.CUSE_INIT: fuse.CUSE_INIT_IN,  # type: ignore[dict-item]
    fuse.FUSE_OPEN: fuse.OPEN_IN,  # type: ignore[dict-item]
    fuse.FUSE_RELEASE: fuse.RELEASE_IN,  # type: ignore[dict-item]
    fuse.FUSE_READ: fuse.READ_IN,  # type: ignore[dict-item]
    fuse.FUSE_WRITE: fuse.WRITE_IN,  # type: ignore[dict-item]
    fuse.FUSE_IOCTL: fuse.IOCTL_IN,  # type: ignore[dict-item]
    fuse.FUSE_POLL: fuse.POLL_IN,  # type: ignore[dict-item]
    fuse.FUSE_INTERRUPT: fuse.INTERRUPT_IN,  # type: ignore[dict-item]
}

#: What a write(2) of a caller may bring at once.
MAX_WRITE = 4096
#: Room that read(2) of /dev/cuse needs for the largest request.
READ_SIZE = fuse.IN_HEADER.size + fuse.IOCTL_IN.size + fuse.FUSE_IOCTL_MAX_DATA


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        opcode: known or not.
        unique: what the reply answers to.
        tid: thread id of the caller as we see it, 0 if it is in no pid namespace of ours.
        body: the request's struct; None for an opcode without one, or not known.
        data: what follows the struct, of the length that it names.
    """

    opcode: int
    unique: int
    tid: int
    body: Body | None = None
    data: bytes = b""

    @property
    def name(self) -> str:
        """For people."""
        return fuse.OPCODE_NAMES.get(self.opcode, f"opcode {self.opcode}")


def decode(message: bytes) -> Request:
    """The request that one read(2) brought.

    Raises:
        PeerError: it is shorter than what it says, EIO.  Its `unique`, if there is one, can
            still be answered: see `unique_of`.
    """
    if len(message) < fuse.IN_HEADER.size:
        raise _broken(f"{len(message)} bytes are no request")
    header: InHeader = fuse.IN_HEADER.unpack(message)
    end = header.len - 8 * header.total_extlen
    if header.len != len(message) or end < fuse.IN_HEADER.size:
        raise _broken(f"{len(message)} bytes that say {header.len}, {header.total_extlen} words")
    layout = _BODIES.get(header.opcode)
    request = Request(header.opcode, header.unique, header.pid)
    if layout is None:
        return request
    start = fuse.IN_HEADER.size + layout.size
    if end < start:
        raise _broken(f"{request.name} of {end} bytes")
    body = layout.unpack(message, fuse.IN_HEADER.size)
    data = message[start:end]
    wanted = _data_size(body)
    if len(data) < wanted:
        raise _broken(f"{request.name}: {len(data)} bytes of {wanted}")
    return Request(header.opcode, header.unique, header.pid, body, data[:wanted])


def unique_of(message: bytes) -> int:
    """The number that a request which can not be decoded is answered by; 0: none."""
    if len(message) < fuse.IN_HEADER.size:
        return 0
    return fuse.IN_HEADER.unpack(message).unique


def _data_size(body: Body) -> int:
    if isinstance(body, WriteIn):
        return body.size
    if isinstance(body, IoctlIn):
        return body.in_size
    return 0


def _broken(text: str) -> PeerError:
    return PeerError(f"/dev/cuse: {text}", _errno.EIO)


# --- replies -------------------------------------------------------------------------------------


def encode_reply(unique: int, payload: bytes = b"") -> bytes:
    """A success."""
    size = fuse.OUT_HEADER.size + len(payload)
    return fuse.OUT_HEADER.pack(OutHeader(size, 0, unique)) + payload


def encode_error(unique: int, errno: int) -> bytes:
    """A refusal; an errno that the kernel would not take becomes EIO."""
    number = errno if 0 < errno <= fuse.MAX_ERRNO else _errno.EIO
    return fuse.OUT_HEADER.pack(OutHeader(fuse.OUT_HEADER.size, -number, unique))


def encode_init(unique: int, kernel: CuseInitIn, name: str) -> bytes:
    """The reply to CUSE_INIT that makes /dev/*name*.

    Raises:
        PeerError: the kernel speaks another protocol (EPROTO).
    """
    if kernel.major != fuse.FUSE_KERNEL_VERSION:
        raise PeerError(
            f"/dev/cuse: the kernel speaks FUSE {kernel.major}.{kernel.minor}, we "
            f"{fuse.FUSE_KERNEL_VERSION}.{fuse.FUSE_KERNEL_MINOR_VERSION}",
            _errno.EPROTO,
        )
    out = CuseInitOut(
        major=fuse.FUSE_KERNEL_VERSION,
        minor=min(kernel.minor, fuse.FUSE_KERNEL_MINOR_VERSION),
        unused=0,
        flags=fuse.CUSE_UNRESTRICTED_IOCTL,
        max_read=MAX_WRITE,
        max_write=MAX_WRITE,
        dev_major=0,
        dev_minor=0,
    )
    described = f"DEVNAME={name}\0".encode()
    payload = fuse.CUSE_INIT_OUT.pack(out) + bytes(fuse.CUSE_INIT_OUT_SPARE) + described
    return encode_reply(unique, payload)


def encode_open(unique: int, fh: int) -> bytes:
    """A file is open; the kernel will call it *fh*."""
    flags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE
    return encode_reply(unique, fuse.OPEN_OUT.pack(OpenOut(fh, flags)))


def encode_write(unique: int, size: int) -> bytes:
    """So much was taken; more than was written is an error (EIO) to the kernel."""
    return encode_reply(unique, fuse.WRITE_OUT.pack(WriteOut(size)))


def encode_ioctl(unique: int, result: int, data: bytes = b"") -> bytes:
    """The ioctl is done; *data* goes where the out iovecs said."""
    return encode_reply(unique, fuse.IOCTL_OUT.pack(IoctlOut(result, 0, 0, 0)) + data)


def encode_retry(
    unique: int, into_us: Sequence[tuple[int, int]], from_us: Sequence[tuple[int, int]]
) -> bytes:
    """Call again with the pieces *into_us* as data, and room for *from_us*: (address, bytes)."""
    head = IoctlOut(0, fuse.FUSE_IOCTL_RETRY, len(into_us), len(from_us))
    pieces = b"".join(fuse.IOCTL_IOVEC.pack(IoctlIovec(*p)) for p in (*into_us, *from_us))
    return encode_reply(unique, fuse.IOCTL_OUT.pack(head) + pieces)


def encode_poll(unique: int, revents: int) -> bytes:
    """What holds now."""
    return encode_reply(unique, fuse.POLL_OUT.pack(PollOut(revents)))


def encode_poll_wakeup(kh: int) -> bytes:
    """Unasked: who polls the file that the kernel calls *kh* should look again."""
    payload = fuse.NOTIFY_POLL_WAKEUP_OUT.pack(NotifyPollWakeupOut(kh))
    size = fuse.OUT_HEADER.size + len(payload)
    return fuse.OUT_HEADER.pack(OutHeader(size, fuse.FUSE_NOTIFY_POLL, 0)) + payload
