"""The text of a trace: what people read, and that it is read back into what was said."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostnet.protocol.spelling import SpellingError
from vhostnet.protocol.vhost_user_session import RULES
from vhostnet.protocol.vhost_user_trace import (
    HEADING,
    Event,
    Exchange,
    read_exchange,
    read_trace,
    spell_exchange,
    stamp,
)
from vhostnet.uapi import vhost_user as vu

REQUESTS = st.one_of(st.sampled_from(sorted(RULES)), st.integers(1, 2**32 - 1))
REASONS = st.one_of(st.none(), st.text(min_size=1, max_size=40))


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    number = draw(REQUESTS)
    rule = RULES.get(number)
    payload = draw(st.binary(max_size=120))
    if rule is not None and draw(st.booleans()):  # of the right form
        payload = draw(st.binary(min_size=rule.layout.size, max_size=rule.layout.size))
        if rule.items is not None:
            size = rule.items.size * draw(st.integers(0, 3))
            payload += draw(st.binary(min_size=size, max_size=size))
    fds = tuple(draw(st.lists(st.integers(0, 2**31 - 1), max_size=3)))
    files = draw(st.one_of(st.just(()), st.tuples(*(st.text(max_size=20) for _ in fds))))
    size = vu.NUMBER.size if rule is None or rule.reply is None else rule.reply.size
    is_end = draw(st.booleans())
    answer = None if is_end else draw(st.none() | st.binary(min_size=size, max_size=size))
    flags = draw(st.sampled_from([1, 9]) | st.integers(0, 2**32 - 1))
    return Exchange(number, flags, payload, fds, files, answer, draw(REASONS), is_end, 0.5)


@given(exchanges())
def test_every_line_is_read_back_into_what_was_said(exchange: Exchange) -> None:
    line = spell_exchange(exchange)
    again = read_exchange(line)
    assert "\n" not in line
    assert line.isascii()
    for part in ("number", "flags", "payload", "fds", "answer", "is_end", "seconds"):
        assert getattr(again, part) == getattr(exchange, part), part
    assert (again.error is None) == (exchange.error is None)


def line(number: int, payload: bytes = b"", **more: object) -> str:
    return spell_exchange(Exchange(number, 1, payload, seconds=12e-6, **more))  # type: ignore[arg-type]


def test_feature_bits_have_names() -> None:
    answer = vu.NUMBER.pack(vu.Number(1 << 15 | 1 << 30 | 1 << 32 | 1 << 62))
    assert line(vu.VHOST_USER_GET_FEATURES, answer=answer) == (
        "GET_FEATURES() = 0x4000000140008000<MRG_RXBUF|PROTOCOL_FEATURES|VERSION_1|bit62>"
        " <0.000012>"
    )
    acked = vu.NUMBER.pack(vu.Number(0b1001))
    assert line(vu.VHOST_USER_SET_PROTOCOL_FEATURES, acked) == (
        "SET_PROTOCOL_FEATURES(0x9<MQ|REPLY_ACK>) <0.000012>"
    )
    assert line(vu.VHOST_USER_SET_STATUS, vu.NUMBER.pack(vu.Number(0xF))) == (
        "SET_STATUS(0xf<ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK>) <0.000012>"
    )


def test_regions_are_ranges_and_descriptors_say_what_they_are() -> None:
    payload = vu.MEMORY_TABLE_HEAD.pack(vu.MemoryTableHead(2, 0))
    payload += vu.MEMORY_REGION.pack(vu.MemoryRegion(0, 0x80000000, 0x7F0000000000, 0))
    payload += vu.MEMORY_REGION.pack(vu.MemoryRegion(1 << 32, 0x1000, 0x7F1000000000, 0x80000000))
    text = line(
        vu.VHOST_USER_SET_MEM_TABLE, payload, fds=(12, 13), files=("memfd:mem", "memfd:mem (x)")
    )
    assert text == (
        "SET_MEM_TABLE(nregions=2, [{guest_phys_addr=0x0, memory_size=0x80000000<0x0..0x7fffffff>,"
        " userspace_addr=0x7f0000000000, mmap_offset=0x0}, {guest_phys_addr=0x100000000,"
        " memory_size=0x1000<0x100000000..0x100000fff>, userspace_addr=0x7f1000000000,"
        " mmap_offset=0x80000000}], fds=[12<memfd:mem>, 13<memfd:mem__x_>]) <0.000012>"
    )


def test_what_was_refused_says_why() -> None:
    state = vu.VRING_STATE.pack(vu.VringState(0, 3))
    refused = Exchange(
        8, 9, state, answer=vu.NUMBER.pack(vu.Number(1)), error="3 is no <size>", seconds=0.0
    )
    assert spell_exchange(refused) == (
        "SET_VRING_NUM(index=0, num=3, NEED_REPLY) = 1 (3 is no  size ) <0.000000>"
    )
    closed = Exchange(8, 1, b"\1", error="payload of 1 bytes, must be 8", is_end=True)
    assert spell_exchange(closed) == (
        "SET_VRING_NUM(payload=01) = ? (payload of 1 bytes, must be 8) <0.000000>"
    )


def test_a_trace_is_read_as_a_whole() -> None:
    when = datetime(2026, 11, 22, 17, 3, 22, 5)
    said = [Event("connected: pid 7"), Exchange(3, 1, b""), Event("disconnected")]
    lines = [HEADING, *(stamp(when, "dev0", part) for part in said), ""]
    assert lines[2] == "2026-11-22T17:03:22.000005 dev0 SET_OWNER() <0.000000>"
    assert list(read_trace(f"{text}\n" for text in lines)) == [("dev0", part) for part in said]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# another file", "line 1"),
        (f"{HEADING}\nt dev0 SET_OWNER()", "no time"),
        (f"{HEADING}\nt dev0 SET_OWNE() <0.000001>", "no message SET_OWNE"),
        (f"{HEADING}\nt dev0 SET_VRING_NUM(index=0, nun=1) <0.000001>", "no field nun"),
        (f"{HEADING}\nt dev0 SET_VRING_NUM(index=0, num=0x100000000) <0.000001>", "does not fit"),
        (f"{HEADING}\nt dev0 SET_VRING_NUM(index=0, num=x) <0.000001>", "is no VringState"),
        (f"{HEADING}\nt dev0 SET_VRING_NUM(payload=0x1) <0.000001>", "not hexadecimal"),
        (f"{HEADING}\nt dev0 SET_OWNER([{{}}]) <0.000001>", "nothing follows"),
        (f"{HEADING}\ngarbage", "line 2"),
    ],
)
def test_what_is_no_trace_says_which_line_is_wrong(text: str, why: str) -> None:
    with pytest.raises(SpellingError, match=why):
        list(read_trace(text.splitlines()))
