"""A split ring as VIRTIO 1.2 section 2.7 draws it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from vhostnet.datapath.codes import (
    RING_AVAIL_JUMP,
    RING_BAD_HEAD,
    RING_BAD_NEXT,
    RING_ERRORS,
    RING_LOOP,
)
from vhostnet.uapi.virtio import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_AVAIL_RING,
    VRING_DESC_F_NEXT,
    VRING_DESC_SIZE,
    VRING_USED_ELEM_SIZE,
    VRING_USED_F_NO_NOTIFY,
    VRING_USED_RING,
)

from .chain_picture import Broken, Chain, breaks_a_rule, reason, split_descriptor
from .guest_bytes import GuestBytes

#: Entries behind an index that are drawn.
BEHIND = 4
#: How often a position is read again because the device has moved meanwhile.
TRIES = 8
_MASK = 0xFFFF


def split_picture(
    vq: Any, parts: Mapping[str, int], memory: GuestBytes, limit: int, budget: int
) -> dict[str, Any]:
    """Draw a ring.

    Args:
        vq: its record, which the worker goes on to write.
        parts: host addresses by field of the record: desc_hva, avail_hva, used_hva.
        limit: waiting chains that are drawn, at most.
        budget: descriptors that are looked at, at most.
    """
    num = int(vq["split_num"])
    desc, avail, used, last, is_still = _read(vq, parts, memory, num)
    avail_flags, avail_idx = struct.unpack_from("<HH", avail)
    used_flags, used_idx = struct.unpack_from("<HH", used)
    (used_event,) = struct.unpack_from("<H", avail, VRING_AVAIL_RING + 2 * num)
    (avail_event,) = struct.unpack_from("<H", used, VRING_USED_RING + VRING_USED_ELEM_SIZE * num)
    waiting = (avail_idx - last) & _MASK
    problems, chains = [], []
    if waiting > num and not is_still:  # the device has gone past what we have read
        waiting = 0
    elif waiting > num:
        problems.append(
            f"avail->idx is {avail_idx}, {waiting} after {last}: {_rule(RING_AVAIL_JUMP)}"
        )
        waiting = 0
    for n in range(min(waiting, limit)):
        chain = _chain(desc, avail, (last + n) & _MASK, memory, budget)
        chains.append(chain)
        budget = chain.pop("budget")
    _judge(chains, int(vq["last_avail_idx"]), problems)
    return {
        "avail": {
            "flags": avail_flags,
            "flag-names": ["NO_INTERRUPT"] if avail_flags & VRING_AVAIL_F_NO_INTERRUPT else [],
            "idx": avail_idx,
            "used-event": used_event,
            "entries": [
                _avail_entry(avail, index & _MASK, num)
                for index in range(last - BEHIND, last + min(waiting, limit))
            ],
        },
        "used": {
            "flags": used_flags,
            "flag-names": ["NO_NOTIFY"] if used_flags & VRING_USED_F_NO_NOTIFY else [],
            "idx": used_idx,
            "avail-event": avail_event,
            "entries": [
                _used_entry(used, index & _MASK, num)
                for index in range(used_idx - BEHIND, used_idx)
            ],
        },
        "device-side": {
            "last-avail": last,
            "last-used": int(vq["last_used_idx"]),
            "unpublished": int(vq["done_idx"]),
            "waiting": waiting,
        },
        "chains": chains,
        "problems": problems,
    }


def _read(
    vq: Any, parts: Mapping[str, int], memory: GuestBytes, num: int
) -> tuple[bytes, bytes, bytes, int, bool]:
    """The three parts, the device's position, and whether that did not move meanwhile.

    The avail ring comes first: what it says is there is in the table that is read after it.
    """
    used_size = VRING_USED_RING + VRING_USED_ELEM_SIZE * num + 2
    for last_try in (False,) * (TRIES - 1) + (True,):
        last = int(vq["last_avail_idx"])
        avail = memory.at_host(parts["avail_hva"], VRING_AVAIL_RING + 2 * num + 2)
        used = memory.at_host(parts["used_hva"], used_size)
        desc = memory.at_host(parts["desc_hva"], VRING_DESC_SIZE * num)
        if avail is None or used is None or desc is None:
            raise OSError("the ring's memory cannot be read")
        is_still = int(vq["last_avail_idx"]) == last
        if is_still or last_try:
            return desc, avail, used, last, is_still
    raise AssertionError("the last try returns")


def _chain(
    desc: bytes, avail: bytes, index: int, memory: GuestBytes, budget: int
) -> dict[str, Any]:
    num = len(desc) // VRING_DESC_SIZE
    head = _head(avail, index, num)
    chain = Chain(memory, True, budget)
    problem = None
    try:
        if head >= num:
            raise Broken(RING_BAD_HEAD)
        at, found = head, 0
        while chain.budget > 0:
            found += 1
            if found > num:
                raise Broken(RING_LOOP)
            descriptor = split_descriptor(desc[at * VRING_DESC_SIZE : (at + 1) * VRING_DESC_SIZE])
            chain.add(at, descriptor)
            if not descriptor.flags & VRING_DESC_F_NEXT:
                break
            at = descriptor.last
            if at >= num:
                raise Broken(RING_BAD_NEXT)
    except Broken as broken:
        problem = reason(broken)
    return {
        "avail-idx": index,
        "head": head,
        **chain.picture(problem),
    }


def _judge(chains: list[dict[str, Any]], last: int, problems: list[str]) -> None:
    """A chain that the device has taken meanwhile was perhaps the driver's again: no verdict."""
    if not chains:
        return
    taken = (last - chains[0]["avail-idx"]) & _MASK
    for n, chain in enumerate(chains):
        chain["taken-meanwhile"] = n < taken
        if chain["taken-meanwhile"]:
            chain["problem"] = None
        elif breaks_a_rule(chain):
            problems.append(
                f"chain {chain['avail-idx']} (head {chain['head']}): {chain['problem']}"
            )


def _head(avail: bytes, index: int, num: int) -> int:
    (head,) = struct.unpack_from("<H", avail, VRING_AVAIL_RING + 2 * (index % num))
    return int(head)


def _avail_entry(avail: bytes, index: int, num: int) -> dict[str, int]:
    return {"idx": index, "slot": index % num, "head": _head(avail, index, num)}


def _used_entry(used: bytes, index: int, num: int) -> dict[str, int]:
    at = VRING_USED_RING + VRING_USED_ELEM_SIZE * (index % num)
    number, length = struct.unpack_from("<II", used, at)
    return {"idx": index, "slot": index % num, "id": number, "len": length}


def _rule(code: int) -> str:
    return RING_ERRORS[code]
