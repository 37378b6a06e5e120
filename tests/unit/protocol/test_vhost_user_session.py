"""Every message, from the table that the session itself uses."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_device import FEATURES, FakeDevice
from vhostnet.errors import HostError, PeerError
from vhostnet.protocol.vhost_user_codec import MAX_FDS, Codec, Request, encode_message
from vhostnet.protocol.vhost_user_session import (
    IOMMU_PROTOCOL_FEATURES_MASK,
    OFFERED_PROTOCOL_FEATURES_MASK,
    RULES,
    Answer,
    Rule,
    Session,
)
from vhostnet.uapi import vhost_user as vu

PLAIN, NEED_REPLY = 0x1, 0x9
U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")
ADDR = struct.Struct("=IIQQQQ")
REGION = struct.Struct("=QQQQ")

EVERY_FEATURE = OFFERED_PROTOCOL_FEATURES_MASK | IOMMU_PROTOCOL_FEATURES_MASK

# Independent of the code under test: what the document says, message by message.
DOCUMENT = {
    1: ("GET_FEATURES", 0, "reply", None),
    2: ("SET_FEATURES", 8, "ack", None),
    3: ("SET_OWNER", 0, "ack", None),
    4: ("RESET_OWNER", 0, "ack", None),
    5: ("SET_MEM_TABLE", 8, "ack", None),
    6: ("SET_LOG_BASE", 16, "reply", 1),
    7: ("SET_LOG_FD", 0, "ack", 1),
    8: ("SET_VRING_NUM", 8, "ack", None),
    9: ("SET_VRING_ADDR", 40, "ack", None),
    10: ("SET_VRING_BASE", 8, "ack", None),
    11: ("GET_VRING_BASE", 8, "reply", None),
    12: ("SET_VRING_KICK", 8, "ack", None),
    13: ("SET_VRING_CALL", 8, "ack", None),
    14: ("SET_VRING_ERR", 8, "ack", None),
    15: ("GET_PROTOCOL_FEATURES", 0, "reply", None),
    16: ("SET_PROTOCOL_FEATURES", 8, "ack", None),
    17: ("GET_QUEUE_NUM", 0, "reply", 0),
    18: ("SET_VRING_ENABLE", 8, "ack", None),
    19: ("SEND_RARP", 8, "ack", 2),
    20: ("NET_SET_MTU", 8, "ack", 4),
    21: ("SET_BACKEND_REQ_FD", 0, "ack", 5),
    22: ("IOTLB_MSG", 32, "ack", 5),
    34: ("RESET_DEVICE", 0, "ack", 13),
    36: ("GET_MAX_MEM_SLOTS", 0, "reply", 15),
    37: ("ADD_MEM_REG", 40, "ack", 15),
    38: ("REM_MEM_REG", 40, "ack", 15),
    39: ("SET_STATUS", 8, "ack", 16),
    40: ("GET_STATUS", 0, "reply", 16),
}

VALID_PAYLOADS = {
    "SET_FEATURES": U64.pack(FEATURES),
    "SET_MEM_TABLE": STATE.pack(1, 0) + REGION.pack(0, 4096, 0x7F0000000000, 0),
    "SET_LOG_BASE": struct.pack("=QQ", 0x1000, 0x2000),
    "SET_VRING_NUM": STATE.pack(1, 256),
    "SET_VRING_ADDR": ADDR.pack(1, 0, 0x1000, 0x3000, 0x2000, 0),
    "SET_VRING_BASE": STATE.pack(1, 0x80008000),
    "GET_VRING_BASE": STATE.pack(1, 0xDEADBEEF),
    "SET_VRING_KICK": U64.pack(1),
    "SET_VRING_CALL": U64.pack(1),
    "SET_VRING_ERR": U64.pack(1),
    "SET_PROTOCOL_FEATURES": U64.pack(EVERY_FEATURE),
    "SET_VRING_ENABLE": STATE.pack(1, 1),
    "SEND_RARP": b"\x52\x54\x00\x12\x34\x56\x00\x00",
    "NET_SET_MTU": U64.pack(1400),
    "IOTLB_MSG": struct.pack("=QQQBB6x", 0x1000, 4096, 0x7F0000000000, 3, 2),
    "ADD_MEM_REG": U64.pack(0) + REGION.pack(0, 4096, 0x7F0000000000, 0),
    "REM_MEM_REG": U64.pack(0) + REGION.pack(0, 4096, 0x7F0000000000, 0),
    "SET_STATUS": U64.pack(0xF),
}
VALID_FDS = {
    "SET_MEM_TABLE": [50],
    "SET_LOG_BASE": [50],
    "SET_LOG_FD": [50],
    "SET_BACKEND_REQ_FD": [50],
    "SET_VRING_KICK": [50],
    "SET_VRING_CALL": [50],
    "SET_VRING_ERR": [50],
    "ADD_MEM_REG": [50],
}

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
WITH_INDEX = [
    (number, name)
    for number, (name, *_) in DOCUMENT.items()
    if "VRING" in name and name not in ("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR")
]
WITH_FD = [(12, "SET_VRING_KICK"), (13, "SET_VRING_CALL"), (14, "SET_VRING_ERR")]


def negotiated(device: FakeDevice, features: int = EVERY_FEATURE) -> Session:
    session = Session(device)
    assert session.handle(Request(16, PLAIN, U64.pack(features))) == b""
    return session


def valid(rule: Rule, flags: int = PLAIN) -> Request:
    fds = list(VALID_FDS.get(rule.name, []))
    return Request(rule.number, flags, VALID_PAYLOADS.get(rule.name, b""), fds)


def refused(request: Request) -> tuple[str, FakeDevice]:
    """Handle a bad request both ways; returns why, and the device that saw the first."""
    fds = list(request.fds)
    device = FakeDevice()
    session = negotiated(device)
    with pytest.raises(PeerError) as caught:
        session.handle(request)
    text = str(caught.value)
    assert text.startswith(request.name + ": ")
    assert "\n" not in text
    assert sorted(request.fds + device.owned) == fds

    reports: list[str] = []
    again = FakeDevice()
    session = Session(again, reports.append)
    session.handle(Request(16, PLAIN, U64.pack(EVERY_FEATURE)))
    asking = Request(request.number, NEED_REPLY, request.payload, list(fds))
    rule = RULES.get(request.number)
    if rule is not None and rule.answer is Answer.REPLY:
        with pytest.raises(PeerError):
            session.handle(asking)
    else:
        assert session.handle(asking) == encode_message(request.number, 0x5, U64.pack(1))
        assert reports == [text]
    assert sorted(asking.fds + again.owned) == fds
    return text, device


def test_the_table_says_what_the_document_says():
    assert set(RULES) == set(DOCUMENT)
    for number, (name, size, answer, feature) in DOCUMENT.items():
        rule = RULES[number]
        assert (rule.name, rule.layout.size, rule.feature) == (name, size, feature)
        assert rule.answer.name.lower() == answer


@every_rule
def test_a_valid_message_without_need_reply_is_answered_only_if_it_has_a_reply(rule):
    device = FakeDevice()
    request = valid(rule)
    answer = negotiated(device).handle(request)
    if rule.answer is Answer.REPLY:
        header = vu.HEADER.unpack(answer)
        assert header == vu.Header(rule.number, 0x5, len(answer) - 12)
    else:
        assert answer == b""
    assert sorted(request.fds + device.owned) == VALID_FDS.get(rule.name, [])


@every_rule
def test_a_valid_message_with_need_reply_gets_one_answer_with_flags_5(rule):
    answer = negotiated(FakeDevice()).handle(valid(rule, NEED_REPLY))
    header = vu.HEADER.unpack(answer)
    assert header == vu.Header(rule.number, 0x5, 8)
    assert len(answer) == 20
    if rule.answer is Answer.ACK:
        assert answer[12:] == U64.pack(0)


@every_rule
def test_need_reply_means_nothing_before_reply_ack_is_negotiated(rule):
    session = negotiated(FakeDevice(), EVERY_FEATURE & ~(1 << 3))
    if rule.number == 16:
        return  # this one negotiates it; see the test about User Mode Linux
    answer = session.handle(valid(rule, NEED_REPLY))
    assert bool(answer) == (rule.answer is Answer.REPLY)


def test_the_message_that_negotiates_acks_is_itself_acked():
    session = Session(FakeDevice())
    answer = session.handle(Request(16, NEED_REPLY, U64.pack(1 << 3)))
    assert answer == encode_message(16, 0x5, U64.pack(0))


@every_rule
def test_a_payload_of_another_size_is_an_error(rule):
    payload = VALID_PAYLOADS.get(rule.name, b"")
    for wrong in (payload[:-1], payload + b"\0", b""):
        if wrong == payload or (rule.is_longer_allowed and len(wrong) > len(payload)):
            continue
        text, device = refused(
            Request(rule.number, PLAIN, wrong, list(VALID_FDS.get(rule.name, [])))
        )
        assert "payload of" in text
        assert device.calls == []


@every_rule
def test_descriptors_that_do_not_belong_to_the_message_are_an_error(rule):
    n = len(VALID_FDS.get(rule.name, []))
    for count in {0, 1, 2, MAX_FDS} - {n}:
        if rule.name == "REM_MEM_REG" and count == 1:
            continue
        fds = list(range(60, 60 + count))
        _, device = refused(Request(rule.number, PLAIN, VALID_PAYLOADS.get(rule.name, b""), fds))
        assert device.calls == []


@every_rule
def test_a_message_of_a_feature_that_was_not_negotiated_is_an_error(rule):
    if rule.feature is None:
        return
    device = FakeDevice()
    session = negotiated(device, OFFERED_PROTOCOL_FEATURES_MASK & ~(1 << rule.feature))
    request = valid(rule)
    with pytest.raises(PeerError, match="was not negotiated"):
        session.handle(request)
    assert request.fds == VALID_FDS.get(rule.name, [])
    assert device.calls == []


@pytest.mark.parametrize(("number", "name"), WITH_INDEX)
@pytest.mark.parametrize("index", [4, 0xFF, 0x100, 0x10000, 0x10001, 0xFFFFFFFF])
def test_a_ring_index_out_of_range_is_an_error_however_large(number, name, index):
    payload = struct.pack("=I", index) + VALID_PAYLOADS[name][4:]
    text, device = refused(Request(number, PLAIN, payload))
    assert f"ring {index} of a device with 4 rings (2 queue pairs)" in text
    assert device.calls == []


@pytest.mark.parametrize("number", [12, 13, 14])
@pytest.mark.parametrize("value", [4, 0xFF, 0x200, 0x10000, 0x10001, 1 << 32, 1 << 63])
def test_a_kick_call_or_err_for_no_ring_is_an_error_and_gives_its_descriptor_back(number, value):
    _, device = refused(Request(number, PLAIN, U64.pack(value), [70]))
    assert device.calls == []
    assert device.owned == []


@pytest.mark.parametrize(("number", "name"), WITH_FD)
def test_the_no_fd_bit_and_the_descriptors_must_agree(number, name):
    refused(Request(number, PLAIN, U64.pack(0x101), [70]))
    refused(Request(number, PLAIN, U64.pack(0x1), []))
    device = FakeDevice()
    negotiated(device).handle(Request(number, PLAIN, U64.pack(0x103), []))
    assert device.calls == [(name.lower(), 3, None)]


@pytest.mark.parametrize(("number", "name"), WITH_FD)
def test_the_device_owns_the_descriptor_even_if_it_raises(number, name):
    device = FakeDevice()
    device.failure = PeerError("no eventfd")
    request = Request(number, PLAIN, U64.pack(1), [70])
    with pytest.raises(PeerError, match=f"{name}: no eventfd"):
        Session(device).handle(request)
    assert (request.fds, device.owned) == ([], [70])


@pytest.mark.parametrize("number", [n for n in range(64) if n not in DOCUMENT] + [0xFFFFFFFF])
def test_a_message_that_is_not_offered_is_refused_by_name(number):
    text, device = refused(Request(number, PLAIN, b"12345678", [80, 81]))
    assert text == f"{vu.REQUEST_NAMES.get(number, f'request {number}')}: " + (
        "this back-end does not offer it"
    )
    assert device.calls == []


def test_only_what_is_wired_is_offered():
    answer = Session(FakeDevice()).handle(Request(15, PLAIN))
    bits = U64.unpack(answer[12:])[0]
    assert [bit for bit in range(64) if bits >> bit & 1] == [0, 1, 2, 3, 4, 5, 13, 15, 16]


def test_the_back_end_channel_is_offered_only_with_an_iommu():
    device = FakeDevice()
    device.iommu = False
    bits = U64.unpack(Session(device).handle(Request(15, PLAIN))[12:])[0]
    assert not bits >> 5 & 1


def test_features_that_were_never_offered_are_refused():
    assert "0x1" in refused(Request(2, PLAIN, U64.pack(FEATURES | 1)))[0]
    for bit in set(range(64)) - {0, 1, 2, 3, 4, 5, 13, 15, 16}:
        refused(Request(16, PLAIN, U64.pack(1 << bit)))


def test_a_front_end_without_protocol_features_gets_all_rings_enabled():
    device = FakeDevice()
    Session(device).handle(Request(2, PLAIN, U64.pack(1 << 32)))
    assert device.calls == [
        ("set_features", 1 << 32),
        *(("set_vring_enable", index, True) for index in range(4)),
    ]
    device = FakeDevice()
    Session(device).handle(Request(2, PLAIN, U64.pack(FEATURES)))
    assert device.calls == [("set_features", FEATURES)]


def test_rings_may_be_enabled_before_anything_else():
    device = FakeDevice()
    assert Session(device).handle(Request(18, PLAIN, STATE.pack(3, 0))) == b""
    assert device.calls == [("set_vring_enable", 3, False)]
    refused(Request(18, PLAIN, STATE.pack(3, 2)))


@pytest.mark.parametrize(("n_rings", "answer"), [(2, 2), (8, 8), (254, 254), (256, 254)])
def test_the_queue_number_is_that_of_the_rings_up_to_254(n_rings, answer):
    session = negotiated(FakeDevice(n_rings))
    assert session.handle(Request(17, PLAIN))[12:] == U64.pack(answer)


def test_the_base_that_is_asked_for_may_come_with_garbage():
    answer = Session(FakeDevice()).handle(valid(RULES[11]))
    assert answer == encode_message(11, 0x5, STATE.pack(1, 0x80000001))


def test_a_memory_table_may_be_longer_than_its_regions():
    device = FakeDevice()
    payload = VALID_PAYLOADS["SET_MEM_TABLE"] + bytes(32)  # 72 bytes: User Mode Linux
    request = Request(5, PLAIN, payload, [50])
    Session(device).handle(request)
    region = vu.MemoryRegion(0, 4096, 0x7F0000000000, 0)
    assert device.calls == [("set_mem_table", (region,), (50,))]
    assert request.fds == [50]


def test_a_memory_table_may_have_32_regions_and_no_fewer_descriptors():
    regions = b"".join(REGION.pack(i * 4096, 4096, i * 4096, 0) for i in range(32))
    device = FakeDevice()
    request = Request(5, PLAIN, STATE.pack(32, 0) + regions, list(range(100, 132)))
    Session(device).handle(request)
    assert device.calls[0][2] == tuple(range(100, 132))
    text, _ = refused(Request(5, PLAIN, STATE.pack(32, 0) + regions, list(range(100, 131))))
    assert "share=on" in text


@pytest.mark.parametrize("n", [2, 33, 0x08000001, 0xFFFFFFFF])
def test_a_memory_table_must_hold_the_regions_that_it_names(n):
    payload = STATE.pack(n, 0) + REGION.pack(0, 4096, 0, 0)
    assert "payload of 40 bytes" in refused(Request(5, PLAIN, payload, [50]))[0]


def test_a_removed_region_may_come_with_its_descriptor_which_is_given_back():
    device = FakeDevice()
    request = Request(38, PLAIN, VALID_PAYLOADS["REM_MEM_REG"], [50])
    negotiated(device).handle(request)
    assert device.names() == ["rem_mem_reg"]
    assert request.fds == [50]


@pytest.mark.parametrize("mtu", [0, 67, 65536, 1 << 63])
def test_an_mtu_that_no_network_has_is_refused(mtu):
    assert f"MTU {mtu}" in refused(Request(20, PLAIN, U64.pack(mtu)))[0]


def test_a_rarp_names_the_first_six_bytes():
    device = FakeDevice()
    negotiated(device).handle(valid(RULES[19]))
    assert device.calls == [("send_rarp", b"\x52\x54\x00\x12\x34\x56")]


def test_the_status_byte_is_kept_and_is_a_byte():
    session = negotiated(FakeDevice())
    session.handle(valid(RULES[39]))
    assert session.handle(Request(40, PLAIN))[12:] == U64.pack(0xF)
    refused(Request(39, PLAIN, U64.pack(0x100)))


def test_a_host_that_refuses_ends_the_session_as_the_hosts_fault():
    device = FakeDevice()
    device.failure = HostError("mmap: Cannot allocate memory", 12)
    with pytest.raises(HostError, match="SET_MEM_TABLE: mmap: Cannot allocate memory"):
        Session(device).handle(valid(RULES[5]))
    assert negotiated_refusal(device) == encode_message(5, 0x5, U64.pack(1))


def negotiated_refusal(device: FakeDevice) -> bytes:
    return negotiated(device).handle(valid(RULES[5], NEED_REPLY))


def test_a_bug_in_the_device_is_not_turned_into_an_answer():
    device = FakeDevice()
    device.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        Session(device).handle(valid(RULES[3], NEED_REPLY))


messages = st.builds(
    encode_message,
    st.one_of(st.sampled_from(sorted(RULES)), st.integers(0, 50)),
    st.sampled_from([PLAIN, NEED_REPLY]),
    st.one_of(
        st.sampled_from([b"", *VALID_PAYLOADS.values()]),
        st.builds(STATE.pack, st.integers(0, 5), st.integers(0, 2)),
        st.builds(U64.pack, st.integers(0, 0x205)),
        st.binary(max_size=80),
    ),
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.one_of(messages, st.binary(min_size=1, max_size=20)), st.integers(0, 3)),
        max_size=20,
    )
)
def test_any_bytes_and_descriptors_give_answers_or_a_peer_error_and_nothing_leaks(stream):
    device = FakeDevice(close_fd=lambda _fd: None)
    codec, session = Codec(), Session(device)
    session.handle(Request(16, PLAIN, U64.pack(EVERY_FEATURE)))
    next_fd, closed = 100, []
    for data, n in stream:
        requests = codec.feed(data, range(next_fd, next_fd + n))
        next_fd += n
        try:
            for request in requests:
                answer = session.handle(request)
                assert answer == b"" or vu.HEADER.unpack(answer).flags == 0x5
        except PeerError:
            break
        finally:
            for request in requests:
                closed += request.fds
        if codec.error is not None:
            break
    closed += codec.drain_fds()
    assert sorted(closed + device.owned) == list(range(100, next_fd))
