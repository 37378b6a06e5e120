"""Rings made by a die: good ones in which things move, with a flaw here and there.

Hypothesis' strategies (`ring_strategies`) find small examples of what breaks; these are quicker
by far, and most of their chains are whole, so that what comes *after* a fetch is tried as well.
The same seed makes the same rings.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from driver_ring import INDIRECT, NEXT, WRITE
from instance import RX
from islands import DISTANT, HIGH, MAIN, NEXT_TO_MAIN, desc
from ring_strategies import TABLES, WILD_ADDRESSES, WILD_LENGTHS
from victim import NUM, clean

#: Where no part of a ring is, mostly; the first two follow each other over a border.
ROOMS = (
    (MAIN.gpa + 0x400, 0x1200),
    (NEXT_TO_MAIN.gpa, 0x800),
    (DISTANT.gpa, 0xE00),
    (HIGH.gpa, HIGH.size),
)
SIZES = (1, 2, 5, 9, 10, 11, 12, 13, 30, 60, 200, 600)
TABLE_MOST = 6


@dataclass
class RingDice:
    """One ring's worth of descriptors, in either format.

    Args:
        scatter: writes an indirect table's bytes to the guest's memory, as far as there is any.
        flaw: how often something is wrong, 0 to 1.
    """

    dice: random.Random
    scatter: Callable[[int, bytes], None]
    direction: int
    is_packed: bool
    flaw: float

    def is_flawed(self) -> bool:
        return self.dice.random() < self.flaw

    def buffer(self) -> tuple[int, int, int]:
        """Address, length and flags."""
        dice = self.dice
        flags = WRITE if self.direction == RX else 0
        gpa, room = dice.choice(ROOMS)
        length = dice.choice(SIZES)
        at = gpa + dice.randrange(room - length)
        if dice.random() < 0.1:
            at = MAIN.end - dice.randrange(1, 40)  # goes on in the region that follows
        if dice.random() < 0.1:
            length = 0
        if self.is_flawed():
            kind = dice.randrange(4)
            if kind == 0:
                flags ^= WRITE
            elif kind == 1:
                at = dice.choice(WILD_ADDRESSES)
            elif kind == 2:
                length = dice.choice(WILD_LENGTHS)
            else:
                at = dice.choice([DISTANT.end, HIGH.end]) - length + dice.choice([0, 1])
        return at, length, flags

    def pack(self, gpa: int, length: int, flags: int, last: int) -> bytes:
        """*last* is `next` of a split descriptor, the id of a packed one."""
        if self.is_packed:
            return desc(gpa, length, last, flags)
        return desc(gpa, length, flags, last)

    def table(self) -> tuple[int, int]:
        """Write an indirect table; returns its address and length."""
        dice = self.dice
        n = dice.randrange(1, TABLE_MOST + 1)
        gpa = dice.choice(TABLES)
        entries = b""
        for k in range(n):
            at, length, flags = self.buffer()
            has_next = k + 1 < n
            if self.is_flawed():
                has_next = not has_next
            if self.is_flawed():
                flags |= INDIRECT
            entries += self.pack(at, length, flags | (NEXT if has_next else 0), dice.randrange(9))
        self.scatter(gpa, clean(entries))
        size = 16 * n
        if self.is_flawed():
            size = dice.choice([0, size - 16, size + 16, size + 8, 16 * 65537, 16 * 65536, 12])
        if self.is_flawed():
            gpa = dice.choice([*WILD_ADDRESSES, DISTANT.end - 8, HIGH.end - 16])
        return gpa, size

    def descriptors(self, n: int) -> tuple[list[bytes], list[int]]:
        """*n* descriptors as chains; returns them and the index of each chain's first."""
        dice = self.dice
        if dice.random() < 0.02:
            return self.crowd(n)
        out: list[bytes] = []
        heads: list[int] = []
        left = 0
        for k in range(n):
            if left == 0:
                heads.append(k)
                left = min(dice.choice([1, 1, 1, 2, 3, n]), n - k)
            left -= 1
            gpa, length, flags = self.buffer()
            if dice.random() < 0.2:
                gpa, length = self.table()
                flags = INDIRECT | (flags if dice.random() < 0.1 else 0)
            flags |= NEXT if left else 0
            following = k + 1
            if self.is_flawed():
                flags ^= NEXT
                following = dice.choice([0, k, n, n - 1, 0xFFFF])
            out.append(self.pack(gpa, length, flags, k if self.is_packed else following))
        return out, heads

    def crowd(self, n: int) -> tuple[list[bytes], list[int]]:
        """One chain whose descriptors all point at one large table: near the limit of pieces."""
        n_entries = self.dice.choice([1024 // n, 1024 // n + 1])
        gpa, room = ROOMS[0]
        n_entries = min(n_entries, room // 16)
        flags = NEXT | (WRITE if self.direction == RX else 0)
        entries = [self.pack(HIGH.gpa + k % 64, k % 3, flags, 0) for k in range(n_entries)]
        if not self.is_packed:
            entries[-1] = self.pack(HIGH.gpa, 1, flags & ~NEXT, 0)
        self.scatter(gpa, b"".join(entries))
        out = [
            self.pack(gpa, 16 * n_entries, INDIRECT | (NEXT if k + 1 < n else 0), k + 1)
            for k in range(n)
        ]
        return out, [0]

    def split(self, base: int) -> tuple[bytes, bytes, bytes]:
        """Descriptor table, avail ring and used ring."""
        dice = self.dice
        out, heads = self.descriptors(NUM)
        heads = [dice.choice(heads) if dice.random() < 0.2 else head for head in heads]
        if self.is_flawed():
            heads[dice.randrange(len(heads))] = dice.choice([NUM, NUM + 1, 0xFFFF])
        n = dice.randrange(len(heads) + 1) if dice.random() < 0.3 else len(heads)
        if self.is_flawed():
            n = dice.choice([NUM, NUM + 1, 0xFFFF])
        slots = [dice.randrange(NUM)] * NUM
        for k, head in enumerate(heads):
            slots[(base + k) % NUM] = head
        words = [dice.choice([0, 0, 1]), (base + n) % 65536, *slots, self.event(base)]
        used = struct.pack("<HH", dice.randrange(3), dice.choice([base, dice.randrange(65536)]))
        return b"".join(out), struct.pack(f"<{len(words)}H", *words), used

    def event(self, base: int) -> int:
        return (base + self.dice.randrange(-1, NUM + 3)) % 65536

    def packed(self, num: int, pos: int, wrap: int) -> tuple[bytes, bytes]:
        """The descriptor ring, offered from *pos* on, and the driver's event area."""
        dice = self.dice
        out, _ = self.descriptors(num)
        ring = [b""] * num
        n = dice.randrange(num + 1) if dice.random() < 0.3 else num
        for k, one in enumerate(out):
            at = (pos + k) % num
            lap = wrap ^ (pos + k >= num)
            gpa, length, id_, flags = struct.unpack("<QIHH", one)
            if k < n and not self.is_flawed():
                flags |= 1 << 7 if lap else 1 << 15
            elif not lap:
                flags |= 0x8080
            ring[at] = desc(gpa, length, id_, flags)
        wish = dice.choice([0, 1, 2, 2, 2, 3])
        where = dice.randrange(num) | dice.choice([0, 1 << 15])
        return b"".join(ring), struct.pack("<HH", where, wish)
