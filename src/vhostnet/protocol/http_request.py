"""As much of HTTP/1.1 as a scrape needs (RFC 9112), sans-IO: one request, one response, the end.

What a client says beside the first line does not matter to us, so it is only looked for where it
ends.  Every connection is closed after the response, which is also its length's second witness.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

#: More than any scraper sends.
MAX_REQUEST = 8192
_END = b"\r\n\r\n"
_LENIENT_END = b"\n\n"


@dataclass(frozen=True, slots=True)
class Request:
    """The first line of a request, the query of its target taken off."""

    method: str
    path: str


class BadRequest(Exception):
    """It cannot be answered with more than `status`."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def parse_request(data: bytes) -> Request | None:
    """The request that *data* begins with; None: more has to come.

    Raises:
        BadRequest: it is too long, or no HTTP/1 request.
    """
    if _END not in data and _LENIENT_END not in data:
        if len(data) > MAX_REQUEST:
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return None
    words = data.split(b"\n", 1)[0].rstrip(b"\r").split(b" ")
    try:
        method, target, version = (word.decode("ascii") for word in words)
    except ValueError:
        raise BadRequest(HTTPStatus.BAD_REQUEST) from None
    if not version.startswith("HTTP/1.") or not method.isupper() or not target:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    path = target.split("?", 1)[0]
    if "://" in path:  # the absolute form, to proxies
        path = "/" + path.split("://", 1)[1].partition("/")[2]
    return Request(method, path)


def response(
    status: HTTPStatus,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    *,
    is_head: bool = False,
    allow: str = "",
) -> bytes:
    """A whole response; to HEAD, without its body."""
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *([f"Allow: {allow}"] if allow else []),
    ]
    return "\r\n".join(lines).encode() + _END + (b"" if is_head else body)
