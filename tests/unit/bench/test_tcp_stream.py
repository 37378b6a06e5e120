"""The segments of g2tap-tcp are right, and go on: what the device verifies before it merges."""

from __future__ import annotations

import struct

from tcp_frames import ones_complement
from vhostnet.bench.tcp_stream import HEADERS, PAYLOAD, interleaved


def test_segments_have_right_checksums_and_each_flow_goes_on():
    frames = interleaved(64)
    assert {len(frame) for frame in frames} == {HEADERS + PAYLOAD} == {1514}
    assert len(frames) == 64 * 32
    ends: dict[int, int] = {}
    for frame in frames:
        assert ones_complement(frame[14:34]) == 0
        pseudo = frame[26:34] + struct.pack(">II", 6, len(frame) - 34)
        assert ones_complement(pseudo + frame[34:]) == 0
        port, _, sequence = struct.unpack_from(">HHI", frame, 34)
        assert sequence == ends.get(port, 0)
        ends[port] = sequence + PAYLOAD
    assert len(ends) == 64


def test_few_flows_have_more_segments():
    assert len(interleaved(1)) == len(interleaved(4)) == 1024
