"""A driver that nobody here wrote: DPDK's virtio_user, with packets as fast as they go.

testpmd plays the guest.  What it counted as sent and received must be what we counted, to the
packet.  Debian's package dpdk-dev has it; no hugepages are needed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scrape import Scrape
from serve_process import ServeProcess, wait_until
from vhostnet.bench.testpmd import Testpmd
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, mask
from vhostnet_frontend import DEFAULT_FEATURES, NetDriver, VhostUserTransport

pytestmark = [
    pytest.mark.vmm,
    pytest.mark.skipif(shutil.which("dpdk-testpmd") is None, reason="dpdk-testpmd is missing"),
    pytest.mark.skipif(shutil.which("stdbuf") is None, reason="stdbuf is missing"),
]

QUEUE_SIZE = 256
TRAFFIC_S = 0.5


def virtio_user(socket: str, options: str, queue_pairs: int) -> Testpmd:
    """The driver, with one virtio_user port.

    Args:
        socket: of the back-end.
        options: of virtio_user, such as "packed_vq=1".
    """
    cpus = sorted(os.sched_getaffinity(0))
    device = f"path={socket},queues={queue_pairs},queue_size={QUEUE_SIZE},{options}"
    return Testpmd(
        [f"net_virtio_user0,{device}"],
        cpu=cpus[0],
        forward_cpu=cpus[-1],
        queue_size=QUEUE_SIZE,
        queue_pairs=queue_pairs,
        options=["--txpkts=64"],
    )


class Card:
    """A daemon's card, and what it has counted since the test began."""

    def __init__(self, daemon: ServeProcess) -> None:
        self.daemon, self.socket = daemon, daemon.socket
        self._before = self._scrape()
        daemon.mark()

    def _scrape(self) -> Scrape:
        return Scrape(str(Path(self.socket).with_name("metrics")))

    def told(self, direction: str, *counters: str) -> int:
        """What the session's last lines say, summed over queue pairs."""
        lines = re.findall(rf"dev0(?:\.\d+)?: {direction} (.*)", "\n".join(self.daemon.lines()))
        return sum(
            int(value)
            for line in lines
            for name, value in re.findall(r"(\w+)=(\d+)", line)
            if name in counters
        )

    def moved(self, direction: str, *counters: str) -> int:
        """What it has counted by now; `told` is for the end."""
        now = self._scrape()
        return sum(
            now.total(f"queue_{name}_total", direction=direction)
            - self._before.total(f"queue_{name}_total", direction=direction)
            for name in counters
        )

    def wait_taken(self, driver: Testpmd) -> None:
        """Wait until all that the driver has sent was taken out of its rings."""
        sent = driver.stats().sent
        wait_until(lambda: self.moved("tx", "packets", "dropped_packets") >= sent, "empty rings")

    def wait_received(self, driver: Testpmd) -> None:
        """Let the driver receive until nothing is on its way to it."""
        driver.start("rxonly")
        self.wait_taken(driver)
        taken = self.moved("tx", "packets")
        wait_until(lambda: driver.stats().received >= taken, "all that was sent")
        driver.stop()

    def finish(self, driver: Testpmd) -> tuple[int, int]:
        """End the driver and its session; returns the driver's counts."""
        stats = driver.stats()
        driver.quit()
        self.daemon.wait_idle()  # the counters have been written by then
        return stats.received, stats.sent


@pytest.fixture(scope="module")
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    """One with the backend and number of queue pairs that the tests ask for."""
    backend, queue_pairs = request.param
    folder = tmp_path_factory.mktemp("daemon")
    metrics = f"unix:{folder / 'metrics'}"
    options = ("--backend", backend, "--queue-pairs", str(queue_pairs), "--metrics", metrics)
    made = ServeProcess(folder, *options)
    try:
        yield made
        made.check_and_stop()
    finally:
        made.kill()


@pytest.fixture
def card(daemon: ServeProcess) -> Card:
    return Card(daemon)


