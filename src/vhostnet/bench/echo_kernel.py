"""One frame at a time, there and back: the compiled half of the latency workload.

Not here: opening rings (see `own_driver`).  The driver either spins until the frame is back, or
sleeps until the device interrupts.
"""

from __future__ import annotations

from typing import Any

from vhostnet.native._jit import helper, kernel
from vhostnet.native.libc_raw import copy_bytes, epoll_wait, monotonic_ns, read, write
from vhostnet.uapi.virtio import VRING_DESC_F_WRITE
from vhostnet_frontend import fast_packed, fast_split  # noqa: F401  (the bodies)
from vhostnet_frontend.fast_ops import (
    driver_add,
    driver_disable_interrupts,
    driver_enable_interrupts,
    driver_needs_kick,
    driver_peek_used,
    driver_publish,
    driver_skip_used,
)

Record = Any
_SPINS = 1024


@helper
def _publish(ring: Record) -> None:
    driver_publish(ring)
    if driver_needs_kick(ring):
        write(int(ring["kick_fd"]), int(ring["one_hva"]), 8)


@helper
def _wait_used(ring: Record, deadline_ns: int) -> int:
    """Spin until something is used; its slot, or -1."""
    while True:
        for _ in range(_SPINS):
            slot, _length = driver_peek_used(ring)
            if slot >= 0:
                return slot
        if monotonic_ns(int(ring["scratch_hva"])) > deadline_ns:
            return -1


@helper
def _sleep_used(ring: Record, wait_ms: int) -> int:
    """Sleep until something is used; its slot, or -1."""
    while not driver_enable_interrupts(ring, 0):
        if epoll_wait(int(ring["epfd"]), int(ring["scratch_hva"]), 1, wait_ms) <= 0:
            break
        read(int(ring["call_fd"]), int(ring["scratch_hva"]), 8)
    driver_disable_interrupts(ring)
    slot, _length = driver_peek_used(ring)
    return slot


@kernel
def round_trips(
    tx_array: Any,
    rx_array: Any,
    frame_hva: int,
    size: int,
    sink_hva: int,
    times: Any,
    rest_ns: int,
    asleep: int,
    wait_ms: int,
) -> int:
    """Send a frame and wait for it, times.size times.

    Args:
        tx_array, rx_array: rings with nothing in flight, and with every buffer posted.
        frame_hva, size: header and frame, copied anew each time.
        sink_hva: u8[stride], where what came back is copied to.
        times: i8[n], in ns.
        rest_ns: pause after each, spinning.
        asleep: sleep until the device interrupts, rather than spin.
        wait_ms: give up after so long.

    Returns:
        Round trips made; fewer than asked for if a frame did not come back.
    """
    tx = tx_array[0]
    rx = rx_array[0]
    clock_hva = int(tx["scratch_hva"])
    stride = int(rx["stride"])
    tx_slot = int(tx["next_done"])
    for n in range(times.size):
        began = monotonic_ns(clock_hva)
        deadline = began + wait_ms * 1_000_000
        copy_bytes(int(tx["buf_hva"]) + tx_slot * int(tx["stride"]), frame_hva, size)
        driver_add(tx, tx_slot, size, 0)
        _publish(tx)
        if asleep:
            slot = _sleep_used(rx, wait_ms)
        else:
            slot = _wait_used(rx, deadline)
        if slot < 0 or slot >= int(rx["num"]):
            return n
        copy_bytes(sink_hva, int(rx["buf_hva"]) + slot * stride, min(size, stride))
        times[n] = monotonic_ns(clock_hva) - began
        driver_skip_used(rx)
        driver_add(rx, slot, stride, VRING_DESC_F_WRITE)
        _publish(rx)
        tx_slot = _wait_used(tx, deadline)
        if tx_slot < 0 or tx_slot >= int(tx["num"]):
            return n
        driver_skip_used(tx)
        until = monotonic_ns(clock_hva) + rest_ns
        while monotonic_ns(clock_hva) < until:
            pass
    return int(times.size)
