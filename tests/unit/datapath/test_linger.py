"""A driver that sends flat out is waited for a moment before it is asked to kick."""

from __future__ import annotations

import os
import socket

import pytest

from instance import MRG, RX, TX, V1
from vhostnet.datapath import linger
from vhostnet.native._jit import JIT_ENABLED

HDR = bytes(12)
FRAME = bytes(60)
BATCH = linger.LINGER_CHAINS
#: A worker that is not asleep yet may take some of them before the rest, which is a batch still.
SOME = 4 * BATCH


@pytest.fixture
def pair(instance):
    pair = instance(features=MRG | V1, num=256)
    pair.wire.setblocking(True)
    pair.wire.settimeout(60)
    pair.wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return pair


def send(pair, count: int) -> None:
    for _ in range(count):
        pair.tx.send(HDR + FRAME)
    os.eventfd_write(pair.kicks[TX], 1)
    for _ in range(count):
        assert pair.wire.recv(100) == HDR + FRAME


def test_after_a_batch_it_sleeps_all_the_same(pair):
    send(pair, SOME)
    pair.flush()
    assert pair.counter(TX, "run_chains") < BATCH
    assert pair.counter(TX, "kicks") == 1
    send(pair, 1)


@pytest.mark.skipif(JIT_ENABLED, reason="compiled code cannot be interrupted")
@pytest.mark.parametrize("index", [TX, RX])
def test_what_comes_meanwhile_needs_no_kick(pair, monkeypatch, index):
    waited = []

    def meanwhile() -> None:
        if not waited and pair.counter(TX, "packets") == SOME:
            waited.append(index)
            if index == TX:
                pair.tx.send(HDR + FRAME)
            else:
                pair.rx.post(1500)

    monkeypatch.setattr(linger, "cpu_relax", meanwhile)
    monkeypatch.setattr(linger, "LINGER_NS", 20_000_000)
    if index == RX:
        pair.wire.send(HDR + FRAME)  # waits for a buffer
        pair.flush()
        assert pair.counter(RX, "waits_no_buffers") == 1
    send(pair, SOME)
    if index == TX:
        assert pair.wire.recv(100) == HDR + FRAME
    pair.flush()
    assert waited == [index]
    assert len(pair.rx.collect()) == (index == RX)
    assert pair.counter(TX, "kicks") == 1
    assert pair.counter(RX, "kicks") == 0


@pytest.mark.skipif(JIT_ENABLED, reason="compiled code cannot be interrupted")
def test_a_guest_that_sends_one_by_one_is_not_waited_for(pair, monkeypatch):
    monkeypatch.setattr(linger, "cpu_relax", lambda: pytest.fail("waited"))
    for _ in range(40):
        send(pair, 1)
        pair.flush()
    assert pair.counter(TX, "packets") == 40
