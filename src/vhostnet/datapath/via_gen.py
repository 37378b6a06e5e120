"""The generator: one frame (or beginnings of it, in turn), sent to the guest for ever, every byte
written each time.

What the guest sends is copied and dropped, as by the null backend.
"""

from __future__ import annotations

import errno
from typing import Any

from vhostnet.native._jit import implements
from vhostnet.native.ordering import load_relaxed_i64

from .backend_ops import (
    backend_consume,
    backend_peek,
    backend_ready,
    backend_send,
    backend_turns,
)
from .iov import iov_to_buffer
from .layout import GEN

Record = Any
EMSGSIZE = errno.EMSGSIZE


@implements(backend_send, GEN, is_hot=True)
def _send(bk: Record, iov: Any, at: int, n: int, hdr_len: int, total: int) -> int:
    if total > int(bk["gen_sink_size"]):
        return -EMSGSIZE
    iov_to_buffer(iov, at, n, int(bk["gen_sink_hva"]), total)
    return 0


@implements(backend_peek, GEN, is_hot=True)
def _peek(bk: Record) -> tuple[int, int]:
    # the frame stands behind room for the longest header; the header in use ends at it
    return int(bk["frame_hva"]) - int(bk["gen_hdr_len"]), int(bk["gen_hdr_len"]) + int(
        bk["frame_len"]
    )


@implements(backend_consume, GEN, is_hot=True)
def _consume(bk: Record) -> None:
    if int(bk["n_lens"]) > 1:
        at = int(bk["len_pos"]) + 1
        bk["len_pos"] = 0 if at == int(bk["n_lens"]) else at
        bk["frame_len"] = load_relaxed_i64(int(bk["lens_hva"]) + 8 * int(bk["len_pos"]))


@implements(backend_turns, GEN)
def _turns(bk: Record) -> bool:
    return False


@implements(backend_ready, GEN)
def _ready(bk: Record, readable: bool, writable: bool) -> None:
    pass
