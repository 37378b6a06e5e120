"""Bytes and descriptors in, vhost-user requests out; replies the other way round.

Sans-IO: descriptors are opaque integers here, and nothing in this file can close one.

Who owns a descriptor.  `feed` takes ownership of those it is given.  A `Request` takes them
over from the codec: `Request.fds` lists what nobody has taken yet, and whoever holds the
request closes the rest.  What the codec still holds (a half-read message, one that was
rejected) is given back by `drain_fds`, which must be called when the connection ends.

Which message a descriptor belongs to.  The document attaches it to the first byte of the
header.  A stream socket does not keep such borders: one `recvmsg` over two messages tells no
more than that the descriptors came with one of them.  So the reader asks `wanted` and never
reads past the end of a message; `feed` gives the descriptors of a chunk to the message that
the chunk's first byte is part of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vhostnet.errors import PeerError
from vhostnet.uapi.vhost_user import (
    HEADER,
    REQUEST_NAMES,
    VHOST_USER_NEED_REPLY_MASK,
    VHOST_USER_REPLY_MASK,
    VHOST_USER_VERSION,
    VHOST_USER_VERSION_MASK,
    Header,
)

# The largest message that a front-end of a network card has reason to send is SET_MEM_TABLE with
# 32 regions, 1032 bytes; rust-vmm's bound is the same 4096.
MAX_PAYLOAD_SIZE = 4096

# QEMU sends up to 8 with SET_MEM_TABLE, front-ends built on rust-vmm up to 32.
MAX_FDS = 32


@dataclass(slots=True)
class Request:
    """One message of the front-end.

    Attributes:
        number: request number, known or not.
        flags: header flags as sent; the version has been checked.
        payload: `size` bytes.
        fds: descriptors that came with it and that nobody has taken yet.
    """

    number: int
    flags: int
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The request's name as in the document, for people."""
        return REQUEST_NAMES.get(self.number, f"request {self.number}")

    @property
    def needs_reply(self) -> bool:
        """Whether the front-end asks for an acknowledgement (REPLY_ACK)."""
        return bool(self.flags & VHOST_USER_NEED_REPLY_MASK)


class Codec:
    """Cut a byte stream into requests.

    Fed whole or byte by byte, the outcome is the same.  The first thing that can not be a
    message sets `error`; requests before it are returned as usual, nothing after it is read.
    """

    def __init__(self) -> None:
        self.error: PeerError | None = None
        self._buffer = bytearray()
        self._header: Header | None = None
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """Bytes up to the end of the current header or payload: read no more at once."""
        size = HEADER.size if self._header is None else self._header.size
        return size - len(self._buffer)

    @property
    def is_mid_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return bool(self._buffer) or self._header is not None

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Request]:
        """Take the next bytes, and the descriptors that came with the first of them.

        Returns:
            The requests that are now complete, in order.  Check `error` after handling them.
        """
        self._fds.extend(fds)
        requests: list[Request] = []
        # Here and not at the header: they may trickle in with every byte of the payload.
        if len(self._fds) > MAX_FDS and self.error is None:
            self.error = PeerError(f"more than {MAX_FDS} file descriptors with one message")
        view = memoryview(data)
        while view and self.error is None:
            taken = self.wanted
            self._buffer += view[:taken]
            view = view[taken:]
            self._advance(requests)
        return requests

    def drain_fds(self) -> list[int]:
        """Give back the descriptors of a message that will never be complete."""
        fds, self._fds = self._fds, []
        return fds

    def _advance(self, requests: list[Request]) -> None:
        """Move over the border if header or payload is complete."""
        if self._header is None and self.wanted == 0:
            header = HEADER.unpack(bytes(self._buffer))
            self.error = self._check(header)
            if self.error is None:
                self._header = header
                self._buffer.clear()
        if self._header is not None and self.wanted == 0:
            requests.append(
                Request(
                    self._header.request,
                    self._header.flags,
                    bytes(self._buffer),
                    self.drain_fds(),
                )
            )
            self._header = None
            self._buffer.clear()

    def _check(self, header: Header) -> PeerError | None:
        """Section "Header": what must hold before a single byte of payload is believed."""
        name = REQUEST_NAMES.get(header.request, f"request {header.request}")
        version = header.flags & VHOST_USER_VERSION_MASK
        if version != VHOST_USER_VERSION:
            return PeerError(
                f"{name}: header says version {version}, only {VHOST_USER_VERSION} exists"
            )
        if header.size > MAX_PAYLOAD_SIZE:
            return PeerError(
                f"{name}: payload of {header.size} bytes, the limit is {MAX_PAYLOAD_SIZE}"
            )
        return None


def encode_message(number: int, flags: int, payload: bytes = b"") -> bytes:
    """Header and payload as one piece."""
    return HEADER.pack(Header(number, flags, len(payload))) + payload


def encode_reply(number: int, payload: bytes) -> bytes:
    """The reply to a request.

    The flags are exactly version and REPLY (0x5): QEMU and UML compare for equality, and a
    reply that still carries NEED_REPLY is a broken protocol to them.
    """
    return encode_message(number, VHOST_USER_VERSION | VHOST_USER_REPLY_MASK, payload)
