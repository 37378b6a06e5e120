"""Hostile rings by the million: made, run through the real handlers and judged in compiled code.

A die is thrown for every ring: mostly whole chains with a flaw or two, some of arbitrary bytes,
some that are the last one with bytes changed, and now and then one with a thousand pieces.
"""

from __future__ import annotations

from typing import Any

from vhostnet.datapath import packed_ring, split_ring, via_gen  # noqa: F401  (the bodies)
from vhostnet.datapath.layout import PACKED_VRING, SPLIT_VRING, VHOST_NET_PKT_WEIGHT
from vhostnet.datapath.rx import handle_rx
from vhostnet.datapath.tx import handle_tx
from vhostnet.datapath.vring_ops import disable_notify, enable_notify, signal_used
from vhostnet.native._jit import family, helper, implements, kernel
from vhostnet.native.ordering import store_i64, store_relaxed_u16, store_u8

Record = Any
NEXT, WRITE, INDIRECT = 1, 2, 4
#: Of the result: what was counted.
RUNS, MOST_CHAINS, FAILURES, PACKETS, MISSES, MALFORMED, SHORT, TOO_SMALL, FIRST_CODE = range(9)
N_RESULTS = FIRST_CODE + 64
#: Places in `where`: our addresses of the parts and of the table, and the table's guest address.
DESC, AVAIL, USED, TABLE, TABLE_GPA, NUM, AVAIL_SIZE, USED_SIZE = range(8)


@helper
def draw(state: Any) -> int:
    """The next 60 random bits (xorshift64)."""
    x = int(state[0])
    x ^= (x << 13) & 0x7FFFFFFFFFFFFFFF
    x ^= x >> 7
    x ^= (x << 17) & 0x7FFFFFFFFFFFFFFF
    state[0] = x
    return x >> 2


@helper
def chance(state: Any, one_in: int) -> bool:
    """True once in so many; never for 0."""
    return one_in > 0 and draw(state) % one_in == 0


@family
def put_descriptor(vq: Record, hva: int, addr: int, length: int, flags: int, last: int) -> None:
    """Write 16 bytes; *last* is `next` or an id."""
    raise NotImplementedError


@implements(put_descriptor, SPLIT_VRING)
def _put_split(vq: Record, hva: int, addr: int, length: int, flags: int, last: int) -> None:  # noqa: ARG001
    store_i64(hva, addr)
    store_i64(hva + 8, length | (flags << 32) | (last << 48))


@implements(put_descriptor, PACKED_VRING)
def _put_packed(vq: Record, hva: int, addr: int, length: int, flags: int, last: int) -> None:  # noqa: ARG001
    store_i64(hva, addr)
    store_i64(hva + 8, length | (last << 32) | (flags << 48))


@helper
def _buffer(state: Any, spots: Any, lengths: Any, flaw: int) -> tuple[int, int]:
    """An address and a length."""
    r = draw(state)
    n_good = 6
    addr = int(spots[r % n_good]) + (r >> 8) % 700
    length = int(lengths[(r >> 20) % 12])
    if chance(state, flaw):
        addr = int(spots[(r >> 30) % len(spots)]) - (r >> 40) % 40
    if chance(state, flaw):
        length = int(lengths[(r >> 50) % len(lengths)])
    return addr, length


@helper
def _table(
    state: Any, vq: Record, where: Any, spots: Any, lengths: Any, usual: int, flaw: int
) -> int:
    """Fill the indirect table; returns its length in bytes."""
    n = 1 + draw(state) % 6
    for k in range(n):
        addr, length = _buffer(state, spots, lengths, flaw)
        flags = usual | (NEXT if k + 1 < n else 0)
        if chance(state, flaw):
            flags ^= 1 << (draw(state) % 3)
        put_descriptor(vq, int(where[TABLE]) + 16 * k, addr, length, flags, 0)
    size = 16 * n
    if chance(state, flaw):
        size = int(lengths[draw(state) % len(lengths)]) * (16 if chance(state, 2) else 1)
    return size & 0xFFFFFFFF


