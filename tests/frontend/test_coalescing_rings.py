"""Coalescing with every kind of ring: completions come once, in their order, after the write."""

from __future__ import annotations

import pytest
from beds import SocketTap, in_process

from tcp_frames import Segment, segmented, stream
from vhostnet.device.vhost_net import VhostNet
from vhostnet.uapi.virtio import (
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    mask,
)
from vhostnet_frontend import NetDriver

BASE = mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX)
PACKED = mask(VIRTIO_F_RING_PACKED)
IN_ORDER = mask(VIRTIO_F_IN_ORDER)
INDIRECT = mask(VIRTIO_RING_F_INDIRECT_DESC)
FEATURES = {
    "split": BASE,
    "split in order": BASE | IN_ORDER,
    "split indirect": BASE | INDIRECT,
    "packed": BASE | PACKED,
    "packed in order": BASE | PACKED | IN_ORDER,
    "packed indirect": BASE | PACKED | INDIRECT,
}
ROUNDS, AT_ONCE, FLOWS = 12, 12, 3


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_rings_that_wrap_get_every_completion(features: int) -> None:
    tap = SocketTap(coalesce=True)
    net = VhostNet("under test")
    try:
        with NetDriver(in_process(tap.queue, net), features=features, num=64) as driver:
            assert driver.features == features
            driver.start()
            flows = [stream(Segment(bytes(300), port=k), AT_ONCE * ROUNDS) for k in range(FLOWS)]
            out = []
            for at in range(0, AT_ONCE * ROUNDS, AT_ONCE):
                with net.quiesced():  # so that all are there when the worker looks
                    for turn in zip(*(flow[at : at + AT_ONCE] for flow in flows), strict=True):
                        for segment in turn:
                            driver.send(segment.frame(), indirect=bool(features & INDIRECT))
                driver.flush()
                out += tap.sent()
            frames = [frame for packet in out for frame in segmented(packet)]
            for k, flow in enumerate(flows):
                here = [frame for frame in frames if frame[37] == k]
                assert here == [segment.frame() for segment in flow]
            assert len(out) == FLOWS * ROUNDS
            assert driver.ring_errors() == {}
    finally:
        tap.close()
