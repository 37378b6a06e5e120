"""The null backend: every packet is copied whole into memory of our own; none comes back.

The copy is the point: a benchmark against it measures what any real backend has to do.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import helper, implements
from vhostnet.native.ordering import load_u8

from .backend_ops import (
    backend_consume,
    backend_peek,
    backend_ready,
    backend_send,
    backend_turns,
)
from .iov import iov_to_buffer
from .layout import HOLD_SIZE, NULL

Record = Any
EMSGSIZE = errno.EMSGSIZE
SUM_MASK = (1 << 62) - 1


@helper
def weighted_sum(hva: int, size: int) -> int:
    """Each byte times its place (from 1), summed up: a byte too few or elsewhere shows."""
    total = 0
    for i in range(size):
        total += load_u8(hva + i) * (i + 1)
    return total


@implements(backend_send, NULL, is_hot=True)
def _send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    if total > HOLD_SIZE:
        return -EMSGSIZE
    pos = int(bk["sink_pos"])
    if pos + total > int(bk["sink_size"]):
        pos = 0
    hva = int(bk["sink_hva"]) + pos
    iov_to_buffer(iov, at, n, hva, total)
    # A branch and not a kernel of its own: what is proved is the machine code that is measured.
    if bk["sums"]:
        bk["sink_sum"] = (int(bk["sink_sum"]) + weighted_sum(hva, total)) & SUM_MASK
    bk["sink_pos"] = pos + ((total + 63) & ~63)
    return 0


@implements(backend_peek, NULL, is_hot=True)
def _peek(bk: Record) -> tuple[int, int]:
    return 0, 0


@implements(backend_consume, NULL, is_hot=True)
def _consume(bk: Record) -> None:
    pass


@implements(backend_turns, NULL)
def _turns(bk: Record) -> bool:
    return False


@implements(backend_ready, NULL)
def _ready(bk: Record, readable: bool, writable: bool) -> None:
    pass
