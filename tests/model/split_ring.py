"""The split virtqueue as the device sees it (VIRTIO 1.2 section 2.7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .chains import DESCRIPTOR_SIZE, INDIRECT, NEXT, Chain, Refusal, Refused
from .memory import GuestMemory

NO_INTERRUPT, NO_NOTIFY = 1, 1


@dataclass(frozen=True)
class RingFeatures:
    """What was negotiated, as far as rings are concerned."""

    event_idx: bool = False
    in_order: bool = False
    notify_on_empty: bool = False


class SplitRing:
    """One ring that runs.

    Args:
        one_entry_a_batch: with IN_ORDER, one used entry stands for all that is published
            together (Linux does so for transmission).
    """

    def __init__(
        self,
        memory: GuestMemory,
        num: int,
        parts: tuple[int, int, int],
        base: int,
        features: RingFeatures,
        one_entry_a_batch: bool = False,
    ) -> None:
        self.memory, self.num, self.features = memory, num, features
        self.desc, self.avail, self.used = parts
        self.one_entry_a_batch = one_entry_a_batch
        self.next_avail = self.newest_avail = base
        memory.put_u16(self.used, 0)  # the device's flags
        self.used_idx = memory.u16(self.used + 2)
        self.unpublished = 0
        self.notified_for: int | None = None
        self.is_quiet = False

    # --- taking -----------------------------------------------------------------------------

    def take(self) -> Chain | None:
        """Section 2.7.13: the next available chain, None if there is none."""
        if self.newest_avail == self.next_avail:
            idx = self.memory.u16(self.avail + 2)
            if idx == self.next_avail:
                return None
            if (idx - self.next_avail) % 65536 > self.num:
                raise Refused(Refusal.AVAIL_JUMP)
            self.newest_avail = idx
        head = self.memory.u16(self.avail + 4 + 2 * (self.next_avail % self.num))
        if head >= self.num:
            raise Refused(Refusal.BAD_HEAD)
        chain = self._walk(head)
        self.next_avail = (self.next_avail + 1) % 65536
        return chain

    def _walk(self, head: int) -> Chain:
        chain = Chain(self.memory, head)
        at = head
        while True:
            chain.n_ring += 1
            if chain.n_ring > self.num:
                raise Refused(Refusal.LOOP)
            raw = self.memory.read(self.desc + DESCRIPTOR_SIZE * at, DESCRIPTOR_SIZE)
            addr, length, flags, following = struct.unpack("<QIHH", raw)
            if flags & INDIRECT:
                try:
                    chain.add_table(addr, length, is_packed=False)
                except Refused as refused:
                    refused.is_told_twice = True
                    raise
            else:
                chain.add(addr, length, flags)
            if not flags & NEXT:
                return chain
            if following >= self.num:
                raise Refused(Refusal.BAD_NEXT)
            at = following

    def give_back(self, chains: list[Chain]) -> None:
        """These, the last ones, will be taken again."""
        self.next_avail = (self.next_avail - len(chains)) % 65536

    # --- completing -------------------------------------------------------------------------

    def complete(self, chains: list[Chain], lengths: list[int]) -> None:
        """Section 2.7.8: used entries, one a chain or, with IN_ORDER, one for all of them."""
        if self.features.in_order:
            self._used_entry(chains[-1].id, lengths[-1])
            self.unpublished += len(chains)
        else:
            for chain, length in zip(chains, lengths, strict=True):
                self._used_entry(chain.id, length)
                self.unpublished += 1

    def _used_entry(self, id_: int, length: int) -> None:
        ahead = 0 if self.features.in_order and self.one_entry_a_batch else self.unpublished
        slot = (self.used_idx + ahead) % self.num
        self.memory.write(self.used + 4 + 8 * slot, struct.pack("<II", id_, length))

    def publish(self) -> bool:
        """Section 2.7.8.2: move the index; whether there was anything."""
        if self.unpublished == 0:
            return False
        before = self.used_idx
        self.used_idx = (before + self.unpublished) % 65536
        if self.notified_for is not None:
            # 2^16 entries since the last test would look like none.
            if (self.used_idx - self.notified_for) % 65536 < self.unpublished:
                self.notified_for = None
        self.unpublished = 0
        self.memory.put_u16(self.used + 2, self.used_idx)
        return True

    def wants_signal(self) -> bool:
        """Section 2.7.7.2: whether the driver is interrupted for what was published."""
        if self.features.notify_on_empty and self.newest_avail == self.next_avail:
            return True
        if not self.features.event_idx:
            return not self.memory.u16(self.avail) & NO_INTERRUPT
        before, self.notified_for = self.notified_for, self.used_idx
        if before is None:
            return True
        event = self.memory.u16(self.avail + 4 + 2 * self.num)
        return any((before + k) % 65536 == event for k in range((self.used_idx - before) % 65536))

    # --- being notified ----------------------------------------------------------------------

    def be_quiet(self) -> None:
        """Section 2.7.10: no notifications, please.  With EVENT_IDX an old event does it."""
        if not self.is_quiet:
            self.is_quiet = True
            if not self.features.event_idx:
                self.memory.put_u16(self.used, NO_NOTIFY)

    def listen(self) -> bool:
        """Ask for notifications; whether something became available before the driver knew."""
        if not self.is_quiet:
            return False
        self.is_quiet = False
        if self.features.event_idx:
            self.memory.put_u16(self.used + 4 + 8 * self.num, self.newest_avail)
        else:
            self.memory.put_u16(self.used, 0)
        return self.memory.u16(self.avail + 2) != self.newest_avail
