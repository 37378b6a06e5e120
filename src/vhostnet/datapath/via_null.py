"""The null backend: every packet is copied whole into memory of our own; none comes back.

The copy is the point: a benchmark against it measures what any real backend has to do.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import implements

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


@implements(backend_send, NULL)
def _send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    if total > HOLD_SIZE:
        return -EMSGSIZE
    pos = int(bk["sink_pos"])
    if pos + total > int(bk["sink_size"]):
        pos = 0
    iov_to_buffer(iov, at, n, int(bk["sink_hva"]) + pos, total)
    bk["sink_pos"] = pos + ((total + 63) & ~63)
    return 0


@implements(backend_peek, NULL)
def _peek(bk: Record) -> tuple[int, int]:
    return 0, 0


@implements(backend_consume, NULL)
def _consume(bk: Record) -> None:
    pass


@implements(backend_turns, NULL)
def _turns(bk: Record) -> bool:
    return False


@implements(backend_ready, NULL)
def _ready(bk: Record, readable: bool, writable: bool) -> None:
    pass
