"""How a split ring's parts and a packet's buffers are got at: nothing to do, or system calls.

A split ring's code works on three parts in our process.  Where these are the guest's own pages
(SPLIT_VRING) every name here is empty and vanishes from the machine code.  Where they are
copies (REMOTE_VRING, owner_memory_raw.py) the names say when the copies have to be brought up
to date, and when what we wrote has to be carried over.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, implements

from .iov import iov_from_buffer
from .layout import PACKED_VRING, SPLIT_VRING

Record = Any


@family
def fetch_ring(vq: Record) -> int:
    """Before avail->idx is read for more chains: it, the avail ring and the descriptors.

    Returns:
        0, or -1 if they are not to be had.
    """
    raise NotImplementedError


@family
def fetch_avail_idx(vq: Record) -> int:
    """Before avail->flags or avail->idx is read again; 0 or -1 as `fetch_ring`."""
    raise NotImplementedError


@family
def fetch_used_event(vq: Record) -> int:
    """Before used_event is read; 0 or -1 as `fetch_ring`."""
    raise NotImplementedError


@family
def fetch_used(vq: Record) -> int:
    """Before a ring starts: the whole used ring; 0 or -1 as `fetch_ring`."""
    raise NotImplementedError


@family
def push_used_entries(vq: Record, first: int, n: int) -> None:
    """After *n* used entries from index *first* on were written, and the data before them."""
    raise NotImplementedError


@family
def push_used_word(vq: Record, offset: int) -> int:
    """After the word at *offset* of the used ring (flags, idx or avail_event) was written.

    Returns:
        0 or -1 as `fetch_ring`.
    """
    raise NotImplementedError


@family
def stage_chains(vq: Record, mem: Any) -> int:
    """Before the chain at last_avail_idx is walked; 0 or -1 as `fetch_ring`."""
    raise NotImplementedError


@family
def forget_ring(vq: Record) -> None:
    """The next chain was looked at and will be again: until then the driver may change it."""
    raise NotImplementedError


@family
def deliver(vq: Record, iov: Any, n: int, src_hva: int, size: int) -> None:
    """Write *size* bytes at *src_hva*, which may change on return, to the buffers iov[:n]."""
    raise NotImplementedError


@implements(fetch_ring, SPLIT_VRING)
def _fetch_ring(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(fetch_avail_idx, SPLIT_VRING)
def _fetch_avail_idx(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(fetch_used_event, SPLIT_VRING)
def _fetch_used_event(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(fetch_used, SPLIT_VRING)
def _fetch_used(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(push_used_entries, SPLIT_VRING)
def _push_used_entries(vq: Record, first: int, n: int) -> None:
    pass


@implements(push_used_word, SPLIT_VRING)
def _push_used_word(vq: Record, offset: int) -> int:  # noqa: ARG001
    return 0


@implements(stage_chains, SPLIT_VRING)
def _stage_chains(vq: Record, mem: Any) -> int:  # noqa: ARG001
    return 0


@implements(deliver, SPLIT_VRING, PACKED_VRING)
def _deliver(vq: Record, iov: Any, n: int, src_hva: int, size: int) -> None:  # noqa: ARG001
    iov_from_buffer(iov, 0, n, src_hva, size)


@implements(forget_ring, SPLIT_VRING, PACKED_VRING)
def _forget_ring(vq: Record) -> None:
    pass
