"""A packed ring as VIRTIO 1.2 section 2.8 draws it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from vhostnet.datapath.codes import RING_BAD_NEXT, RING_LOOP
from vhostnet.uapi.virtio import (
    VRING_DESC_F_NEXT,
    VRING_DESC_SIZE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_F_WRAP_CTR,
    VRING_PACKED_EVENT_SIZE,
)

from .chain_picture import Broken, Chain, breaks_a_rule, packed_descriptor, reason
from .guest_bytes import GuestBytes
from .split_picture import BEHIND, TRIES

_EVENT_FLAGS = ("ENABLE", "DISABLE", "DESC", "reserved")


def packed_picture(
    vq: Any, parts: Mapping[str, int], memory: GuestBytes, limit: int, budget: int
) -> dict[str, Any]:
    """As `split_picture`; *parts*: ring_hva, driver_hva, device_hva."""
    ring, driver, device, pos, wrap = _read(vq, parts, memory)
    num = len(ring) // VRING_DESC_SIZE
    problems: list[str] = []
    chains: list[dict[str, Any]] = []
    at, lap, taken = pos, wrap, 0
    while len(chains) < limit and budget > 0 and taken < num and _is_available(ring, at, lap):
        chain, at, lap = _chain(ring, at, lap, memory, budget)
        chains.append(chain)
        budget = chain.pop("budget")
        taken += max(1, sum("in-table" not in d for d in chain["descriptors"]))
        if chain["problem"]:
            break  # where the next one begins is not known
    moved = (int(vq["avail_pos"]), int(vq["avail_wrap"])) != (pos, wrap)
    for chain in chains:
        chain["taken-meanwhile"] = moved
        if moved:
            chain["problem"] = None
        elif breaks_a_rule(chain):
            problems.append(f"chain at {chain['position']}: {chain['problem']}")
    used_pos = int(vq["used_pos"])
    return {
        "ring": [
            _entry(ring, place % num, place // num, wrap)
            for place in range(pos - min(BEHIND, num), pos + min(limit, num - min(BEHIND, num)))
        ],
        "driver-event": _event(driver),
        "device-event": _event(device),
        "device-side": {
            "avail-pos": pos,
            "avail-wrap": wrap,
            "used-pos": used_pos,
            "used-wrap": int(vq["used_wrap"]),
            "unpublished": int(vq["done_idx"]),
        },
        "chains": chains,
        "problems": problems,
    }


def _read(
    vq: Any, parts: Mapping[str, int], memory: GuestBytes
) -> tuple[bytes, bytes, bytes, int, int]:
    """Ring, event areas, and the device's position, at best of a moment when that stood still."""
    for last_try in (False,) * (TRIES - 1) + (True,):
        pos, wrap = int(vq["avail_pos"]), int(vq["avail_wrap"])
        ring = memory.at_host(parts["ring_hva"], VRING_DESC_SIZE * int(vq["packed_num"]))
        driver = memory.at_host(parts["driver_hva"], VRING_PACKED_EVENT_SIZE)
        device = memory.at_host(parts["device_hva"], VRING_PACKED_EVENT_SIZE)
        if ring is None or driver is None or device is None:
            raise OSError("the ring's memory cannot be read")
        if last_try or (int(vq["avail_pos"]), int(vq["avail_wrap"])) == (pos, wrap):
            return ring, driver, device, pos, wrap
    raise AssertionError("the last try returns")


def _flags(ring: bytes, pos: int) -> int:
    (flags,) = struct.unpack_from("<H", ring, pos * VRING_DESC_SIZE + 14)
    return int(flags)


def _bits(ring: bytes, pos: int) -> tuple[int, int]:
    flags = _flags(ring, pos)
    return flags >> VRING_PACKED_DESC_F_AVAIL & 1, flags >> VRING_PACKED_DESC_F_USED & 1


def _is_available(ring: bytes, pos: int, wrap: int) -> bool:
    avail, used = _bits(ring, pos)
    return avail == wrap and used != wrap


def _chain(
    ring: bytes, pos: int, wrap: int, memory: GuestBytes, budget: int
) -> tuple[dict[str, Any], int, int]:
    """A chain, and the position and wrap counter behind it."""
    num = len(ring) // VRING_DESC_SIZE
    begin = pos
    chain = Chain(memory, False, budget)
    number, problem = 0, None
    try:
        found = 0
        while chain.budget > 0:
            found += 1
            if found > num:
                raise Broken(RING_LOOP)
            raw = ring[pos * VRING_DESC_SIZE : (pos + 1) * VRING_DESC_SIZE]
            descriptor, number = packed_descriptor(raw)
            at, pos = pos, (pos + 1) % num
            wrap ^= pos == 0
            chain.add(at, descriptor)
            if not descriptor.flags & VRING_DESC_F_NEXT:
                break
            if not _is_available(ring, pos, wrap):
                raise Broken(RING_BAD_NEXT)
    except Broken as broken:
        problem = reason(broken)
    drawn = {
        "position": begin,
        "id": number,
        **chain.picture(problem),
    }
    return drawn, pos, wrap


def _entry(ring: bytes, pos: int, laps: int, wrap: int) -> dict[str, Any]:
    """One descriptor; *laps* away from the lap of *wrap*."""
    descriptor, number = packed_descriptor(
        ring[pos * VRING_DESC_SIZE : (pos + 1) * VRING_DESC_SIZE]
    )
    avail, used = _bits(ring, pos)
    if avail != used:
        state = "available" if avail == wrap ^ (laps & 1) else "available (other lap)"
    else:
        state = "used"
    return {
        "position": pos,
        "address": f"{descriptor.address:#x}",
        "len": descriptor.length,
        "id": number,
        "avail": avail,
        "used": used,
        "state": state,
    }


def _event(raw: bytes) -> dict[str, Any]:
    """struct pvirtq_event_suppress."""
    off_wrap, flags = struct.unpack("<HH", raw)
    return {
        "position": off_wrap & ~(1 << VRING_PACKED_EVENT_F_WRAP_CTR),
        "wrap": off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR,
        "flags": _EVENT_FLAGS[flags & 3],
    }
