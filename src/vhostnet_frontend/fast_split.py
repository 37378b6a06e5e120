"""The split ring's bodies of `fast_ops`; the rules and their numbers are `split_ring`'s."""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import implements
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
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_AVAIL_FLAGS,
    VRING_AVAIL_IDX,
    VRING_AVAIL_RING,
    VRING_DESC_SIZE,
    VRING_USED_ELEM_SIZE,
    VRING_USED_F_NO_NOTIFY,
    VRING_USED_FLAGS,
    VRING_USED_IDX,
    VRING_USED_RING,
)

from .fast_layout import FAST_SPLIT
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


@implements(driver_add, FAST_SPLIT, is_hot=True)
def _add(ring: Record, slot: int, size: int, flags: int) -> None:
    desc = int(ring["desc_hva"]) + VRING_DESC_SIZE * slot
    store_i64(desc, int(ring["buf_gpa"]) + slot * int(ring["stride"]))
    store_i64(desc + 8, size | flags << 32)
    at = int(ring["avail_idx"]) & (int(ring["num"]) - 1)
    store_relaxed_u16(int(ring["avail_hva"]) + VRING_AVAIL_RING + 2 * at, slot)
    ring["avail_idx"] = (int(ring["avail_idx"]) + 1) & 0xFFFF


@implements(driver_publish, FAST_SPLIT)
def _publish(ring: Record) -> None:
    # descriptors and entries before the index (1)
    store_release_u16(int(ring["avail_hva"]) + VRING_AVAIL_IDX, int(ring["avail_idx"]))


@implements(driver_needs_kick, FAST_SPLIT)
def _needs_kick(ring: Record) -> bool:
    smp_mb()  # our index before the device's wish (2)
    old = int(ring["kicked_idx"])
    new = int(ring["avail_idx"])
    ring["kicked_idx"] = new
    used_hva = int(ring["used_hva"])
    if ring["event_idx"]:
        event = load_relaxed_u16(
            used_hva + VRING_USED_RING + VRING_USED_ELEM_SIZE * int(ring["num"])
        )
        return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
    return load_relaxed_u16(used_hva + VRING_USED_FLAGS) & VRING_USED_F_NO_NOTIFY == 0


@implements(driver_peek_used, FAST_SPLIT, is_hot=True)
def _peek_used(ring: Record) -> tuple[int, int]:
    seen = int(ring["used_seen"])
    used_hva = int(ring["used_hva"])
    if int(ring["used_idx"]) == seen:
        # the index before the entries (3)
        ring["used_idx"] = load_acquire_u16(used_hva + VRING_USED_IDX)
        if int(ring["used_idx"]) == seen:
            return -1, 0
    at = used_hva + VRING_USED_RING + VRING_USED_ELEM_SIZE * (seen & (int(ring["num"]) - 1))
    return load_relaxed_i32(at) & 0xFFFFFFFF, load_relaxed_i32(at + 4) & 0xFFFFFFFF


@implements(driver_skip_used, FAST_SPLIT, is_hot=True)
def _skip_used(ring: Record) -> None:
    ring["used_seen"] = (int(ring["used_seen"]) + 1) & 0xFFFF


@implements(driver_enable_interrupts, FAST_SPLIT)
def _enable_interrupts(ring: Record, after: int) -> bool:
    avail_hva = int(ring["avail_hva"])
    seen = int(ring["used_seen"])
    if ring["event_idx"]:
        used_event = avail_hva + VRING_AVAIL_RING + 2 * int(ring["num"])
        store_relaxed_u16(used_event, (seen + after) & 0xFFFF)
    else:
        after = 0  # there is no asking for less
        store_relaxed_u16(avail_hva + VRING_AVAIL_FLAGS, 0)
    smp_mb()  # our wish before the index is read again (4)
    used = load_acquire_u16(int(ring["used_hva"]) + VRING_USED_IDX)
    return ((used - seen) & 0xFFFF) > after


@implements(driver_disable_interrupts, FAST_SPLIT)
def _disable_interrupts(ring: Record) -> None:
    avail_hva = int(ring["avail_hva"])
    if ring["event_idx"]:
        used_event = avail_hva + VRING_AVAIL_RING + 2 * int(ring["num"])
        store_relaxed_u16(used_event, (int(ring["used_seen"]) - 1) & 0xFFFF)
    else:
        store_relaxed_u16(avail_hva + VRING_AVAIL_FLAGS, VRING_AVAIL_F_NO_INTERRUPT)
