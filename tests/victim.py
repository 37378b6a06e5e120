"""A queue pair on islands: what hostile rings are given to, and what must hold whatever they say.

`SplitVictim` and `PackedVictim` know where the parts of the rings are and how a driver puts them
right again; everything else is the same for both formats.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

from driver_ring import WRITE
from instance import RX, TX, Instance
from islands import CANARY, DISTANT, HIGH, MAIN, NEXT_TO_MAIN, TINY, Island, Islands, desc
from vhostnet.datapath.ring_access import forget_ring
from vhostnet.device.ring_formats import VringAddresses
from vhostnet.uapi.virtio import VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, mask

EXAMPLES = int(os.environ.get("VHOSTNET_FUZZ_EXAMPLES", "75"))
HOSTILE = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
PATIENCE_S = 60.0

NUM = 8
DESC_BYTES, AVAIL_BYTES, USED_BYTES, EVENT_BYTES = 16 * NUM, 6 + 2 * NUM, 6 + 8 * NUM, 4
FRAME = b"repaired" * 8
BUFFER_SIZE = 0x800

Self = TypeVar("Self", bound="Victim")


def within_bounds(step: Callable[[], object]) -> None:
    """Run a step that waits for the worker; fail if it does not come back."""
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the worker does not return"


def clean(data: bytes) -> bytes:
    """The same without a byte that is a canary's."""
    return data.replace(bytes([CANARY]), b"\x01")


class Bugs(logging.Handler):
    """What the worker has to say about itself."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


class Victim:
    """A queue pair whose rings begin or end with a region, or nearly so.

    Attributes:
        parts: for each ring, address and size of what the guest can write in.
    """

    parts: tuple[tuple[tuple[int, int], ...], ...]
    #: What the queue pair is made with.
    make_pair: Callable[..., Instance] = Instance

    def __init__(self, features: int) -> None:
        self.bugs = Bugs()
        logging.getLogger("vhostnet").addHandler(self.bugs)
        self.memory = self.make_memory()
        self.pair = type(self).make_pair(features=features, num=NUM, memory=self.memory)
        self.sent: list[bytes] = []

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("vhostnet").removeHandler(self.bugs)
        self.pair.close()

    def make_memory(self) -> Islands:
        """The guest's memory."""
        return Islands()

    def vq(self, index: int) -> Any:
        return self.pair.net.vqs[index].vq

    def put(self, index: int, contents: tuple[bytes, ...]) -> None:
        """Write a ring's parts."""
        for (gpa, size), content in zip(self.parts[index], contents, strict=True):
            self.memory.write(gpa, clean(content[:size]))

    def poke(self, index: int, part: int, at: int, data: bytes) -> None:
        """Write some bytes into one part of a ring."""
        gpa, size = self.parts[index][part]
        self.memory.write(gpa + min(at, size - len(data)), data)

    def run(self, packets: list[bytes], n_kicks: int = 2) -> None:
        """Let the device look at the rings, with packets for it on the wire."""
        if not any(self.pair.net.active(index) for index in (RX, TX)):
            within_bounds(self.pair.start)
        for packet in packets:
            within_bounds(lambda packet=packet: self.pair.arrive(packet))
        for index in (RX, TX) * n_kicks:
            within_bounds(lambda index=index: self.pair.kick(index))
        self.sent += self.pair.sent()

    def check_borders(self) -> None:
        """No byte outside the regions has changed, and the data path has not raised."""
        assert self.memory.damage() == []
        assert self.bugs.said == []

    def good_buffer(self, index: int) -> tuple[int, int, int]:
        """Address, length and flags of a buffer to transmit FRAME from, or to receive into."""
        if index == RX:
            return DISTANT.gpa, BUFFER_SIZE, WRITE
        self.memory.write(NEXT_TO_MAIN.gpa, bytes(self.pair.hdr_len) + FRAME)
        return NEXT_TO_MAIN.gpa, self.pair.hdr_len + len(FRAME), 0

    def repair(self, index: int) -> None:
        """Make all that the ring offers one good buffer, and offer some if it offers nothing."""
        raise NotImplementedError

    def check_it_works_again(self) -> None:
        """After a repair and a kick, a packet goes each way.

        The repair changes chains that are available, which no driver may: whoever has fetched them
        before has to do it again.
        """
        with self.pair.net.quiesced():
            for index in (RX, TX):
                forget_ring(self.vq(index))
        for index in (TX, RX):
            self.repair(index)
        self.pair.sent()
        within_bounds(self.pair.flush)
        self.pair.sent()
        self.repair(TX)
        within_bounds(lambda: self.pair.kick(TX))
        frames = self.pair.sent()
        assert frames
        assert {frame[self.pair.hdr_len :] for frame in frames} == {FRAME}
        marker = b"\x01" * self.pair.hdr_len + b"marker" * 20
        is_sent = False
        # Packets that are on the wire already come first, and may leave no room on it.
        for _ in range(500):
            if self.memory.read(DISTANT.gpa, len(marker))[12:] == marker[12:]:
                break
            self.repair(RX)
            within_bounds(lambda: self.pair.kick(RX))
            if not is_sent:
                with contextlib.suppress(BlockingIOError):
                    is_sent = self.pair.wire.send(marker) > 0
        else:
            raise AssertionError("nothing is received after the repair")
        self.check_borders()


