"""The one request that a scraper makes, and all that others send instead."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostnet.protocol.http_request import (
    MAX_REQUEST,
    BadRequest,
    Request,
    parse_request,
    response,
)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("GET /metrics HTTP/1.1", "/metrics"),
        ("GET /metrics?name[]=a HTTP/1.0", "/metrics"),
        ("GET http://host:9/metrics HTTP/1.1", "/metrics"),
        ("GET http://host HTTP/1.1", "/"),
    ],
)
def test_the_path_of_a_request(line: str, path: str) -> None:
    for end in ("\r\n\r\n", "\r\nHost: a\r\nAccept: */*\r\n\r\n", "\n\n"):
        assert parse_request((line + end).encode()) == Request("GET", path)


def test_a_request_in_pieces_is_waited_for() -> None:
    whole = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    for n in range(len(whole)):
        assert parse_request(whole[:n]) is None
    assert parse_request(whole) == Request("GET", "/metrics")


@pytest.mark.parametrize(
    "line",
    [b"", b"GET", b"GET /metrics", b"GET /metrics HTTP/2", b"get / HTTP/1.1", b"GET  HTTP/1.1",
     b"GET / a HTTP/1.1", b"\xff / HTTP/1.1", b"\x16\x03\x01\x02"],
)  # fmt: skip
def test_what_is_no_request_is_told_so(line: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(line + b"\r\n\r\n")
    assert caught.value.status == HTTPStatus.BAD_REQUEST


def test_a_request_without_an_end_is_too_long_at_some_point() -> None:
    head = b"GET / HTTP/1.1\r\nA: "
    assert parse_request(head + b"a" * (MAX_REQUEST - len(head))) is None
    with pytest.raises(BadRequest) as caught:
        parse_request(head + b"a" * MAX_REQUEST)
    assert caught.value.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_not(data: bytes) -> None:
    try:
        request = parse_request(data + b"\r\n\r\n")
    except BadRequest:
        return
    assert request is not None
    assert request.method.isupper()


def test_a_response_says_how_long_it_is_and_that_it_is_the_last() -> None:
    head, _, body = response(HTTPStatus.OK, b"abc", "text/x").partition(b"\r\n\r\n")
    assert body == b"abc"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/x",
        b"Content-Length: 3",
        b"Connection: close",
    ]
    assert response(HTTPStatus.OK, b"abc", is_head=True).endswith(b"\r\n\r\n")
