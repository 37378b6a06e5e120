"""What kernels return: nothing here has behaviour.

Ring errors carry Linux's errno for the same mistake in the comment and a sentence for the
log.  `vhost_get_vq_desc()` and the table in "what happens to the queue after an error".
"""

from __future__ import annotations

#: get_vq_desc: the driver offers nothing new (Linux returns vq->num).
RING_EMPTY = -1

# The ring is broken: the handler stops, the head is not consumed.
RING_AVAIL_JUMP = -10  # EINVAL
RING_BAD_HEAD = -11  # EINVAL
RING_BAD_NEXT = -12  # EINVAL
RING_LOOP = -13  # EINVAL
RING_UNMAPPED = -14  # EFAULT
RING_OUT_AFTER_IN = -15  # EINVAL
RING_TOO_MANY_IOVS = -16  # ENOBUFS
RING_INDIRECT_LEN = -17  # EINVAL
RING_INDIRECT_UNMAPPED = -18  # EFAULT
RING_INDIRECT_TOO_BIG = -19  # E2BIG
RING_INDIRECT_OVERRUN = -20  # EINVAL
RING_INDIRECT_NESTED = -21  # EINVAL

RING_FORBIDDEN = -22  # EPERM: the IOTLB has the address, but not for this access

#: Not an error: the IOTLB does not have the address yet, the front-end is asked (EAGAIN).
RING_MISS = -30

RING_ERRORS: dict[int, str] = {
    RING_AVAIL_JUMP: "avail->idx moved by more than the ring holds",
    RING_BAD_HEAD: "the avail ring names a descriptor beyond the table",
    RING_BAD_NEXT: "a chain goes on in a descriptor that is not the driver's to use",
    RING_LOOP: "a descriptor chain is longer than the table: it loops",
    RING_UNMAPPED: "a descriptor's buffer is not in the guest's memory",
    RING_OUT_AFTER_IN: "a readable descriptor follows a writable one",
    RING_TOO_MANY_IOVS: "a chain has more than 1024 pieces",
    RING_INDIRECT_LEN: "an indirect table's length is not a multiple of 16",
    RING_INDIRECT_UNMAPPED: "an indirect table is not in the guest's memory",
    RING_INDIRECT_TOO_BIG: "an indirect table has more than 65536 entries",
    RING_INDIRECT_OVERRUN: "an indirect chain runs past its table",
    RING_FORBIDDEN: "the IOMMU forbids the access to a buffer",
    RING_INDIRECT_NESTED: "an indirect table holds an indirect descriptor",
}

#: Short names of the rules, for counters; code RING_AVAIL_JUMP - k is rule k.
RING_ERROR_RULES = (
    "avail_jump",
    "bad_head",
    "bad_next",
    "loop",
    "unmapped",
    "out_after_in",
    "too_many_iovs",
    "indirect_len",
    "indirect_unmapped",
    "indirect_too_big",
    "indirect_overrun",
    "indirect_nested",
    "forbidden",
)

# Why the worker's kernel came back to Python.
WORKER_STOPPED = 1  # the control eventfd asked for it
WORKER_RX_ERROR = 2  # vring["last_error"] of the RX ring is new
WORKER_TX_ERROR = 3  # the same, TX ring
WORKER_BACKEND_GONE = 4  # the TAP was deleted under us
WORKER_RX_MISS = 5  # vring["miss_iova"] of the RX ring is to be asked for
WORKER_TX_MISS = 6  # the same, TX ring
WORKER_BACK_RX_ERROR = 7  # as WORKER_RX_ERROR, of a port's way back
WORKER_BACK_TX_ERROR = 8  # as WORKER_TX_ERROR, likewise

# What a handler tells the worker's loop.
HANDLED = 0
HANDLED_RING_ERROR = 1
HANDLED_BACKEND_GONE = 2
HANDLED_MISS = 3
HANDLED_PEER_ERROR = 4  # a port: the receiver's ring is broken