@helper
def _chains(
    state: Any, vq: Record, where: Any, spots: Any, lengths: Any, usual: int, flaw: int, lap: Any
) -> None:
    """Fill the descriptors, as the driver of a format would in this lap."""
    num = int(where[NUM])
    left = 0
    for k in range(num):
        if left == 0:
            left = 1 + draw(state) % 3
            left = min(left, num - k)
        left -= 1
        addr, length = _buffer(state, spots, lengths, flaw)
        flags = usual
        if chance(state, 6):
            length = _table(state, vq, where, spots, lengths, usual, flaw)
            addr = int(where[TABLE_GPA])
            if chance(state, flaw):
                addr = int(spots[draw(state) % len(spots)])
            flags = INDIRECT
        if left > 0:
            flags |= NEXT
        following = k + 1
        if chance(state, flaw):
            flags ^= NEXT
            following = draw(state) % (num + 2)
        at = (lap[0] + k) % num if lap[0] >= 0 else k
        if lap[0] >= 0:
            is_first_lap = lap[1] == (1 if lap[0] + k < num else 0)
            flags |= 1 << 7 if is_first_lap else 1 << 15
            if chance(state, flaw):
                flags ^= 1 << 7
            following = k
        put_descriptor(vq, int(where[DESC]) + 16 * at, addr, length, flags, following)


@helper
def _crowd(state: Any, vq: Record, where: Any, spots: Any, usual: int, lap: Any) -> None:
    """All descriptors one chain, each pointing at a large table: near the limit of pieces."""
    num = int(where[NUM])
    n = 127 + draw(state) % 3
    for k in range(n):
        flags = usual | (NEXT if k + 1 < n else 0)
        put_descriptor(vq, int(where[TABLE]) + 16 * k, int(spots[0]) + k, k % 3, flags, 0)
    for k in range(num):
        flags = INDIRECT | (NEXT if k + 1 < num else 0)
        at = k
        if lap[0] >= 0:
            at = (lap[0] + k) % num
            flags |= 1 << 7 if lap[1] == (1 if lap[0] + k < num else 0) else 1 << 15
        put_descriptor(vq, int(where[DESC]) + 16 * at, int(where[TABLE_GPA]), 16 * n, flags, k + 1)


@family
def lap_of(vq: Record) -> tuple[int, int]:
    """Position and wrap counter of a packed ring, (-1, 0) of a split one."""
    raise NotImplementedError


@implements(lap_of, SPLIT_VRING)
def _lap_split(vq: Record) -> tuple[int, int]:  # noqa: ARG001
    return -1, 0


@implements(lap_of, PACKED_VRING)
def _lap_packed(vq: Record) -> tuple[int, int]:
    return int(vq["avail_pos"]), int(vq["avail_wrap"])


@family
def offer(vq: Record, where: Any, state: Any, flaw: int) -> None:
    """Write the driver's area: heads and index, or wishes only."""
    raise NotImplementedError


@implements(offer, SPLIT_VRING)
def _offer_split(vq: Record, where: Any, state: Any, flaw: int) -> None:
    num = int(where[NUM])
    avail = int(where[AVAIL])
    last = int(vq["last_avail_idx"])
    vq["avail_idx"] = last  # as after a start: what was seen before is forgotten
    for k in range(num):
        head = k if draw(state) % 4 else draw(state) % num
        if chance(state, flaw):
            head = draw(state) & 0xFFFF
        store_relaxed_u16(avail + 4 + 2 * ((last + k) & (num - 1)), head)
    n = 1 + draw(state) % num
    if chance(state, flaw):
        n = draw(state) & 0xFFFF
    store_relaxed_u16(avail + 2, (last + n) & 0xFFFF)
    store_relaxed_u16(avail, draw(state) & 1)
    store_relaxed_u16(
        avail + 4 + 2 * num, (int(vq["last_used_idx"]) + draw(state) % 12 - 2) & 0xFFFF
    )


@implements(offer, PACKED_VRING)
def _offer_packed(vq: Record, where: Any, state: Any, flaw: int) -> None:  # noqa: ARG001
    r = draw(state)
    store_relaxed_u16(int(where[AVAIL]), (r % int(where[NUM])) | ((r >> 8) & 1) << 15)
    store_relaxed_u16(int(where[AVAIL]) + 2, (r >> 9) & 3)


@family
def seen_again(vq: Record) -> None:
    """Take the positions as a restart would: nothing seen."""
    raise NotImplementedError


