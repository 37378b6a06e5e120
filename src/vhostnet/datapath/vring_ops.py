"""What the handlers ask of a ring, whatever its format; the names are Linux vhost's.

Each is a family: the dtype of the vring record chooses the body (`split_ring` for
SPLIT_VRING, `packed_ring` for PACKED_VRING).  A new ring format is a new record and a file of
bodies, no change here.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, helper
from vhostnet.native.libc_raw import write

Record = Any


@family
def get_vq_desc(vq: Record, mem: Any, iov: Any, at: int) -> tuple[int, int, int, int, int]:
    """Take the next available chain and translate it to host memory.

    Args:
        vq: the ring.
        mem: region table.
        iov: IOVEC[1 + UIO_MAXIOV + ...]; filled from index *at* on.
        at: first free iovec; 1 leaves room for a private header.

    Returns:
        (head, n_out, n_in, out_len, in_len): the chain's identity (>= 0) or a negative
        code; numbers of iovecs the device may read and write, and their bytes.  On any
        error the ring's position is unchanged.

    Source: Linux vhost_get_vq_desc(), VIRTIO 1.2 section 2.7.13.
    """
    raise NotImplementedError


@family
def discard_vq_desc(vq: Record, n: int, n_descs: int) -> None:
    """Give back the last *n* chains taken: they will be taken again (Linux name).

    Args:
        n_descs: the sum of `vq["chain_descs"]` after each of them (a packed ring counts these).
    """
    raise NotImplementedError


@family
def add_used(vq: Record, head: int, length: int, n: int, n_descs: int) -> None:
    """Write a used entry: *length* bytes were written to chain *head*; not yet published.

    Args:
        n: chains that the entry stands for, *head* the last of them; 1 without IN_ORDER.
        n_descs: descriptors of the ring that these chains took.
    """
    raise NotImplementedError


@family
def publish_used(vq: Record) -> None:
    """Let the driver see every entry of `add_used`; nothing is signalled yet.

    Source: Linux vhost_add_used_n().
    """
    raise NotImplementedError


@family
def driver_wants_signal(vq: Record) -> bool:
    """Whether to interrupt the driver for what was published since the last test.

    Source: Linux vhost_notify().
    """
    raise NotImplementedError


@family
def vq_avail_changed(vq: Record) -> bool:
    """Whether the driver has made anything available since we last saw its index."""
    raise NotImplementedError


@family
def disable_notify(vq: Record) -> None:
    """Tell the driver that kicks are not needed."""
    raise NotImplementedError


@family
def enable_notify(vq: Record) -> bool:
    """Ask the driver for kicks; true if it made something available meanwhile.

    The caller then has to look again: no kick will come for it.
    """
    raise NotImplementedError


@helper
def signal_eventfd(fd: int, one_hva: int) -> None:
    """Add one to an eventfd, or 8 bytes to a pipe or socket; a full one is signalled already.

    Args:
        fd: descriptor, or -1 for none.
        one_hva: address of a u64 with the value 1.
    """
    if fd >= 0:
        write(fd, one_hva, 8)


@helper
def signal_used(vq: Record) -> None:
    """Interrupt the driver for what was published since the last call, if it asked for that.

    Source: Linux vhost_signal().
    """
    if not vq["signal_due"]:
        return
    vq["signal_due"] = 0
    if int(vq["call_fd"]) >= 0:
        if driver_wants_signal(vq):
            vq["calls"] += 1
            signal_eventfd(int(vq["call_fd"]), int(vq["one_hva"]))
        else:
            vq["calls_suppressed"] += 1
