"""Bytes and descriptors in, requests out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostnet.protocol.vhost_user_codec import (
    MAX_FDS,
    MAX_PAYLOAD_SIZE,
    Codec,
    Request,
    encode_message,
    encode_reply,
)
from vhostnet.uapi import vhost_user as vu

chunks = st.lists(
    st.tuples(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                encode_message,
                st.integers(0, 50),
                st.sampled_from([0x1, 0x9, 0x5, 0x2]),
                st.binary(max_size=48),
            ),
        ),
        st.integers(0, 3),
    ),
    max_size=12,
)


def fed(pieces: list[tuple[bytes, list[int]]]) -> tuple[list[Request], str, list[int]]:
    codec = Codec()
    requests: list[Request] = []
    for data, fds in pieces:
        requests += codec.feed(data, fds)
    return requests, str(codec.error), codec.drain_fds()


def numbered(counts: list[tuple[bytes, int]]) -> list[tuple[bytes, list[int]]]:
    """Give every descriptor a number of its own; no bytes, no descriptors."""
    pieces, next_fd = [], 100
    for data, n in counts:
        n = n if data else 0
        pieces.append((data, list(range(next_fd, next_fd + n))))
        next_fd += n
    return pieces


@given(chunks)
def test_fed_whole_or_byte_by_byte_gives_the_same_and_loses_no_descriptor(counts):
    whole = numbered(counts)
    single = [
        (data[i : i + 1], fds if i == 0 else []) for data, fds in whole for i in range(len(data))
    ]
    assert fed(whole) == fed(single)
    requests, _, leftover = fed(whole)
    seen = [fd for request in requests for fd in request.fds] + leftover
    assert sorted(seen) == [fd for _, fds in whole for fd in fds]


@given(st.lists(st.binary(max_size=30), max_size=5), st.data())
def test_every_split_of_a_stream_gives_the_same_requests(payloads, data):
    stream = b"".join(encode_message(i, 1, p) for i, p in enumerate(payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    requests, error, _ = fed([(piece, []) for piece in pieces])
    assert [(r.number, r.payload) for r in requests] == list(enumerate(payloads))
    assert error == "None"


def test_wanted_never_reaches_beyond_the_message():
    codec = Codec()
    stream = encode_message(2, 1, b"12345678")
    assert codec.wanted == 12
    codec.feed(stream[:5])
    assert codec.wanted == 7
    assert codec.is_mid_message
    codec.feed(stream[5:12])
    assert codec.wanted == 8
    codec.feed(stream[12:])
    assert codec.wanted == 12
    assert not codec.is_mid_message


def test_descriptors_go_to_the_message_that_the_chunk_begins_with():
    codec = Codec()
    first, second = codec.feed(encode_message(12, 1, b"") + encode_message(13, 1, b""), [7])
    assert (first.fds, second.fds) == ([7], [])


@pytest.mark.parametrize("flags", [0x0, 0x2, 0x3, 0x8, 0xFFFFFFFE])
def test_a_header_of_another_version_ends_the_stream(flags):
    codec = Codec()
    assert codec.feed(encode_message(1, flags), [5]) == []
    assert "GET_FEATURES: header says version" in str(codec.error)
    assert codec.drain_fds() == [5]


def test_requests_before_a_bad_header_are_returned_and_none_after_it():
    good, bad = encode_message(1, 1), encode_message(1, 0)
    codec = Codec()
    assert [r.number for r in codec.feed(good + bad + good)] == [1]
    assert codec.error is not None
    assert codec.feed(good, [9]) == []
    assert codec.drain_fds() == [9]


def test_a_payload_at_the_limit_is_taken_and_one_byte_more_is_not():
    assert fed([(encode_message(5, 1, bytes(MAX_PAYLOAD_SIZE)), [])])[1] == "None"
    head = vu.HEADER.pack(vu.Header(5, 1, MAX_PAYLOAD_SIZE + 1))
    assert "payload of 4097 bytes" in fed([(head, [])])[1]
    head = vu.HEADER.pack(vu.Header(5, 1, 0xFFFFFFFF))
    assert "payload of 4294967295 bytes" in fed([(head, [])])[1]


def test_descriptors_that_trickle_in_are_bounded_too():
    codec = Codec()
    codec.feed(encode_message(5, 1, bytes(100))[:12])
    for fd in range(MAX_FDS):
        codec.feed(b"x", [fd])
    assert codec.error is None
    codec.feed(b"x", [MAX_FDS])
    assert "more than 32 file descriptors" in str(codec.error)
    assert codec.drain_fds() == list(range(MAX_FDS + 1))


def test_a_reply_has_exactly_the_flags_version_and_reply():
    header = vu.HEADER.unpack(encode_reply(11, b"12345678"))
    assert header == vu.Header(11, 0x5, 8)


def test_struct_sizes_are_those_of_the_document():
    assert vu.HEADER.size == 12
    assert vu.NUMBER.size == 8
    assert vu.VRING_STATE.size == 8
    assert vu.VRING_ADDR.size == 40
    assert vu.MEMORY_REGION.size == 32
    assert vu.MEMORY_TABLE_HEAD.size == 8
    assert vu.SINGLE_REGION.size == 40
    assert vu.NOTHING.size == 0


def test_a_nested_struct_survives_packing():
    message = vu.SingleRegion(0, vu.MemoryRegion(1, 2, 3, 4))
    assert vu.SINGLE_REGION.unpack(vu.SINGLE_REGION.pack(message)) == message
    assert vu.SINGLE_REGION.pack(message)[8:] == vu.MEMORY_REGION.pack(message.region)


def test_the_used_ring_stands_before_the_avail_ring_in_an_address():
    addr = vu.VRING_ADDR.unpack(vu.VRING_ADDR.pack(vu.VringAddr(1, 2, 3, 4, 5, 6)))
    assert (addr.used_user_addr, addr.avail_user_addr) == (4, 5)
