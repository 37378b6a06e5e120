"""What the handlers ask of a backend; the record's dtype chooses the body.

Receiving is two steps, as in Linux: `backend_peek` says how long the next packet is (and
keeps it), `backend_consume` lets go of it once the guest has it.  A packet that finds no
buffers is simply not consumed.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family

Record = Any


@family
def backend_send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    """Send one packet.

    Args:
        iov: the packet, virtio_net_hdr first, in iov[at:at + n]; iov[at - 1] is free to use
            and the entries may be changed.
        hdr_len: bytes of header.
        total: bytes of header and frame, more than *hdr_len*.

    Returns:
        0 when the packet is gone; -EAGAIN: try again when the backend is writable; -ENOMEM,
        -ENOBUFS: try again soon; -EBADFD: the backend was deleted; any other negative
        errno: it will never be taken.
    """
    raise NotImplementedError


@family
def backend_peek(bk: Record) -> tuple[int, int]:
    """Find the next packet for the guest.

    Returns:
        (hva, length) of the packet, header first, in private memory that may be written;
        (0, 0) if there is none; (0, -EBADFD) if the backend was deleted; (0, -EAGAIN) after many
        that had to be thrown away: look again, but let others run first.
    """
    raise NotImplementedError


@family
def backend_consume(bk: Record) -> None:
    """The packet of the last `backend_peek` is done with."""
    raise NotImplementedError


@family
def backend_turns(bk: Record) -> bool:
    """Whether what was just sent can be received now, with no descriptor saying so (loop)."""
    raise NotImplementedError


@family
def backend_ready(bk: Record, readable: bool, writable: bool) -> None:
    """Note what the backend's poll said."""
    raise NotImplementedError
