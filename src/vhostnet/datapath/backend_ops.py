"""What the handlers ask of a backend; the record's dtype chooses the body.

Sending may be two steps: a backend that merges packets holds some of them in `backend_send`, and
writes them at the latest in `backend_flush`.  For the others that is nothing.

Receiving is two steps, as in Linux: `backend_peek` says how long the next packet is (and
keeps it), `backend_consume` lets go of it once the guest has it.  A packet that finds no
buffers is simply not consumed.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, implements

from .layout import COALESCING_TAP, GEN, LOOP, NULL, TAP, VHOST_NET_BATCH
from .look_ahead import HEADERS, WHOLE_FRAME

Record = Any
#: What `backend_send` answers for a packet that `backend_flush` will tell of.
HELD = 1


@family
def backend_send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    """Send one packet.

    Args:
        iov: the packet, virtio_net_hdr first, in iov[at:at + n]; iov[at - 1] is free to use
            and the entries may be changed.
        hdr_len: bytes of header.
        total: bytes of header and frame, more than *hdr_len*.

    Returns:
        0 when the packet is gone; HELD: it is taken, its buffers are in use until the next
        `backend_flush`, which also counts it; -EAGAIN: try again when the backend is writable;
        -ENOMEM, -ENOBUFS: try again soon; -EBADFD: the backend was deleted; any other negative
        errno: it will never be taken.
    """
    raise NotImplementedError


@family
def backend_flush(bk: Record, vq: Record) -> int:
    """Be done with all that `backend_send` holds: before its completions are published.

    Afterwards no buffer of the guest is in use, whatever the answer.

    Args:
        vq: the TX ring, for the counters of what was held.

    Returns:
        0 when all is written or refused for good; -EAGAIN, -ENOMEM, -ENOBUFS: some is kept in
        memory of our own, try again as after `backend_send`, and send nothing else before;
        -EBADFD: the backend was deleted.
    """
    raise NotImplementedError


@family
def backend_batch(bk: Record) -> int:
    """How many completions are worth a flush now."""
    raise NotImplementedError


@implements(backend_flush, TAP, NULL, GEN, LOOP)
def _flush(bk: Record, vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(backend_batch, TAP, NULL, GEN, LOOP)
def _batch(bk: Record) -> int:  # noqa: ARG001
    return VHOST_NET_BATCH


@family
def backend_reads(bk: Record) -> int:
    """How many bytes of a packet, from its beginning, decide what is done with it; 0: none.

    They are asked for ahead.
    """
    raise NotImplementedError


@implements(backend_reads, TAP)
def _reads_headers(bk: Record) -> int:  # noqa: ARG001
    return HEADERS


@implements(backend_reads, COALESCING_TAP)
def _reads_all(bk: Record) -> int:  # noqa: ARG001
    return WHOLE_FRAME


@implements(backend_reads, NULL, GEN, LOOP)
def _reads_nothing(bk: Record) -> int:  # noqa: ARG001
    return 0


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