class SplitVictim(Victim):
    """Split rings: descriptor table, avail ring, used ring."""

    def __init__(self, features: int, base: int, *for_place: Any) -> None:
        super().__init__(features)
        rx, tx = self.pair.rings
        rx.desc, rx.used = MAIN.gpa, MAIN.end - USED_BYTES
        tx.desc, tx.avail = NEXT_TO_MAIN.end - DESC_BYTES, DISTANT.end - AVAIL_BYTES
        self.place(base, *for_place)

    def place(self, base: int) -> None:
        """Tell the device where the rings are, empty at this base."""
        self.parts = tuple(
            ((ring.desc, DESC_BYTES), (ring.avail, AVAIL_BYTES), (ring.used, USED_BYTES))
            for ring in self.pair.rings
        )
        for index, ring in enumerate(self.pair.rings):
            for gpa in (ring.avail, ring.used):
                self.memory.write(gpa, struct.pack("<HH", 0, base))
            self.pair.net.set_vring_base(index, base)
            self.pair.net.set_vring_addr(index, ring.addresses())

    def repair(self, index: int) -> None:
        ring, vq = self.pair.rings[index], self.vq(index)
        gpa, length, flags = self.good_buffer(index)
        self.memory.write(ring.desc, desc(gpa, length, flags, 0) * NUM)
        # What the device has seen can not be taken back, only more be offered.
        seen, last = int(vq["avail_idx"]), int(vq["last_avail_idx"])
        idx = seen if seen != last else (last + NUM) & 0xFFFF
        heads = struct.pack(f"<{NUM}H", *range(NUM))
        self.memory.write(ring.avail, struct.pack("<HH", 0, idx) + heads)


class GuardedVictim(SplitVictim):
    """Split rings behind an IOMMU that lets the device use each region in its own way.

    Args:
        permissions: VHOST_ACCESS_* for each of ISLANDS; what a guest may address is the same.
    """

    def __init__(self, features: int, base: int, permissions: dict[Island, int]) -> None:
        super().__init__(features | mask(VIRTIO_F_ACCESS_PLATFORM), base, permissions)

    def place(self, base: int, permissions: dict[Island, int] | None = None) -> None:
        shift = self.memory.uva - self.memory.gpa
        for island, permission in (permissions or {}).items():
            uva = 0 if island is HIGH else island.gpa + shift
            self.pair.net.iotlb_update(island.gpa, island.size, uva, permission)
        # Rings are where the guest says, not where the front-end has them.
        self.memory.uva = self.memory.gpa
        super().place(base)


class PackedVictim(Victim):
    """Packed rings: descriptor ring, driver's and device's event area.

    Args:
        num: entries, 1 to NUM; need not be a power of two.
        base: as in SET_VRING_BASE.
    """

    def __init__(self, features: int, num: int, base: int) -> None:
        super().__init__(features | mask(VIRTIO_F_RING_PACKED))
        self.num = num
        size = 16 * num
        in_main = MAIN.end & ~15
        self.parts = (
            ((MAIN.gpa, size), (DISTANT.end - EVENT_BYTES, EVENT_BYTES), (TINY.gpa, EVENT_BYTES)),
            (
                (in_main - size, size),
                (TINY.gpa + 4, EVENT_BYTES),
                ((NEXT_TO_MAIN.end & ~3) - EVENT_BYTES, EVENT_BYTES),
            ),
        )
        shift = self.memory.uva - self.memory.gpa
        for index, (ring, driver, device) in enumerate(self.parts):
            where = VringAddresses(ring[0] + shift, driver[0] + shift, device[0] + shift)
            self.pair.net.set_vring_num(index, num)
            self.pair.net.set_vring_base(index, base)
            self.pair.net.set_vring_addr(index, where)

    def lap_flags(self, wrap: int) -> int:
        """The flags of an available descriptor."""
        return 1 << 7 if wrap else 1 << 15

    def repair(self, index: int) -> None:
        vq = self.vq(index)
        gpa, length, flags = self.good_buffer(index)
        ring = self.parts[index][0][0]
        pos, wrap = int(vq["avail_pos"]), int(vq["avail_wrap"])
        for _ in range(self.num):
            one = struct.pack("<QIHH", gpa, length, pos, flags | self.lap_flags(wrap))
            self.memory.write(ring + 16 * pos, one)
            pos += 1
            if pos == self.num:
                pos, wrap = 0, wrap ^ 1
        self.memory.write(self.parts[index][1][0], bytes(EVENT_BYTES))
