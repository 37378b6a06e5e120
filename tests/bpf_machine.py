"""A small machine that runs seccomp filters."""

from __future__ import annotations

import struct


def verdict(code: bytes, nr: int, args: tuple[int, ...] = (), audit: int = 0) -> int:
    """What the filter says: classic BPF, as far as it is used."""
    words = [*args, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", nr, audit, 0x7FFF00001000, *words)
    steps = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    at = a = 0
    for _ in range(len(steps)):  # there are no loops
        op, jt, jf, k = steps[at]
        at += 1
        if op == 0x20:
            (a,) = struct.unpack_from("=I", data, k)
        elif op == 0x06:
            return k
        elif op == 0x05:
            at += k
        elif op == 0x54:
            a &= k
        elif op == 0x74:
            a >>= k
        else:
            holds = {0x15: a == k, 0x35: a >= k, 0x45: bool(a & k)}[op]
            at += jt if holds else jf
    raise AssertionError("the filter does not end")
