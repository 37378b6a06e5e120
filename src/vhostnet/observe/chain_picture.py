"""One chain of descriptors as the specification draws it, and the first rule that it breaks.

The same rules, in the same order, as the data path's `get_vq_desc`, written to be read: a test
compares the two over generated rings.  VIRTIO 1.2 sections 2.7.5 and 2.8.6.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vhostnet.datapath.codes import (
    RING_ERRORS,
    RING_FORBIDDEN,
    RING_INDIRECT_LEN,
    RING_INDIRECT_NESTED,
    RING_INDIRECT_OVERRUN,
    RING_INDIRECT_TOO_BIG,
    RING_INDIRECT_UNMAPPED,
    RING_MISS,
    RING_OUT_AFTER_IN,
    RING_TOO_MANY_IOVS,
    RING_UNMAPPED,
)
from vhostnet.datapath.descriptors import MAX_INDIRECT
from vhostnet.datapath.layout import UIO_MAXIOV, VHOST_ACCESS_RO, VHOST_ACCESS_WO
from vhostnet.uapi.virtio import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_DESC_SIZE,
)

from .guest_bytes import GuestBytes

_FLAG_NAMES = ((VRING_DESC_F_NEXT, "NEXT"), (VRING_DESC_F_WRITE, "WRITE"),
               (VRING_DESC_F_INDIRECT, "INDIRECT"))  # fmt: skip
WAITS_FOR_IOTLB = "waits for the front-end: an address is not in the IOTLB"


class Descriptor(NamedTuple):
    """16 bytes of a table; `last` is `next` in a split ring, and nothing in a packed one."""

    address: int
    length: int
    flags: int
    last: int


_SPLIT = struct.Struct("<QIHH")
_PACKED = struct.Struct("<QIHH")


def split_descriptor(raw: bytes) -> Descriptor:
    """struct virtq_desc."""
    return Descriptor(*_SPLIT.unpack(raw))


def packed_descriptor(raw: bytes) -> tuple[Descriptor, int]:
    """struct pvirtq_desc, and its id."""
    address, length, number, flags = _PACKED.unpack(raw)
    return Descriptor(address, length, flags, 0), number


class Broken(Exception):
    """The chain breaks a rule; the argument is its code."""


@dataclass
class Chain:
    """A chain that is being walked.

    Attributes:
        is_split: of the format of indirect tables.
        budget: descriptors and pieces that may still be looked at, here and in later chains.
        drawn: its descriptors, for the picture.
        n_out, n_in, out_len, in_len: pieces of our memory, and bytes, to be read and written.
        pieces: buffers so far, empty ones too.
    """

    memory: GuestBytes
    is_split: bool
    budget: int
    drawn: list[dict[str, Any]] = field(default_factory=list)
    n_out: int = 0
    n_in: int = 0
    out_len: int = 0
    in_len: int = 0
    pieces: int = 0

    def add(self, index: int, descriptor: Descriptor) -> None:
        """The next descriptor of the ring itself; Broken."""
        self._draw(index, descriptor)
        if descriptor.flags & VRING_DESC_F_INDIRECT:
            self._table(descriptor)
        else:
            self.pieces += 1
            if self.pieces > UIO_MAXIOV:
                raise Broken(RING_TOO_MANY_IOVS)
            self._buffer(descriptor)

    def picture(self, problem: str | None) -> dict[str, Any]:
        """What both formats tell of a chain that has been walked, or on the way broke a rule."""
        return {
            "readable": self.out_len,
            "writable": self.in_len,
            "descriptors": self.drawn,
            "complete": self.budget > 0 or problem is not None,
            "problem": problem,
            "budget": self.budget,
        }

    def _draw(self, index: int, descriptor: Descriptor, table: bool = False) -> None:
        self.budget -= 1
        flags = [name for bit, name in _FLAG_NAMES if descriptor.flags & bit]
        drawn: dict[str, Any] = {
            "index": index,
            "address": f"{descriptor.address:#x}",
            "len": descriptor.length,
            "flags": flags,
        }
        if "NEXT" in flags and self.is_split:
            drawn["next"] = descriptor.last
        if table:
            drawn["in-table"] = True
        self.drawn.append(drawn)

    def _buffer(self, descriptor: Descriptor) -> None:
        is_in = bool(descriptor.flags & VRING_DESC_F_WRITE)
        access = VHOST_ACCESS_WO if is_in else VHOST_ACCESS_RO
        n = self._check(descriptor, access, RING_UNMAPPED, UIO_MAXIOV + 1 - self.n_out - self.n_in)
        if self.n_out + self.n_in + n > UIO_MAXIOV:
            raise Broken(RING_TOO_MANY_IOVS)
        if is_in:
            self.n_in += n
            self.in_len += descriptor.length
        elif self.n_in:
            raise Broken(RING_OUT_AFTER_IN)
        else:
            self.n_out += n
            self.out_len += descriptor.length

    def _table(self, descriptor: Descriptor) -> None:
        if descriptor.length % VRING_DESC_SIZE:
            raise Broken(RING_INDIRECT_LEN)
        count = descriptor.length // VRING_DESC_SIZE
        if count > MAX_INDIRECT:
            raise Broken(RING_INDIRECT_TOO_BIG)
        self._check(descriptor, VHOST_ACCESS_RO, RING_INDIRECT_UNMAPPED, MAX_INDIRECT)
        at = 0
        while True:
            if at >= count:
                raise Broken(RING_INDIRECT_OVERRUN)
            if self.pieces >= UIO_MAXIOV:
                raise Broken(RING_TOO_MANY_IOVS)
            if self.budget <= 0:
                return
            raw = self.memory.read(
                descriptor.address + at * VRING_DESC_SIZE, VRING_DESC_SIZE, VHOST_ACCESS_RO
            )
            if raw is None:
                raise Broken(RING_INDIRECT_UNMAPPED)
            entry = split_descriptor(raw) if self.is_split else packed_descriptor(raw)[0]
            self._draw(at, entry, table=True)
            if entry.flags & VRING_DESC_F_INDIRECT:
                raise Broken(RING_INDIRECT_NESTED)
            self.pieces += 1
            self._buffer(entry)
            at += 1
            if at == count if not self.is_split else not entry.flags & VRING_DESC_F_NEXT:
                return

    def _check(self, descriptor: Descriptor, access: int, unmapped: int, most: int) -> int:
        """In how many pieces of our memory its bytes are, all of them; Broken if they are not."""
        n, why = self.memory.pieces(descriptor.address, descriptor.length, access, most)
        self.budget -= n
        if why == "forbidden":
            raise Broken(RING_FORBIDDEN)
        if why is not None:
            raise Broken(RING_MISS if self.memory.is_virtual else unmapped)
        return n


def reason(broken: Broken) -> str:
    """The rule, in words."""
    return RING_ERRORS.get(broken.args[0], WAITS_FOR_IOTLB)


def breaks_a_rule(chain: Mapping[str, Any]) -> bool:
    """Whether what holds a chain up is the driver's fault: a miss of the IOTLB is not."""
    return chain["problem"] not in (None, WAITS_FOR_IOTLB)


def not_a_packet(chain: Mapping[str, Any], is_tx: bool) -> str | None:
    """What keeps a chain that breaks no rule from being a packet or a buffer for one."""
    if is_tx and chain["writable"]:
        return "a part of it is to be written: it is handed back, and dropped"
    if not is_tx and chain["readable"]:
        return "a part of it is to be read: it is handed back with length 0"
    return None
