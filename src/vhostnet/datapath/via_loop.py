"""The loop: what the guest sends comes back to it, in order.

Packets lie in a byte ring of records: i8 length, then header and frame, padded to 8 bytes.
A record never wraps: when it does not fit before the end, a length of 0 sends the reader to
the start.  A full ring drops, as a wire would; sender and receiver are the same worker.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.ordering import load_relaxed_i64, store_i64, store_u8

from .backend_ops import (
    backend_consume,
    backend_peek,
    backend_ready,
    backend_send,
    backend_turns,
)
from .iov import iov_to_buffer
from .layout import LOOP

Record = Any
ENOSPC = errno.ENOSPC


@helper
def _skip_to_record(bk: Record) -> int:
    """The offset of the oldest record, or -1 if the ring is empty."""
    size = int(bk["fifo_size"])
    while int(bk["head"]) != int(bk["tail"]):
        offset = int(bk["head"]) % size
        if load_relaxed_i64(int(bk["fifo_hva"]) + offset) != 0:
            return offset
        bk["head"] += size - offset
    return -1


@implements(backend_send, LOOP, is_hot=True)
def _send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    size = int(bk["fifo_size"])
    record = 8 + ((total + 7) & ~7)
    offset = int(bk["tail"]) % size
    pad = 0
    if offset + record > size:
        pad = size - offset
    if int(bk["tail"]) + pad + record - int(bk["head"]) > size:
        return -ENOSPC
    if pad > 0:
        store_i64(int(bk["fifo_hva"]) + offset, 0)
        bk["tail"] += pad
        offset = 0
    hva = int(bk["fifo_hva"]) + offset
    store_i64(hva, total)
    iov_to_buffer(iov, at, n, hva + 8, total)
    for i in range(hdr_len):  # no offload was offered: nothing of the header holds on return
        store_u8(hva + 8 + i, 0)
    bk["tail"] += record
    return 0


@implements(backend_peek, LOOP, is_hot=True)
def _peek(bk: Record) -> tuple[int, int]:
    offset = _skip_to_record(bk)
    if offset < 0:
        return 0, 0
    hva = int(bk["fifo_hva"]) + offset
    return hva + 8, load_relaxed_i64(hva)


@implements(backend_consume, LOOP, is_hot=True)
def _consume(bk: Record) -> None:
    offset = _skip_to_record(bk)
    total = load_relaxed_i64(int(bk["fifo_hva"]) + offset)
    bk["head"] += 8 + ((total + 7) & ~7)


@implements(backend_turns, LOOP)
def _turns(bk: Record) -> bool:
    return int(bk["head"]) != int(bk["tail"])


@implements(backend_ready, LOOP)
def _ready(bk: Record, readable: bool, writable: bool) -> None:
    pass
