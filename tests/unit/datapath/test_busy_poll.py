"""Busy polling changes when packets move, never whether; asleep it must still be woken."""

from __future__ import annotations

import pytest

from instance import MRG, RX, TX, V1
from serve_process import wait_until

HDR = bytes(12)
FRAME = bytes(60)


@pytest.mark.parametrize("adaptive", [False, True])
def test_packets_move_without_a_kick_while_it_looks(instance, adaptive):
    pair = instance(features=MRG | V1)
    for index in (RX, TX):
        pair.net.set_vring_busyloop_timeout(index, 30_000_000, adaptive)
    pair.wire.setblocking(True)
    pair.wire.settimeout(60)
    if adaptive:  # a minimal spin first: let it grow by finding something
        pair.net.worker.record[0]["spin_ns"] = 30_000_000_000
    pair.kick(TX)
    pair.tx.send(HDR + FRAME)
    assert pair.wire.recv(100) == HDR + FRAME
    pair.rx.post(1500)
    pair.wire.send(HDR + FRAME)
    pair.flush()
    assert len(pair.rx.collect()) == 1


@pytest.mark.parametrize("adaptive", [False, True])
def test_after_a_short_look_a_kick_is_asked_for_and_wakes(instance, adaptive):
    pair = instance(features=MRG | V1)
    pair.net.set_vring_busyloop_timeout(TX, 50, adaptive)
    for _ in range(20):
        pair.tx.send(HDR + FRAME)
        pair.kick(TX)
    assert len(pair.sent()) == 20
    assert pair.net.worker.record[0]["spins"] > 0


def test_adaptive_spinning_gives_up_at_rest(instance):
    pair = instance(features=MRG | V1)
    pair.net.set_vring_busyloop_timeout(TX, 1000, True)
    pair.net.worker.record[0]["spin_ns"] = 1_000_000

    def is_short() -> bool:
        pair.kick(TX)
        return bool(pair.net.worker.record[0]["spin_ns"] < 100_000)

    wait_until(is_short, "a tenth of it")