OPTIONS = [
    "mrg_rxbuf=1,in_order=0",
    "mrg_rxbuf=1,in_order=1",
    "mrg_rxbuf=0,in_order=0",
    "mrg_rxbuf=0,in_order=1",
    "packed_vq=1,mrg_rxbuf=1,in_order=0",
    "packed_vq=1,mrg_rxbuf=1,in_order=1",
    "packed_vq=1,mrg_rxbuf=0,in_order=0",
]


def cases(backend: str) -> pytest.MarkDecorator:
    """Every set of options with one queue pair, some with two."""
    some = (OPTIONS[0], OPTIONS[4])
    return pytest.mark.parametrize(
        ("daemon", "options", "queue_pairs"),
        [
            *[((backend, 1), options, 1) for options in OPTIONS],
            *[((backend, 2), options, 2) for options in some],
        ],
        indirect=["daemon"],
        ids=[*OPTIONS, *(f"{options},queues=2" for options in some)],
    )


@cases("null")
def test_all_that_the_driver_sends_is_taken(card, options, queue_pairs):
    with virtio_user(card.socket, options, queue_pairs) as driver:
        driver.forward("txonly", TRAFFIC_S)
        card.wait_taken(driver)
        _, sent = card.finish(driver)
    assert sent > 1000
    # A driver with two pairs sends on the second before we have read that it is enabled; until
    # then its packets are taken and thrown away, as the protocol wants it.
    assert card.told("tx", "packets", "drop_disabled") == sent
    assert card.told("tx", "drop_disabled") == 0 or queue_pairs > 1


@cases("gen:size=64")
def test_all_that_is_generated_is_received(card, options, queue_pairs):
    with virtio_user(card.socket, options, queue_pairs) as driver:
        driver.forward("rxonly", TRAFFIC_S)
        received, _ = card.finish(driver)
    assert received > 1000
    # The rings are full of packets that the driver has not looked at; under load one more ring's
    # worth was seen once (three rings with two pairs), which it has perhaps flushed uncounted.
    given = card.told("rx", "packets")
    assert received <= given <= received + 4 * queue_pairs * QUEUE_SIZE


@cases("loop")
def test_all_that_the_driver_sends_comes_back(card, options, queue_pairs):
    with virtio_user(card.socket, options, queue_pairs) as driver:
        driver.forward("flowgen", TRAFFIC_S)
        card.wait_received(driver)
        received, sent = card.finish(driver)
    assert sent > 1000
    assert card.told("tx", "packets", "drop_full", "drop_disabled") == sent
    assert card.told("rx", "packets") == received
    assert card.told("tx", "packets") == received


@pytest.mark.parametrize("daemon", [("loop", 1)], indirect=True)
def test_a_driver_that_is_killed_makes_room_for_the_next(card):
    for _ in range(2):
        with virtio_user(card.socket, OPTIONS[0], 1) as driver:
            driver.forward("flowgen", 0.2)
            driver.kill()
    with virtio_user(card.socket, OPTIONS[0], 1) as driver:
        driver.forward("flowgen", 0.2)
        wait_until(lambda: driver.stats().sent > 100, "packets")
        driver.start("rxonly")
        wait_until(lambda: driver.stats().received == driver.stats().sent, "all that was sent")
        stats = driver.stats()
        driver.quit()
    assert stats.sent == stats.received > 100
    card.daemon.wait_idle()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_our_driver_and_a_device_that_nobody_here_wrote(tmp_path, packed):
    path = tmp_path / "socket"
    cpu = min(os.sched_getaffinity(0))
    features = DEFAULT_FEATURES | (mask(VIRTIO_F_RING_PACKED) if packed else 0)
    vdev = f"net_vhost0,iface={path},queues=1"
    with Testpmd([vdev], cpu=cpu, options=["--port-topology=loop"]) as device:
        device.wait_ready()
        device.start("io")
        with NetDriver(VhostUserTransport.connect(str(path)), features=features) as driver:
            assert driver.has(VIRTIO_F_RING_PACKED) == packed
            driver.start()
            frames = [bytes([k] * 60 + [7] * k) for k in range(100)]
            for frame in frames:
                driver.send(frame)
                assert driver.receive(timeout=60.0) == frame
        device.stop()
        assert device.stats().received == len(frames)
        device.quit()
