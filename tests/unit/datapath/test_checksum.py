"""Partial checksums are completed as the card would have done it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostnet.datapath.checksum import fill_partial_checksum, internet_checksum
from vhostnet.native._jit import kernel

fill = kernel(lambda hva, hdr_len, total, csum: fill_partial_checksum(hva, hdr_len, total, csum))
summed = kernel(lambda hva, size: internet_checksum(hva, size))


def reference(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_the_sum_is_rfc_1071s(data):
    memory = np.frombuffer(data, np.uint8).copy()
    assert summed(memory.ctypes.data, len(data)) == reference(data)


def header(flags=1, gso=0, start=34, offset=6) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, 0, 0, start, offset, 0)


def filled(hdr: bytes, frame: bytes, guest_csum: int = 0) -> tuple[bytes, bytes]:
    memory = np.frombuffer(hdr + frame, np.uint8).copy()
    fill(memory.ctypes.data, 12, len(memory), guest_csum)
    return bytes(memory[:12]), bytes(memory[12:])


FRAME = bytes(range(34)) + struct.pack(">HHHH", 67, 68, 20, 0x1234) + b"payload odd"


def test_a_udp_checksum_is_completed_and_the_flag_taken_away():
    hdr, frame = filled(header(), FRAME)
    assert hdr[0] == 0
    assert struct.unpack_from(">H", frame, 40)[0] == reference(FRAME[34:])
    assert frame[:40] == FRAME[:40]
    assert frame[42:] == FRAME[42:]


def test_a_guest_that_knows_checksums_is_told_that_the_data_are_valid():
    assert filled(header(), FRAME, guest_csum=1)[0][0] == 2


@pytest.mark.parametrize(
    "hdr",
    [
        header(flags=0),
        header(gso=1),
        header(start=60),
        header(start=34, offset=30),
        header(start=65535),
    ],
    ids=["no-flag", "gso", "start-beyond", "field-beyond", "far-beyond"],
)
def test_what_is_not_a_partial_checksum_stays_as_it_is(hdr):
    assert filled(hdr, FRAME) == (hdr, FRAME)


def test_a_sum_of_zero_is_sent_as_all_ones():
    frame = bytearray(bytes(34) + struct.pack(">HHHH", 0, 0, 0, 0) + b"\xff\xff")
    assert filled(header(), bytes(frame))[1][40:42] == b"\xff\xff"


def test_the_option_works_on_the_way_to_the_guest(instance):
    pair = instance()
    pair.queue.record[0]["fill_checksums"] = 1
    (gpa,) = pair.rx.post(1500)
    pair.arrive(header() + FRAME)
    got = pair.memory.read(gpa, 12 + len(FRAME))
    assert got[0] == 0
    assert struct.unpack_from(">H", got, 12 + 40)[0] == reference(FRAME[34:])
