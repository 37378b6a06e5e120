"""The packed ring's bodies of `fast_ops`; the rules and their numbers are `packed_ring`'s."""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import hot, implements
from vhostnet.native.ordering import (
    load_acquire_u16,
    load_relaxed_i32,
    load_relaxed_u16,
    smp_mb,
    store_i64,
    store_relaxed_u16,
    store_release_u16,
)
from vhostnet.uapi.virtio import (
    VRING_DESC_SIZE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_F_WRAP_CTR,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
)

from .fast_layout import FAST_PACKED
from .fast_ops import (
    driver_add,
    driver_disable_interrupts,
    driver_enable_interrupts,
    driver_needs_kick,
    driver_peek_used,
    driver_publish,
    driver_skip_used,
)

Record = Any
_AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL
_USED = 1 << VRING_PACKED_DESC_F_USED
_WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR
_FLAGS_AT = 14


@hot
def _flags_hva(ring: Record, at: int) -> int:
    return int(ring["ring_hva"]) + VRING_DESC_SIZE * at + _FLAGS_AT


@implements(driver_add, FAST_PACKED, is_hot=True)
def _add(ring: Record, slot: int, size: int, flags: int) -> None:
    at = int(ring["next_avail"])
    wrap = int(ring["avail_wrap"])
    flags |= _AVAIL if wrap else _USED
    desc = int(ring["ring_hva"]) + VRING_DESC_SIZE * at
    store_i64(desc, int(ring["buf_gpa"]) + slot * int(ring["stride"]))
    if int(ring["held_at"]) < 0:
        # the batch's first: what stays in flags must not be available yet (1)
        ring["held_at"] = at
        ring["held_flags"] = flags
        flags = 0 if wrap else _AVAIL | _USED
    store_i64(desc + 8, size | slot << 32 | flags << 48)
    at += 1
    if at == int(ring["num"]):
        at = 0
        ring["avail_wrap"] = 1 - wrap
    ring["next_avail"] = at
    ring["unkicked"] += 1


@implements(driver_publish, FAST_PACKED)
def _publish(ring: Record) -> None:
    at = int(ring["held_at"])
    if at >= 0:
        # the whole batch before the flags of its first descriptor (1)
        store_release_u16(_flags_hva(ring, at), int(ring["held_flags"]))
        ring["held_at"] = -1


@implements(driver_needs_kick, FAST_PACKED)
def _needs_kick(ring: Record) -> bool:
    smp_mb()  # our flags before the device's wish (2)
    added = int(ring["unkicked"])
    ring["unkicked"] = 0
    device_hva = int(ring["device_hva"])
    flags = load_acquire_u16(device_hva + 2)
    if flags != VRING_PACKED_EVENT_FLAG_DESC:
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE
    off_wrap = load_relaxed_u16(device_hva)
    event = off_wrap & ~_WRAP
    if (off_wrap & _WRAP != 0) != (int(ring["avail_wrap"]) != 0):
        event -= int(ring["num"])
    new = int(ring["next_avail"])
    return ((new - event - 1) & 0xFFFF) < added


@hot
def _is_used(ring: Record, at: int, wrap: int) -> bool:
    flags = load_acquire_u16(_flags_hva(ring, at)) & (_AVAIL | _USED)
    return flags == (_AVAIL | _USED if wrap else 0)


@implements(driver_peek_used, FAST_PACKED, is_hot=True)
def _peek_used(ring: Record) -> tuple[int, int]:
    at = int(ring["next_used"])
    # the flags before id and length (3)
    if not _is_used(ring, at, int(ring["used_wrap"])):
        return -1, 0
    desc = int(ring["ring_hva"]) + VRING_DESC_SIZE * at
    return load_relaxed_u16(desc + 12), load_relaxed_i32(desc + 8) & 0xFFFFFFFF


@implements(driver_skip_used, FAST_PACKED, is_hot=True)
def _skip_used(ring: Record) -> None:
    at = int(ring["next_used"]) + 1
    if at == int(ring["num"]):
        at = 0
        ring["used_wrap"] = 1 - int(ring["used_wrap"])
    ring["next_used"] = at


@implements(driver_enable_interrupts, FAST_PACKED)
def _enable_interrupts(ring: Record, after: int) -> bool:
    driver_hva = int(ring["driver_hva"])
    if ring["event_idx"]:
        at = int(ring["next_used"]) + after
        wrap = int(ring["used_wrap"])
        if at >= int(ring["num"]):
            at -= int(ring["num"])
            wrap = 1 - wrap
        store_relaxed_u16(driver_hva, at | (_WRAP if wrap else 0))
        # the offset before the flags that make it valid
        store_release_u16(driver_hva + 2, VRING_PACKED_EVENT_FLAG_DESC)
    else:
        at = int(ring["next_used"])
        wrap = int(ring["used_wrap"])
        store_relaxed_u16(driver_hva + 2, VRING_PACKED_EVENT_FLAG_ENABLE)
    smp_mb()  # our wish before the descriptor is looked at again (4)
    return _is_used(ring, at, wrap)


@implements(driver_disable_interrupts, FAST_PACKED)
def _disable_interrupts(ring: Record) -> None:
    store_relaxed_u16(int(ring["driver_hva"]) + 2, VRING_PACKED_EVENT_FLAG_DISABLE)
