"""The records of the compiled driver: one a ring format, all fields signed 64-bit.

What both formats have stands first and is named alike, so that `fast_flood` fits both.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _record(*fields: str) -> np.dtype[Any]:
    return np.dtype([(name, np.int64) for name in fields], align=True)


COMMON = (
    # --- set up by Python, constant while a kernel runs -----------------------------------
    # entries; slot k is descriptor or buffer id k, with the buffer at k * stride
    "num",
    "buf_gpa",
    "buf_hva",
    "stride",
    # bytes of virtio_net_hdr in front of every frame; does it end in num_buffers?
    "hdr_len",
    "has_num_buffers",
    "event_idx",
    "in_order",
    # eventfds, and an epoll set that watches call_fd
    "kick_fd",
    "call_fd",
    "epfd",
    # private memory: a u64 of value 1; 64 bytes for epoll and read
    "one_hva",
    "scratch_hva",
    # frames carry a sequence number at this offset of the buffer; -1 = they do not
    "stamp_at",
    # --- driven by the kernels --------------------------------------------------------------
    # the queue of free slots: free[free_head % num] is next, n_free of them
    "free_head",
    "n_free",
    # IN_ORDER: the slot that comes back next; id and length of the batch being taken, -1 = none
    "next_done",
    "batch_id",
    "batch_len",
    # rx: buffers of the current packet still to come
    "left_in_packet",
    # next sequence number, to stamp or expected
    "sequence",
    # tx: offset of the next frame of the template, and of its end
    "template_at",
    "template_end",
    # --- counters -----------------------------------------------------------------------------
    "frames",
    "bytes",
    "completed",
    "kicks",
    "waits",
    "bad_used",
    "out_of_sequence",
)

FAST_SPLIT = _record(
    *COMMON,
    # our addresses of the three parts
    "desc_hva",
    "avail_hva",
    "used_hva",
    # next avail entry to fill; where it was at the last kick decision
    "avail_idx",
    "kicked_idx",
    # next used entry to look at; newest used->idx seen
    "used_seen",
    "used_idx",
)

FAST_PACKED = _record(
    *COMMON,
    # our addresses of the ring and of the event suppression structures
    "ring_hva",
    "driver_hva",
    "device_hva",
    # where the next descriptor goes, where the next used one is, with the wrap counters
    "next_avail",
    "avail_wrap",
    "next_used",
    "used_wrap",
    # descriptors written since the last kick decision
    "unkicked",
    # the batch's first descriptor, whose flags are held back: position (-1 = none) and flags
    "held_at",
    "held_flags",
)
