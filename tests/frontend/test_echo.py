"""What the latency workload rests on: one frame at a time, there and back."""

from __future__ import annotations

import argparse

import pytest
from beds import in_process

from vhostnet.backends.memory_backends import LoopBackend, NullBackend
from vhostnet.bench import own_driver
from vhostnet.datapath import catalogue
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, mask
from vhostnet_frontend import DEFAULT_FEATURES, NetDriver


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    catalogue.warm([*catalogue.kernels_for("loop"), *catalogue.kernels_for("null")])


@pytest.fixture(autouse=True)
def few_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_driver, "_TRIPS", 300)  # more than a ring holds


def driver(backend: LoopBackend | NullBackend, packed: bool) -> NetDriver:
    features = DEFAULT_FEATURES | (mask(VIRTIO_F_RING_PACKED) if packed else 0)
    return NetDriver(in_process(backend.queues[0]), features=features, num=64)


def arguments(asleep: bool) -> argparse.Namespace:
    return argparse.Namespace(size=64, seconds=0.01, asleep=asleep, rest_us=0)


@pytest.mark.parametrize("asleep", [False, True], ids=["spinning", "asleep"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_every_frame_comes_back_and_takes_time(packed: bool, asleep: bool) -> None:
    with driver(LoopBackend(1), packed) as card:
        found = own_driver.echo(arguments(asleep), card)
    assert 0 < found["median_us"] <= found["p99_us"] <= found["p999_us"]


def test_a_device_that_sends_nothing_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_driver, "_LOST_MS", 50)
    with driver(NullBackend(1), False) as card, pytest.raises(SystemExit, match="after 0"):
        own_driver.echo(arguments(False), card)
