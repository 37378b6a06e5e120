"""What coverage-guided fuzzing calls: bytes in, an exception if a rule is broken.

Imported with the JIT off and, by `__main__`, with atheris watching the branches of vhostnet.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

from fake_device import FakeDevice
from fuzz.rig import FEATURES, NUM, REGIONS, TABLE, Rig
from vhostnet.datapath import descriptors, packed_ring, split_ring, via_gen
from vhostnet.datapath.layout import UIO_MAXIOV, VHOST_NET_PKT_WEIGHT
from vhostnet.datapath.rx import handle_rx
from vhostnet.datapath.tx import handle_tx
from vhostnet.errors import PeerError
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.protocol.vhost_user_codec import Codec, encode_message
from vhostnet.protocol.vhost_user_session import (
    IOMMU_PROTOCOL_FEATURES_MASK,
    OFFERED_PROTOCOL_FEATURES_MASK,
    RULES,
    Session,
)

assert not JIT_ENABLED, "run it as `python -m tests.fuzz`, or with NUMBA_DISABLE_JIT=1"
assert via_gen

# --- messages -----------------------------------------------------------------------------------


def messages(data: bytes) -> None:
    """A stream for codec and session: each chunk is a byte of descriptors and length, and bytes.

    Every descriptor is in the end with the device, or given back, exactly once; answers are
    answers to what was asked.
    """
    device = FakeDevice(close_fd=lambda _fd: None)
    codec, session = Codec(), Session(device)
    next_fd, given_back, at = 100, [], 0
    while at < len(data) and codec.error is None:
        n_fds, size = data[at] >> 6, data[at] & 63
        chunk, at = data[at + 1 : at + 1 + size], at + 1 + size
        requests = codec.feed(chunk, range(next_fd, next_fd + n_fds))
        next_fd += n_fds
        is_over = False
        for request in requests:
            try:
                answer = b"" if is_over else session.handle(request)
                if answer:
                    number, flags, length = struct.unpack_from("<III", answer)
                    assert (number, flags, length) == (request.number, 5, len(answer) - 12)
            except PeerError:
                is_over = True
            given_back += request.fds
        if is_over:
            break
    given_back += codec.drain_fds()
    assert sorted(given_back + device.owned) == list(range(100, next_fd)), "a descriptor is lost"


# --- rings --------------------------------------------------------------------------------------

#: Loads of descriptors and translations that one run of a handler may take: so many chains of so
#: many pieces, each with two words to load and an address or two to translate.
BUDGET = VHOST_NET_PKT_WEIGHT * (UIO_MAXIOV * 5 + 2 * NUM)
SPOTS = [
    REGIONS[0][0] + 0x1000, REGIONS[1][0], REGIONS[1][0] - 20, REGIONS[2][0], REGIONS[3][0],
    REGIONS[2][0] + REGIONS[2][1] - 16, TABLE, TABLE + 16,
]  # fmt: skip
WILD = [0, (1 << 64) - 1, (1 << 64) - 16, 1 << 63, (1 << 63) - 1, 0x12345, 1 << 62, 0x20C00]
WILD_LENGTHS = [0, 1, 24, 4096, 65537 * 16, 1 << 31, 0xFFFFFFFF, 0xFFFFFFF0]
DESCRIPTOR = struct.Struct("<BHBBB")


class OutOfSteps(Exception):
    """A handler looked at more than any ring is worth."""


class Steps:
    """Counts what the walk over a ring does, and stops it."""

    def __init__(self) -> None:
        self.left = 0
        for module, name in (
            (split_ring, "load_relaxed_i64"),
            (packed_ring, "load_relaxed_i64"),
            (descriptors, "load_relaxed_i64"),
            (descriptors, "translate"),
        ):
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OutOfSteps
            return real(*arguments)

        return counted


def descriptor(raw: bytes, is_packed: bool, lap: int) -> bytes:
    """16 bytes from 6: a place in memory or nowhere, a length, flags, next or id."""
    where, offset, size, flags, last = DESCRIPTOR.unpack(raw)
    addr = WILD[where & 7] if where >= 0xF0 else SPOTS[where & 7] + (offset & 0x3FF)
    length = WILD_LENGTHS[size & 7] if size >= 0xF0 else size * (16 if flags & 4 else 4)
    if is_packed:
        bits = flags & 7 | (0 if flags >= 0xE0 else lap)
        return struct.pack("<QIHH", addr % 2**64, length, last, bits)
    return struct.pack(
        "<QIHH", addr % 2**64, length, flags & 7, last if last >= 0xF0 else last % NUM
    )


class RingTarget:
    """Bytes: features and direction, index and wishes, descriptors, table.  Twice in a row."""

    def __init__(self, is_packed: bool) -> None:
        self.is_packed = is_packed
        self.rig = Rig(is_packed, is_translated=False)
        self.steps = Steps()

    def __call__(self, data: bytes) -> None:
        head, body = data[:8].ljust(8, b"\0"), data[8:]
        rig = self.rig
        rig.place(FEATURES[head[0] % len(FEATURES)])
        self._write(rig.parts[2][0], bytes(rig.parts[2][1]))
        size = DESCRIPTOR.size
        body = body.ljust(2 * NUM * size, b"\0")
        made = [body[k : k + size] for k in range(0, len(body) - size + 1, size)]
        lap = 1 << 7
        ring, table = (
            b"".join(descriptor(raw, self.is_packed, lap) for raw in part)
            for part in (made[:NUM], made[NUM : NUM + 64])
        )
        self._write(rig.parts[0][0], ring)
        self._write(TABLE, table)
        if self.is_packed:
            self._write(rig.parts[1][0], head[2:6])
        else:
            idx = head[1] if head[1] >= 0xF0 else head[1] % (NUM + 1)
            heads = [(k + head[6]) % NUM if head[7] < 0xF0 else head[7] for k in range(NUM)]
            words = struct.pack(f"<HH{NUM}HH", head[2] & 1, idx, *heads, head[3])
            self._write(rig.parts[1][0], words)
        rig.backend[0]["frame_len"] = 1 + head[4] * 8
        for is_rx in (bool(head[0] & 0x80), not head[0] & 0x80):
            self._run(is_rx)

    def _write(self, gpa: int, data: bytes) -> None:
        ctypes.memmove(self.rig.memory.hva(gpa), data, len(data))

    def _run(self, is_rx: bool) -> None:
        rig = self.rig
        worker, backend = rig.worker[0], rig.backend[0]
        worker["n_work"] = worker["queued"] = worker["work_list"] = 0
        vq = rig.rx[0] if is_rx else rig.tx[0]
        self.steps.left = BUDGET
        if is_rx:
            handle_rx(worker, vq, rig.mem, rig.regions, backend, rig.iov, rig.heads)
        else:
            handle_tx(worker, vq, rig.mem, backend, rig.iov)
        assert int(vq["done_idx"]) == 0, "completions are kept back"
        assert int(vq["packets"]) + int(vq["drop_malformed"]) <= VHOST_NET_PKT_WEIGHT
        rig.memory.check()


TARGETS: dict[str, Callable[[], Callable[[bytes], None]]] = {
    "messages": lambda: messages,
    "split": lambda: RingTarget(is_packed=False),
    "packed": lambda: RingTarget(is_packed=True),
}


# --- what to begin with ---------------------------------------------------------------------------


def _message_seeds() -> list[bytes]:
    """After the negotiation, each message with a payload of its size."""

    def chunks(data: bytes, n_fds: int) -> bytes:
        parts = [data[k : k + 63] for k in range(0, len(data), 63)]
        sizes = [len(part) | (n_fds << 6 if k == 0 else 0) for k, part in enumerate(parts)]
        return b"".join(bytes([n]) + part for n, part in zip(sizes, parts, strict=True))

    every = OFFERED_PROTOCOL_FEATURES_MASK | IOMMU_PROTOCOL_FEATURES_MASK
    begin = chunks(encode_message(16, 1, struct.pack("<Q", every)), 0)
    return [
        begin + chunks(encode_message(rule.number, 9, bytes([1]) * rule.layout.size), rule.min_fds)
        for rule in RULES.values()
    ]


def _ring_seeds() -> list[bytes]:
    """Buffers of both directions, chains, tables."""
    seeds = []
    for head in (0, 0x80, 1, 0x82):
        for flags in (0, 2, 1, 3, 4, 5):
            one = [DESCRIPTOR.pack(k % 5, 16 * k, 20, flags, k + 1) for k in range(3 * NUM)]
            if flags & 4:
                one[:NUM] = [DESCRIPTOR.pack(6, 0, 3, flags, k + 1) for k in range(NUM)]
                one[NUM:] = [DESCRIPTOR.pack(0, 0, 9, head >> 6 | (k < 2), 0) for k in range(16)]
            seeds.append(bytes([head, NUM, 0, 1, 20, 0, 0, 0]) + b"".join(one))
    return seeds


SEEDS = {"messages": _message_seeds, "split": _ring_seeds, "packed": _ring_seeds}
