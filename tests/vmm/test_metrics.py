"""The counters of a card are those of the guest's driver and of the TAP, to the packet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from scrape import Scrape
from vhostnet.demo import measure
from vhostnet.demo.measure import DIRECTIONS
from vhostnet.demo.qemu import GuestVM

if TYPE_CHECKING:
    from conftest import Bed

pytestmark = [pytest.mark.vmm, pytest.mark.root, pytest.mark.usefixtures("vhostnet_only")]
QUIET_S = 60.0


class Readings:
    """One moment, as all three see it."""

    def __init__(self, bed: Bed, guest: GuestVM) -> None:
        before = Scrape(str(bed.folder / "metrics"))
        self.guest = {
            f"{direction}_{what}": int(
                guest.check(f"cat /sys/class/net/eth0/statistics/{direction}_{what}")
            )
            for direction in ("rx", "tx")
            for what in ("packets", "bytes")
        }
        self.ethtool = {
            name.strip(): int(value)
            for name, _, value in (
                line.partition(":") for line in guest.check("ethtool -S eth0").splitlines()[1:]
            )
        }
        self.tap = bed.host.link_counters("tap0")
        self.ours = Scrape(str(bed.folder / "metrics"))
        self.is_quiet = all(
            before.total(name) == self.ours.total(name)
            for name in ("queue_packets_total", "queue_chains_total")
        )

    def queue(self, name: str, direction: str, **labels: str) -> int:
        return self.ours.total(f"queue_{name}", direction=direction, **labels)


def when_quiet(bed: Bed, guest: GuestVM) -> Readings:
    """The first moment around which nothing moved."""
    deadline = time.monotonic() + QUIET_S
    while True:
        readings = Readings(bed, guest)
        if readings.is_quiet:
            return readings
        assert time.monotonic() < deadline, "the card never rests"


@pytest.mark.parametrize(("card", "coalesce"), [({}, "on"), ({"packed": "on"}, "off")])
def test_tens_of_thousands_of_packets_are_counted_alike_by_all(
    bed: Bed, coalesce: str, card: dict[str, str]
) -> None:
    metrics = f"unix:{bed.folder / 'metrics'}"
    bed.serve("--metrics", metrics, "--coalesce", coalesce)
    guest = bed.boot(properties=card)
    measure.start_iperf3(guest)
    path = bed.path(guest)
    for direction in DIRECTIONS:
        measure.tcp(path, direction, 2)
        measure.udp(path, direction, 2, mbps=100)
    for offload in ("tso", "gso", "sg", "tx"):  # segments by themselves: some are merged
        guest.check(f"ethtool -K eth0 {offload} off")
    measure.tcp(path, DIRECTIONS[0], 2)
    found = when_quiet(bed, guest)

    sent, received = (found.queue("packets_total", direction) for direction in ("tx", "rx"))
    assert sent + received > 20_000
    # the guest's own account
    assert found.guest["tx_packets"] == sent
    assert found.guest["rx_packets"] == received
    assert found.ethtool["tx_queue_0_packets"] == sent
    assert found.ethtool["rx_queue_0_packets"] == received
    # bytes: ours have the virtio_net header in front of each packet
    assert found.guest["tx_bytes"] == found.queue("bytes_total", "tx") - 12 * sent
    assert found.guest["rx_bytes"] == found.queue("bytes_total", "rx") - 12 * received
    # the TAP's: what it sends is what we receive; of what we merge it sees one frame
    merged, segments = (
        found.ours.total(f"backend_merged_{what}_total") if coalesce == "on" else 0
        for what in ("frames", "segments")
    )
    assert (merged > 0) == (coalesce == "on")
    assert found.tap["tx_packets"] == received
    for direction, dropped in (("rx", "tx_drop"), ("tx", "rx_drop")):
        told = found.ours.total("interface_dropped_packets_total", direction=direction)
        assert told == found.tap[dropped]
    assert found.tap["rx_packets"] == sent - segments + merged
    # a kick that arrives while another one waits is the same wake-up; QEMU makes one at the start
    assert 0 < found.queue("kicks_total", "tx") <= found.ethtool["tx_queue_0_kicks"] + 1
    for direction in ("rx", "tx"):
        assert found.queue("dropped_packets_total", direction) == 0
        assert found.queue("ring_errors_total", direction) == 0
        assert found.queue("gso_packets_total", direction) > 0
    assert found.queue("chains_total", "tx") == sent
    assert found.queue("batch_packets_sum", "tx") == sent
