"""Reads back what a capture has written: strictly, an error is an AssertionError."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Packet:
    interface: int
    time_ns: int
    data: bytes
    original: int
    comment: str
    flags: int
    lost_before: int


@dataclass
class File:
    names: list[str] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    #: interface -> (received, accepted, dropped)
    statistics: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def of(self, name: str) -> list[Packet]:
        return [p for p in self.packets if self.names[p.interface] == name]


def options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        code, size = struct.unpack_from("<HH", data, at)
        if code == 0:
            assert size == 0
            assert at + 4 == len(data), "something behind the end of options"
            break
        assert code not in found
        found[code] = data[at + 4 : at + 4 + size]
        assert len(found[code]) == size
        at += 4 + (size + 3 & ~3)
    return found


def read(path: Path) -> File:
    data = path.read_bytes()
    file = File()
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, at + size - 4) == (size,)
        body = data[at + 8 : at + size - 4]
        if at == 0:
            assert kind == 0x0A0D0D0A
            assert struct.unpack_from("<IHH", body) == (0x1A2B3C4D, 1, 0)
        elif kind == 1:
            found = options(body[8:])
            assert found[9] == b"\x09", "nanoseconds"
            file.names.append(found[2].decode())
        elif kind == 5:
            (number,) = struct.unpack_from("<I", body)
            found = options(body[12:])
            counts = (struct.unpack("<Q", found[code])[0] for code in (4, 6, 5))
            file.statistics[number] = tuple(counts)  # type: ignore[assignment]
        else:
            assert kind == 6
            number, high, low, kept, original = struct.unpack_from("<5I", body)
            assert number < len(file.names)
            found = options(body[20 + (kept + 3 & ~3) :])
            file.packets.append(
                Packet(
                    number,
                    high << 32 | low,
                    body[20 : 20 + kept],
                    original,
                    found.get(1, b"").decode(),
                    struct.unpack("<I", found[2])[0],
                    struct.unpack("<Q", found.get(4, bytes(8)))[0],
                )
            )
        at += size
    return file
