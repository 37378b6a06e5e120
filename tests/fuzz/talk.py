"""Hostile vhost-user messages, and somebody in this process to say them to."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import struct

from driver_ring import GPA, UVA
from vhostnet.backends.memory_backends import NullBackend
from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
from vhostnet.protocol.vhost_user_codec import Codec, encode_message
from vhostnet.protocol.vhost_user_session import (
    IOMMU_PROTOCOL_FEATURES_MASK,
    OFFERED_PROTOCOL_FEATURES_MASK,
    RULES,
    Session,
)
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.virtio import mask

FEATURES = mask(15, 29, 30, 32, 34, 35)
NUMBERS = [*RULES, *RULES, *range(48), 0xFFFFFFFF]
INDICES = [0, 1, 0, 1, 2, 255, 0x10000, 0xFFFFFFFF]
WORDS = [0, 1, 2, 8, 256, 4096, GPA, UVA, UVA + 4096, FEATURES, 1 << 63, (1 << 64) - 1, 0x100]
MEMORY = 1 << 20


#: Negotiates every protocol feature: most of what is wrong is then refused by an acknowledgement.
BEGIN = encode_message(
    vu.VHOST_USER_SET_PROTOCOL_FEATURES,
    1,
    struct.pack("<Q", OFFERED_PROTOCOL_FEATURES_MASK | IOMMU_PROTOCOL_FEATURES_MASK),
)


class NoTimer:
    """One that never fires."""

    def cancel(self) -> None: ...


class Talker:
    """A device with its session; a new session when a message has closed one."""

    def __init__(self) -> None:
        self.device = VhostUserDevice(
            NullBackend(1),
            queue_pairs=1,
            name="fuzz",
            iommu=True,
            call_later=lambda _seconds, _function: NoTimer(),
        )
        logging.getLogger("vhostnet").setLevel(logging.CRITICAL)
        self._open()

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.device.close()
        logging.getLogger("vhostnet").setLevel(logging.NOTSET)

    def _open(self) -> None:
        self.device.open_session(os.getpid())
        self.codec, self.session = Codec(), Session(self.device)
        self.feed(BEGIN, [])

    def _close(self) -> None:
        for fd in self.codec.drain_fds():
            os.close(fd)
        self.device.close_session()

    @staticmethod
    def payload(dice: random.Random, number: int) -> bytes:
        """What could be this message's, or not quite."""
        rule = RULES.get(number)
        size = rule.layout.size if rule is not None else dice.choice([0, 8, 16, 40])
        if number == vu.VHOST_USER_SET_MEM_TABLE:
            n = dice.choice([0, 1, 1, 2, 3, 8, 33, 0xFFFF])
            data = struct.pack("<II", n, 0)
            for k in range(min(n, 33)):
                where = (GPA + k * MEMORY, MEMORY, UVA + k * MEMORY, 0)
                data += struct.pack("<QQQQ", *where)
        elif size % 8 == 0 and dice.random() < 0.5:
            data = struct.pack(f"<{size // 8}Q", *[dice.choice(WORDS) for _ in range(size // 8)])
        elif size == 8:
            data = struct.pack("<II", dice.choice(INDICES), dice.choice([0, 1, 8, 256, 3, 1 << 31]))
        elif size == 40:
            ring = [UVA + 0x1000 * dice.randrange(8) + dice.choice([0, 0, 0, 1]) for _ in range(3)]
            index = dice.choice(INDICES)
            data = struct.pack("<IIQQQQ", index, dice.choice([0, 0, 1, 2]), *ring, GPA)
        else:
            data = dice.randbytes(size)
        if dice.random() < 0.05:
            at = dice.randrange(len(data) + 1)
            data = data[:at] + dice.randbytes(dice.randrange(9)) + data[at + dice.randrange(3) :]
        return data

    @staticmethod
    def make(dice: random.Random) -> tuple[bytes, list[int]]:
        """A message's bytes and its descriptors, which are the caller's."""
        number = dice.choice(NUMBERS)
        if number == vu.VHOST_USER_SET_PROTOCOL_FEATURES and dice.random() < 0.8:
            return BEGIN, []
        flags = dice.choice([1, 9, 9, 9, 9, 9] * 40 + [0, 2, 5, 0xFFFFFFFF])
        data = encode_message(number, flags, Talker.payload(dice, number))
        rule = RULES.get(number)
        most = 0 if rule is None else min(rule.max_fds, 3)
        n_fds = most if dice.random() < 0.8 else dice.randrange(3)
        fds = []
        for _ in range(n_fds):
            if dice.random() < 0.5:
                fds.append(os.eventfd(0, os.EFD_NONBLOCK))
            else:
                fds.append(os.memfd_create("fuzz"))
                os.ftruncate(fds[-1], MEMORY)
        if dice.random() < 0.005:
            data = data[: dice.randrange(1, len(data) + 1)]  # the rest is the next one's beginning
        return data, fds

    def say(self, dice: random.Random) -> str:
        """One message; returns what became of it."""
        data, fds = self.make(dice)
        return self.feed(data, fds)

    def feed(self, data: bytes, fds: list[int]) -> str:
        """Bytes and descriptors; an exception of any kind but PeerError and HostError is a bug."""
        outcome = "incomplete"
        requests = self.codec.feed(data, fds)
        is_over = False
        try:
            for request in requests:
                answer = self.session.handle(request)
                outcome = f"{request.name}: taken"
                if answer:
                    header = vu.HEADER.unpack(answer)
                    assert (header.request, header.flags) == (request.number, 5)
                    assert header.size == len(answer) - vu.HEADER.size
                    if request.needs_reply and answer[12:] == struct.pack("<Q", 1):
                        outcome = f"{request.name}: refused"
        except (PeerError, HostError) as error:
            outcome = f"closed: {str(error).partition(':')[0]}"
            is_over = True
        finally:
            for request in requests:
                for fd in request.fds:
                    with contextlib.suppress(OSError):
                        os.close(fd)
        if is_over or self.codec.error is not None:
            if self.codec.error is not None and not is_over:
                outcome = "closed: no header"
            self._close()
            self._open()
        return outcome
