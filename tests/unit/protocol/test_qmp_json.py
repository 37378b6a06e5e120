"""The stream of JSON objects: any cut of any bytes gives the same objects and errors."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vhostnet.protocol.qmp_json import MAX_DEPTH, MAX_SIZE, JsonError, JsonStream

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"\\{}', max_size=4), inner)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), VALUES, max_size=4)


def parse(*pieces: bytes) -> list[object]:
    """What comes of bytes: objects, and the texts of errors."""
    stream = JsonStream()
    found = [item for piece in pieces for item in stream.feed(piece)]
    return [str(item) if isinstance(item, JsonError) else item for item in found]


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


@given(
    objects=st.lists(OBJECTS, max_size=5),
    between=st.sampled_from([b"", b"\n", b"\r\n", b" \t "]),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_objects_come_out_as_they_went_in_however_they_are_cut(objects, between, ascii_only, cuts):
    data = between.join(json.dumps(o, ensure_ascii=ascii_only).encode() for o in objects)
    assert parse(*in_pieces(data, cuts)) == objects


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 10_000), max_size=12))
@example(data=b'{"a": "\\\xff"}{}', cuts=[8])
@example(data=b'"{}\n{}', cuts=[])
def test_any_bytes_give_the_same_whatever_the_cuts(data, cuts):
    assert parse(*in_pieces(data, cuts)) == parse(data)


@given(data=st.binary(max_size=200), following=OBJECTS)
def test_after_a_resync_byte_the_next_object_is_understood(data, following):
    assert parse(data + b"\xff" + json.dumps(following).encode())[-1:] == [following]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"hello world\n", "an object was expected"),
        (b"}\n", "an object was expected"),
        (b'{"a": "b\n', "control character"),
        (b'{"a": "b\x00c"}\n', "control character"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": 18446744073709551616}', "64 bits"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "64 bits"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": NaN}', "no JSON"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": ["\\udc00"]}', "surrogate"),
        (b'{"\xc3": 1}', "decode"),
        (b"{'a': 1}", "Expecting"),
        (b"{]", "Expecting"),
        (b"[1]", "must be a JSON object"),
        (b"[" * (MAX_DEPTH + 1) + b"\n", "nested deeper"),
        (b'{"a": "' + b"x" * (MAX_SIZE + 100) + b'"}\n', "longer than"),
        (b'{"a": \xff', "not finished"),
        (b'{"a": "b\xff', "not finished"),
    ],
)
def test_what_is_no_object_is_one_error_and_the_next_line_is_understood(text, why):
    *errors, last = parse(*(text[i : i + 512] for i in range(0, len(text), 512)), b'{"x": 1}')
    assert last == {"x": 1}
    assert len(errors) == 1
    assert why in str(errors[0])


def test_what_never_ends_is_not_kept():
    stream = JsonStream()
    for byte in (b"[", b'{"a', b"x", b"1"):
        for _ in range(200):
            stream.feed(byte * 4096)
        assert len(stream._buffer) <= MAX_SIZE + 4096
        stream.feed(b"\xff")
