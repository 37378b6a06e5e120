"""Backends that are only memory: a sink, a generator, a loop.  For tests and benchmarks."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from vhostnet.datapath.layout import GEN, HOLD_SIZE, LOOP, NULL
from vhostnet.uapi.virtio import VIRTIO_NET_F_MRG_RXBUF, VNET_HDR_MRG_LEN, mask

from .backend import Backend, BackendQueue

log = logging.getLogger("vhostnet.null")

_SINK_SIZE = 256 * 1024
_FIFO_SIZE = 4 * 1024 * 1024
#: A locally administered source, the broadcast address and an experimental ethertype.
_GEN_ETHERNET = b"\xff" * 6 + b"\x02\x00\x00\x76\x68\x6e" + b"\x88\xb5"


class NullBackend(Backend):
    """Takes every packet into memory of its own, whole.

    Args:
        checksum: sum up each copy and log the sum when a front-end leaves: slow, for proving
            that every byte is copied.
    """

    kind = "null"
    features = mask(VIRTIO_NET_F_MRG_RXBUF)

    def __init__(self, queue_pairs: int, *, checksum: bool = False) -> None:
        queues = []
        for _ in range(queue_pairs):
            sink = np.zeros(_SINK_SIZE, np.uint8)
            record = np.zeros(1, NULL)
            record[0]["sink_hva"] = sink.ctypes.data
            record[0]["sink_size"] = _SINK_SIZE
            record[0]["sums"] = checksum
            queues.append(BackendQueue(record, keep=[sink]))
        super().__init__(queues)

    def discard_pending(self) -> int:
        """Tell the sum of what one driver sent, and begin anew."""
        for pair, queue in enumerate(self.queues):
            if int(queue.record[0]["sink_sum"]):
                log.info("null: pair %d: sum %d", pair, int(queue.record[0]["sink_sum"]))
                queue.record[0]["sink_sum"] = 0
        return 0


class GenBackend(Backend):
    """Sends the guest frames for ever, of one size or of several in turn.

    Args:
        sizes: bytes of a frame, Ethernet header included, without checksum.
    """

    kind = "gen"
    features = mask(VIRTIO_NET_F_MRG_RXBUF)

    def __init__(self, queue_pairs: int, *sizes: int) -> None:
        queues = []
        size = max(sizes)
        for _ in range(queue_pairs):
            frame = np.zeros(VNET_HDR_MRG_LEN + size, np.uint8)
            payload = (_GEN_ETHERNET + bytes(i & 0xFF for i in range(max(size - 14, 0))))[:size]
            frame[VNET_HDR_MRG_LEN:] = np.frombuffer(payload, np.uint8)
            sink = np.zeros(HOLD_SIZE, np.uint8)
            record: Any = np.zeros(1, GEN)
            record[0]["frame_hva"] = frame.ctypes.data + VNET_HDR_MRG_LEN
            lens = np.array(sizes, np.int64)
            record[0]["frame_len"] = sizes[0]
            record[0]["lens_hva"], record[0]["n_lens"] = lens.ctypes.data, len(sizes)
            record[0]["gen_hdr_len"] = VNET_HDR_MRG_LEN
            record[0]["gen_sink_hva"] = sink.ctypes.data
            record[0]["gen_sink_size"] = HOLD_SIZE
            queues.append(BackendQueue(record, keep=[frame, sink, lens]))
        super().__init__(queues)

    def negotiate(self, hdr_len: int, features: int) -> None:  # noqa: ARG002
        for queue in self.queues:
            queue.record[0]["gen_hdr_len"] = hdr_len


class LoopBackend(Backend):
    """What the guest sends comes back to it."""

    kind = "loop"
    features = mask(VIRTIO_NET_F_MRG_RXBUF)

    def __init__(self, queue_pairs: int) -> None:
        queues = []
        for _ in range(queue_pairs):
            fifo = np.zeros(_FIFO_SIZE, np.uint8)
            record = np.zeros(1, LOOP)
            record[0]["fifo_hva"] = fifo.ctypes.data
            record[0]["fifo_size"] = _FIFO_SIZE
            queues.append(BackendQueue(record, keep=[fifo]))
        super().__init__(queues)

    def discard_pending(self) -> int:
        """Empty the loops; what they hold is one driver's own and not counted as packets."""
        for queue in self.queues:
            queue.record[0]["head"] = queue.record[0]["tail"] = 0
        return 0
