"""The null backend copies every byte: what the benchmark's g2d rests on."""

from __future__ import annotations

import re

import pytest
from beds import in_process

from serve_process import ServeProcess, wait_until
from vhostnet.backends.memory_backends import NullBackend
from vhostnet.datapath import catalogue
from vhostnet.uapi.virtio import (
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    mask,
)
from vhostnet_frontend import NetDriver, VhostUserTransport

HDR_LEN, N = 12, 700  # more than the sink holds of the large ones
SPLIT = mask(VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF)
FORMATS = {"split": SPLIT, "packed": SPLIT | mask(VIRTIO_F_RING_PACKED)}


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Compile beforehand: a driver gives a silent device up after some seconds."""
    catalogue.warm(catalogue.kernels_for("null"))


def expected(template: bytes, n: int) -> int:
    """The sum of n stamped frames: none is like another, so an old copy is no copy."""
    total = 0
    for number in range(n):
        packet = bytearray(bytes(HDR_LEN) + template)
        packet[HDR_LEN + 14 : HDR_LEN + 22] = number.to_bytes(8, "little")
        total += sum(byte * (place + 1) for place, byte in enumerate(packet))
    return total


def template(size: int) -> bytes:
    return bytes((7 * k + 1) & 0xFF for k in range(size))


@pytest.mark.parametrize("size", [64, 1514])
@pytest.mark.parametrize("ring", FORMATS)
def test_every_byte_of_every_packet_is_in_the_copy(ring: str, size: int) -> None:
    backend = NullBackend(1, checksum=True)
    transport = in_process(backend.queues[0])
    with NetDriver(transport, features=FORMATS[ring]) as driver:
        driver.start()
        sender = driver.sender(template(size), stamped=True)
        assert sender.run(count=N).frames == N
        assert sender.finish()
        transport.flush()
        assert int(backend.queues[0].record[0]["sink_sum"]) == expected(template(size), N)


def test_a_daemon_tells_the_sum_when_the_driver_leaves(tmp_path) -> None:
    daemon = ServeProcess(tmp_path, "--backend", "null:checksum")
    try:
        with NetDriver(VhostUserTransport.connect(daemon.socket)) as driver:
            driver.start()
            sender = driver.sender(template(64), stamped=True)
            sender.run(count=N)
            assert sender.finish()
        wait_until(lambda: "null: pair 0: sum" in daemon.log(), "the sum in the log")
        found = re.search(r"null: pair 0: sum (\d+)", daemon.log())
        assert found is not None
        assert int(found[1]) == expected(template(64), N)
        daemon.check_and_stop()
    finally:
        daemon.kill()


def test_without_the_option_nothing_is_summed() -> None:
    backend = NullBackend(1)
    with NetDriver(in_process(backend.queues[0])) as driver:
        driver.start()
        sender = driver.sender(template(64))
        sender.run(count=N)
        assert sender.finish()
    assert int(backend.queues[0].record[0]["sink_sum"]) == 0
