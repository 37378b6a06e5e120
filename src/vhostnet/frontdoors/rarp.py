"""The announcement that a back-end makes for a guest which cannot make its own (RFC 903)."""

from __future__ import annotations

_ETH_P_RARP = b"\x80\x35"
_ETHERNET_IPV4 = b"\x00\x01\x08\x00\x06\x04"
_REVERSE_REQUEST = b"\x00\x03"
_MIN_FRAME = 60


def rarp_frame(mac: bytes) -> bytes:
    """A broadcast reverse-ARP request in which both hardware addresses are *mac* (6 bytes)."""
    body = _ETHERNET_IPV4 + _REVERSE_REQUEST + mac + bytes(4) + mac + bytes(4)
    return (b"\xff" * 6 + mac + _ETH_P_RARP + body).ljust(_MIN_FRAME, b"\0")
