"""A conversation in QMP, without sockets: what a client is answered, word for word."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostnet.protocol.qmp_session import QmpError, QmpSession

NEGOTIATE = b'{"execute": "qmp_capabilities"}'


def execute(name: str, arguments: dict[str, Any]) -> Any:
    if name == "fail":
        raise QmpError("no", "DeviceNotFound")
    return {"ran": name, "with": arguments}


def session(negotiated: bool = True) -> QmpSession:
    it = QmpSession(execute, (1, 2, 3), "vhostnet 1.2.3")
    if negotiated:
        assert answers(it, NEGOTIATE) == [{"return": {}}]
    return it


def answers(it: QmpSession, data: bytes) -> list[Any]:
    return lines(it.feed(data))


def lines(data: bytes) -> list[Any]:
    assert not data or data.endswith(b"\r\n")
    return [json.loads(line) for line in data.splitlines()]


def test_greeting():
    assert lines(session(False).greeting()) == [
        {
            "QMP": {
                "version": {
                    "qemu": {"major": 1, "minor": 2, "micro": 3},
                    "package": "vhostnet 1.2.3",
                },
                "capabilities": [],
            }
        }
    ]


def test_nothing_before_the_negotiation_and_no_second_one():
    it = session(False)
    assert it.event("DEVICE_CONNECTED", {}, 1.5) == b""
    (refused,) = answers(it, b'{"execute": "x", "id": 1}')
    assert refused == {
        "error": {
            "class": "CommandNotFound",
            "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
        },
        "id": 1,
    }
    assert answers(it, NEGOTIATE) == [{"return": {}}]
    assert answers(it, NEGOTIATE)[0]["error"]["class"] == "CommandNotFound"


def test_capabilities_that_are_not_there_are_refused():
    it = session(False)
    asked = b'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
    assert "oob" in answers(it, asked)[0]["error"]["desc"]
    assert it.event("X", {}, 1.0) == b""


def test_commands_are_answered_in_their_order_with_their_ids():
    data = (
        b'{"execute":"a","id":"x"}{"execute":"fail","id":[1]} {"execute":"b","arguments":{"n":1}}'
    )
    assert answers(session(), data) == [
        {"return": {"ran": "a", "with": {}}, "id": "x"},
        {"error": {"class": "DeviceNotFound", "desc": "no"}, "id": [1]},
        {"return": {"ran": "b", "with": {"n": 1}}},
    ]


def test_an_event_has_its_time():
    assert lines(session().event("DEVICE_CONNECTED", {"device": "dev0"}, 12.25)) == [
        {
            "event": "DEVICE_CONNECTED",
            "data": {"device": "dev0"},
            "timestamp": {"seconds": 12, "microseconds": 250000},
        }
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{}", "lacks member 'execute'"),
        (b'{"execute": 1}', "lacks member 'execute'"),
        (b'{"execute": "a", "arguments": []}', "must be an object"),
        (b'{"execute": "a", "control": {}}', "'control' is unexpected"),
        (b'{"exec-oob": "a"}', "'exec-oob' is unexpected"),
        (b"nonsense\n", "JSON parse error"),
    ],
)
def test_what_is_no_command_is_a_generic_error(text, why):
    (answer,) = answers(session(), text)
    assert answer["error"]["class"] == "GenericError"
    assert why in answer["error"]["desc"]


@given(data=st.binary(max_size=300))
def test_any_bytes_are_answered_in_lines_of_json(data):
    it = session()
    for answer in answers(it, data):
        assert answer.keys() <= {"return", "error", "id"}
    assert answers(it, b'\xff{"execute": "a"}')[-1]["return"]["ran"] == "a"
