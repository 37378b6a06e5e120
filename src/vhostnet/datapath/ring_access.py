"""How a ring's parts and a packet's buffers are got at: nothing to do, or system calls.

A ring's code works on three parts in our process.  Where these are the guest's own pages
(SPLIT_VRING, PACKED_VRING) every name here is empty and vanishes from the machine code.  Where
they are copies (REMOTE_VRING, REMOTE_PACKED_VRING; owner_memory_raw.py) the names say when the
copies have to be brought up to date, and when what we wrote has to be carried over.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import family, implements

from .iov import iov_from_buffer
from .layout import PACKED_VRING, SPLIT_VRING

Record = Any
_MAPPED = (SPLIT_VRING, PACKED_VRING)


@family
def fetch_ring(vq: Record) -> int:
    """Before the ring is looked at for more chains: the avail ring and the descriptors.

    Returns:
        0, or -1 if they are not to be had.
    """
    raise NotImplementedError


@family
def fetch_avail_idx(vq: Record) -> int:
    """Before avail->flags or avail->idx, or a packed ring's descriptor at seen_pos, is read again;
    0 or -1 as `fetch_ring`.
    """
    raise NotImplementedError


@family
def fetch_used_event(vq: Record) -> int:
    """Before used_event, or the driver's event area, is read; 0 or -1 as `fetch_ring`."""
    raise NotImplementedError


@family
def fetch_used(vq: Record) -> int:
    """Before a ring starts: the whole used ring, or the device's event area; 0 or -1 as
    `fetch_ring`.
    """
    raise NotImplementedError


@family
def put_used_entry(vq: Record, pos: int) -> None:
    """After a packed ring's used descriptor was written at *pos*: it may be carried over."""
    raise NotImplementedError


@family
def push_used_entries(vq: Record, first: int, n: int) -> None:
    """After *n* used entries from index *first* on were written, and the data before them."""
    raise NotImplementedError


@family
def push_used_word(vq: Record, offset: int) -> int:
    """After the word at *offset* of the used ring (flags, idx or avail_event), or the second word
    of a packed ring's descriptor there, was written.

    Returns:
        0 or -1 as `fetch_ring`.
    """
    raise NotImplementedError


@family
def push_device_event(vq: Record) -> int:
    """After a packed ring's device event area was written; 0 or -1 as `fetch_ring`."""
    raise NotImplementedError


@family
def stage_chains(vq: Record, mem: Any) -> int:
    """Before the next chain is walked; 0 or -1 as `fetch_ring`."""
    raise NotImplementedError


@family
def chain_taken(vq: Record, n_descs: int) -> None:
    """The ring's position has moved behind a chain of *n_descs* descriptors."""
    raise NotImplementedError


@family
def forget_ring(vq: Record) -> None:
    """The next chain was looked at and will be again: until then the driver may change it."""
    raise NotImplementedError


@family
def deliver(vq: Record, iov: Any, n: int, src_hva: int, size: int) -> None:
    """Write *size* bytes at *src_hva*, which may change on return, to the buffers iov[:n]."""
    raise NotImplementedError


@implements(fetch_ring, *_MAPPED)
def _fetch_ring(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(fetch_avail_idx, *_MAPPED)
def _fetch_avail_idx(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(fetch_used_event, *_MAPPED)
def _fetch_used_event(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(fetch_used, *_MAPPED)
def _fetch_used(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(put_used_entry, PACKED_VRING)
def _put_used_entry(vq: Record, pos: int) -> None:
    pass


@implements(push_used_entries, *_MAPPED)
def _push_used_entries(vq: Record, first: int, n: int) -> None:
    pass


@implements(push_used_word, *_MAPPED)
def _push_used_word(vq: Record, offset: int) -> int:  # noqa: ARG001
    return 0


@implements(push_device_event, PACKED_VRING)
def _push_device_event(vq: Record) -> int:  # noqa: ARG001
    return 0


@implements(stage_chains, *_MAPPED)
def _stage_chains(vq: Record, mem: Any) -> int:  # noqa: ARG001
    return 0


@implements(chain_taken, *_MAPPED)
def _chain_taken(vq: Record, n_descs: int) -> None:
    pass


@implements(deliver, *_MAPPED, is_hot=True)
def _deliver(vq: Record, iov: Any, n: int, src_hva: int, size: int) -> None:  # noqa: ARG001
    iov_from_buffer(iov, 0, n, src_hva, size)


@implements(forget_ring, *_MAPPED)
def _forget_ring(vq: Record) -> None:
    pass
