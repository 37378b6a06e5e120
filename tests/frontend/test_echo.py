"""What the latency workload rests on: one frame at a time, there and back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import pytest
from beds import in_process

from vhostnet.backends.memory_backends import LoopBackend, NullBackend
from vhostnet.bench import own_driver
from vhostnet.datapath import catalogue
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, mask
from vhostnet_frontend import DEFAULT_FEATURES, GuestMemory, NetDriver

NUM = 1024  # the benchmark's


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    catalogue.warm([*catalogue.kernels_for("loop"), *catalogue.kernels_for("null")])


@pytest.fixture(autouse=True)
def few_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_driver, "_TRIPS", NUM + 100)  # all round the rings


@pytest.fixture(autouse=True)
def short_turns() -> Iterator[None]:
    """Interpreted, driver and worker share the interpreter, and a driver that spins keeps it for a
    whole turn each time the worker comes back from a system call; every atomic is one.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(50e-6)
    yield
    sys.setswitchinterval(before)


def driver(backend: LoopBackend | NullBackend, packed: bool) -> NetDriver:
    features = DEFAULT_FEATURES | (mask(VIRTIO_F_RING_PACKED) if packed else 0)
    memory = GuestMemory(own_driver.region_specs(3, NUM))
    transport = in_process(backend.queues[0])
    return NetDriver(transport, features=features, num=NUM, memory=memory)


def arguments(asleep: bool, size: int = 64) -> argparse.Namespace:
    return argparse.Namespace(size=size, seconds=0.01, asleep=asleep, rest_us=0)


@pytest.mark.parametrize("size", [64, 1514])
@pytest.mark.parametrize("asleep", [False, True], ids=["spinning", "asleep"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_every_frame_comes_back_and_takes_time(packed: bool, asleep: bool, size: int) -> None:
    with driver(LoopBackend(1), packed) as card:
        found = own_driver.echo(arguments(asleep, size), card)
    assert 0 < found["median_us"] <= found["p99_us"] <= found["p999_us"]


def test_a_device_that_sends_nothing_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_driver, "_LOST_MS", 50)
    with driver(NullBackend(1), False) as card, pytest.raises(SystemExit, match="after 0"):
        own_driver.echo(arguments(False), card)
