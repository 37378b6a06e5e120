"""The mix of sizes that testpmd plays."""

from __future__ import annotations

import struct
from collections import Counter

from vhostnet.bench import imix


def test_the_capture_file_holds_seven_four_and_one(tmp_path) -> None:
    data = imix.write(tmp_path / "imix.pcap").read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1"
    at, sizes = 24, Counter[int]()
    while at < len(data):
        kept, size = struct.unpack_from("<II", data, at + 8)
        assert kept == size == struct.unpack_from(">H", data, at + 16 + 16)[0] + 14
        sizes[size] += 1
        at += 16 + size
    assert at == len(data)
    assert (sizes[64], sizes[594], sizes[1514]) == (7 * 8, 4 * 8, 8)