@implements(seen_again, SPLIT_VRING)
def _seen_split(vq: Record) -> None:
    vq["avail_idx"] = vq["last_avail_idx"]


@implements(seen_again, PACKED_VRING)
def _seen_packed(vq: Record) -> None:
    vq["seen_pos"] = vq["avail_pos"]
    vq["seen_wrap"] = vq["avail_wrap"]


@helper
def _scribble(state: Any, hva: int, size: int, n: int) -> None:
    for _ in range(n):
        r = draw(state)
        store_u8(hva + r % size, (r >> 20) & 0xFF)


@helper
def _chains_taken(vq: Record) -> int:
    return (
        int(vq["packets"])
        + int(vq["drop_short"])
        + int(vq["drop_malformed"])
        + int(vq["drop_too_long"])
        + int(vq["drop_refused"])
        + int(vq["drop_too_small"])
    )


@kernel
def hostile_rings(
    n: int,
    state: Any,
    where: Any,
    spots: Any,
    lengths: Any,
    worker_array: Any,
    rx_array: Any,
    tx_array: Any,
    mem: Any,
    regions: Any,
    bk_array: Any,
    iov: Any,
    heads: Any,
    lap: Any,
    result: Any,
) -> int:
    """Make and run *n* rings.

    Args:
        state: i8[1], the die.
        where: i8[8], see DESC ...
        spots: i8[m], guest addresses; the first six have 1300 bytes behind them.
        lengths: i8[m], the first twelve are those of good buffers.
        lap: i8[2], scratch.
        result: i8[N_RESULTS], added to.

    Returns:
        0, or the number of the first run that broke its budget or kept completions back.
    """
    worker = worker_array[0]
    bk = bk_array[0]
    for i in range(n):
        r = draw(state)
        is_rx = r & 1 == 0
        vq = rx_array[0] if is_rx else tx_array[0]
        usual = WRITE if is_rx else 0
        kind = (r >> 4) % 16
        flaw = 0
        if (r >> 8) % 4 == 1:
            flaw = 64
        elif (r >> 8) % 4 == 2:
            flaw = 16
        elif (r >> 8) % 4 == 3:
            flaw = 5
        pos, wrap = lap_of(vq)
        lap[0] = pos
        lap[1] = wrap
        if kind == 0:
            _scribble(state, int(where[DESC]), 16 * int(where[NUM]), 16 * int(where[NUM]))
            _scribble(state, int(where[AVAIL]), int(where[AVAIL_SIZE]), 8)
            seen_again(vq)
        elif kind < 3:
            _scribble(state, int(where[DESC]), 16 * int(where[NUM]), 1 + (r >> 12) % 4)
            _scribble(state, int(where[AVAIL]), int(where[AVAIL_SIZE]), (r >> 16) % 3)
            _scribble(state, int(where[USED]), int(where[USED_SIZE]), (r >> 20) % 2)
            _scribble(state, int(where[TABLE]), 128, (r >> 24) % 4)
        else:
            if kind == 3 and (r >> 12) % 32 == 0:
                _crowd(state, vq, where, spots, usual, lap)
            else:
                _chains(state, vq, where, spots, lengths, usual, flaw, lap)
            offer(vq, where, state, flaw)
        vq["last_error"] = 0
        worker["n_work"] = 0
        worker["queued"] = 0
        worker["work_list"] = 0
        before = _chains_taken(vq)
        misses = int(vq["iotlb_misses"])
        bk["frame_len"] = int(lengths[(r >> 30) % 12]) + 1 + (r >> 40) % 500
        if is_rx:
            handle_rx(worker, vq, mem, regions, bk, iov, heads)
        else:
            handle_tx(worker, vq, mem, bk, iov)
        signal_used(vq)
        if vq["wants_kick"] and enable_notify(vq):
            disable_notify(vq)
        chains = _chains_taken(vq) - before
        result[RUNS] += 1
        result[MOST_CHAINS] = max(int(result[MOST_CHAINS]), chains)
        result[MISSES] += int(vq["iotlb_misses"]) - misses
        code = -int(vq["last_error"])
        result[FIRST_CODE + min(code, 63)] += 1
        if chains > VHOST_NET_PKT_WEIGHT or int(vq["done_idx"]) != 0 or int(worker["n_work"]) > 2:
            result[FAILURES] += 1
            return i + 1
    return 0
