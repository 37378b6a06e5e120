"""The counters of a card are those of the guest's driver and of the TAP, to the packet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from long import LONG
from scrape import Scrape
from vhostnet.demo import measure
from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.initramfs import Archive, ModuleTree
from vhostnet.demo.machine import Machine
from vhostnet.demo.measure import DIRECTIONS
from vhostnet.demo.qemu import GuestVM

if TYPE_CHECKING:
    from conftest import Bed

pytestmark = [pytest.mark.vmm, pytest.mark.root, pytest.mark.usefixtures("vhostnet_only")]
QUIET_S = 240.0
#: What pktgen sends, and for how long at most.
FLOOD, FLOOD_S = 10_000_000, 200


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
        measure.tcp(path, direction, 1)
        measure.udp(path, direction, 1, mbps=100)
    for offload in ("tso", "gso", "sg", "tx"):  # segments by themselves: some are merged
        guest.check(f"ethtool -K eth0 {offload} off")
    enough = 20_000
    while True:
        measure.tcp(path, DIRECTIONS[0], 1)
        found = when_quiet(bed, guest)
        sent, received = (found.queue("packets_total", direction) for direction in ("tx", "rx"))
        if sent + received > enough:
            break
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


def with_pktgen(image: GuestImage, place: Path) -> GuestImage:
    """The image with the kernel's packet generator, not loaded."""
    archive = Archive()
    archive.file("/pktgen.ko", ModuleTree(image.kernel.modules).read("pktgen"))
    place.write_bytes(image.initramfs.read_bytes() + archive.finish())
    return GuestImage(image.kernel, place)


@LONG
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_million_packets_are_counted_alike_by_all(bed: Bed) -> None:
    bed.image = with_pktgen(bed.image, bed.folder / "initramfs.cpio")
    bed.serve("--metrics", f"unix:{bed.folder / 'metrics'}")
    # Two processors: for one, QEMU before 8.1 emulates no memory barriers (tcg_gen_mb), so that a
    # driver can read an avail_event that is too old, and not kick.  One run stood still so.
    guest = bed.boot(Machine(bed.accel, smp=2))
    # to nobody's address: the host's stack has counted it by then, and does not answer
    setting = f"count {FLOOD};pkt_size 60;delay 0;dst 192.0.2.9;dst_mac 02:00:00:00:00:09"
    guest.check("insmod /pktgen.ko && echo add_device eth0 > /proc/net/pktgen/kpktgend_0")
    for line in setting.split(";"):
        guest.check(f"echo {line} > /proc/net/pktgen/eth0")
    before = when_quiet(bed, guest)
    began = time.monotonic()
    guest.run(f"(sleep {FLOOD_S}; echo stop > /proc/net/pktgen/pgctrl) > /dev/null 2>&1 &")
    guest.check("echo start > /proc/net/pktgen/pgctrl", FLOOD_S + 60.0)
    seconds = time.monotonic() - began
    after = when_quiet(bed, guest)

    told = guest.check("cat /proc/net/pktgen/eth0")
    generated = int(told.split("pkts-sofar:")[1].split()[0])
    print(f"{generated} packets in {seconds:.0f} s: {told.strip().splitlines()[-1].strip()}")
    assert generated > FLOOD // 100
    in_the_guest = after.guest["tx_packets"] - before.guest["tx_packets"]
    ours = after.queue("packets_total", "tx") - before.queue("packets_total", "tx")
    on_the_tap = after.tap["rx_packets"] - before.tap["rx_packets"]
    print(f"guest's driver {in_the_guest}, vhostnet {ours}, TAP {on_the_tap}")
    assert in_the_guest == ours == on_the_tap
    assert in_the_guest >= generated  # and an ARP request, perhaps
    assert after.queue("dropped_packets_total", "tx") == 0
    assert after.tap["rx_drop"] == 0
