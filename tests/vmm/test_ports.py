"""Two real Linux guests, joined by `port:NAME`: no TAP, no bridge between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from long import IS_LONG
from vhostnet.control.client import ControlClient
from vhostnet.demo.daemon import Daemon
from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.machine import Machine, VhostUserNic
from vhostnet.demo.qemu import GuestVM

pytestmark = [pytest.mark.vmm, pytest.mark.root]

ADDRESSES = ("192.0.2.1", "192.0.2.2")
PORT = 5301
OFFLOADS_OFF = {
    "csum": "off",
    "guest_csum": "off",
    "mrg_rxbuf": "off",
    "gso": "off",
    "guest_tso4": "off",
    "guest_tso6": "off",
}
LEGACY = {"disable-modern": "on", "disable-legacy": "off", "mrg_rxbuf": "off"}
CARDS: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "alike": ({}, {}),
    "offloads in one, none in the other": ({}, OFFLOADS_OFF),
    "packed and split, offloads in one": ({"packed": "on"}, OFFLOADS_OFF),
    "packed without offloads": ({**OFFLOADS_OFF, "packed": "on"}, {"packed": "on"}),
    "a short header and a long one": (LEGACY, {}),
}


class PortsBed:
    """A daemon with two cards, and a guest at each."""

    def __init__(self, image: GuestImage, accel: str, folder: Path, stack: ExitStack) -> None:
        self.image, self.accel, self.folder, self.stack = image, accel, folder, stack
        self.queue_pairs = 1

    @property
    def control(self) -> str:
        return str(self.folder / "control")

    @property
    def log(self) -> str:
        return (self.folder / "vhostnet.log").read_text()

    def serve(self, queue_pairs: int = 1) -> None:
        self.queue_pairs = queue_pairs
        options = ["--control", self.control]
        for number in (0, 1):
            where = f"socket={self.folder / f'card{number}'},backend=port:x"
            options += ["--device", f"{where},queue-pairs={queue_pairs}"]
        self.stack.enter_context(Daemon(options, log=self.folder / "vhostnet.log"))

    def power_on(
        self, number: int, properties: Mapping[str, str] | None = None, smp: int = 1
    ) -> GuestVM:
        nic = VhostUserNic(
            self.folder / f"card{number}",
            f"52:54:00:12:34:0{number + 1}",
            queue_pairs=self.queue_pairs,
            properties=properties or {},
            reconnect_s=1,
        )
        guest = GuestVM(self.image, Machine(self.accel, smp=smp), [nic])
        return self.stack.enter_context(guest)

    def boot(
        self, number: int, properties: Mapping[str, str] | None = None, smp: int = 1
    ) -> GuestVM:
        return self.ready(self.power_on(number, properties, smp), number)

    def ready(self, guest: GuestVM, number: int) -> GuestVM:
        guest.wait_for_shell()
        guest.add_address(0, f"{ADDRESSES[number]}/24")
        return guest


@pytest.fixture
def bed(image: GuestImage, accel: str, tmp_path: Path) -> Iterator[PortsBed]:
    with ExitStack() as stack:
        made = PortsBed(image, accel, tmp_path, stack)
        yield made
        assert "Traceback" not in made.log


def assert_pings(guest: GuestVM, address: str, size: int = 56) -> None:
    said = guest.check(f"ping -c 10 -i 0.05 -W 10 -s {size} {address}")
    assert "10 packets received" in said


def assert_transfer(sender: GuestVM, receiver: GuestVM, address: str, mib: int = 8) -> None:
    """A random file arrives unchanged."""
    sender.check(f"head -c {mib << 20} /dev/urandom > /tmp/file")
    receiver.check(f"(sleep 120 | timeout 120 nc -l -p {PORT} > /tmp/got) &")
    receiver.wait_until(f"netstat -ltn | grep -q ':{PORT} '")
    sender.check(f"nc {address} {PORT} < /tmp/file")
    sums = [
        guest.check(
            f"sha256sum /tmp/{name}",
        ).split()[0]
        for guest, name in ((sender, "file"), (receiver, "got"))
    ]
    assert sums[0] == sums[1]


def mbps(client: GuestVM, address: str, *options: str) -> float:
    """A TCP stream's goodput, as its receiver counted it."""
    said = client.check(f"iperf3 --client {address} --time 1 --format m {' '.join(options)}")
    match = re.search(r"([\d.]+) Mbits/sec\s+receiver", said)
    assert match is not None, said
    return float(match[1])


#: What a guest has sent; acknowledgements too.
PACKETS = "$(cat /sys/class/net/eth0/statistics/tx_packets)"


def packets(guest: GuestVM) -> int:
    return int(guest.check(f"echo {PACKETS}"))


def start_iperf3(guest: GuestVM) -> None:
    guest.check("iperf3 --server --daemon")
    guest.wait_until("netstat -ltn | grep -q ':5201 '")


@pytest.mark.parametrize("cards", CARDS)
def test_two_guests_reach_each_other(bed: PortsBed, cards: str) -> None:
    bed.serve()
    booting = [bed.power_on(number, card) for number, card in enumerate(CARDS[cards])]
    guests = [bed.ready(guest, number) for number, guest in enumerate(booting)]
    for size in (56, 1472, 20000):
        for number, guest in enumerate(guests):
            assert_pings(guest, ADDRESSES[1 - number], size)
    for number, guest in enumerate(guests):
        assert_transfer(guest, guests[1 - number], ADDRESSES[1 - number])
    start_iperf3(guests[1])
    for options in ([], ["--reverse"]):
        got = mbps(guests[0], ADDRESSES[1], *options)
        print(cards, options, f"{got:.0f} Mbit/s")  # pytest -s
        assert got > 10


@pytest.mark.parametrize("cpus", [(2, 2), (2, 1)], ids=["both with two", "one with one"])
def test_two_queue_pairs(bed: PortsBed, cpus: tuple[int, int]) -> None:
    """A guest uses as many pairs as it has CPUs: what is sent to the other pairs is not lost."""
    bed.serve(queue_pairs=2)
    booting = [bed.power_on(number, smp=smp) for number, smp in enumerate(cpus)]
    guests = [bed.ready(guest, number) for number, guest in enumerate(booting)]
    for cpu in (0, 1):
        said = guests[0].check(f"taskset {1 << cpu:#x} ping -c 8 -i 0.1 {ADDRESSES[1]}")
        assert "8 packets received" in said
    for number, guest in enumerate(guests):
        assert_transfer(guest, guests[1 - number], ADDRESSES[1 - number])


@pytest.mark.parametrize("direction", ["it receives", "it sends"])
def test_a_guest_is_killed_under_traffic_and_comes_back(bed: PortsBed, direction: str) -> None:
    bed.serve()
    booting = [bed.power_on(number) for number in (0, 1)]
    stays, dies = [bed.ready(guest, number) for number, guest in enumerate(booting)]
    for _ in range(2 if IS_LONG else 1):
        start_iperf3(dies)
        reverse = "--reverse" if direction == "it sends" else ""
        before = packets(stays)
        stays.check(f"iperf3 --client {ADDRESSES[1]} --time 600 {reverse} > /tmp/iperf 2>&1 &")
        stays.wait_until(f"test {PACKETS} -gt {before + 1000}")
        dies.kill()
        # the one that is left goes on, its card too: packets are taken whoever is there
        stays.check("killall iperf3 || true")
        stays.check(f"ping -c 3 -i 0.2 -W 1 {ADDRESSES[1]} || true")
        before = packets(stays)
        stays.check("ping -c 3 -W 1 192.0.2.9 || true")  # asks who has it
        assert packets(stays) > before
        dies = bed.boot(1)
        assert_pings(stays, ADDRESSES[1])
        assert_pings(dies, ADDRESSES[0])
        assert_transfer(stays, dies, ADDRESSES[1])
        assert_transfer(dies, stays, ADDRESSES[0])


@pytest.mark.parametrize("gone", [0, 1])
def test_a_card_is_removed_under_traffic_and_added_again(bed: PortsBed, gone: int) -> None:
    """Its guest's QEMU connects again; the other guest never loses its card."""
    bed.serve()
    booting = [bed.power_on(number) for number in (0, 1)]
    guests = [bed.ready(guest, number) for number, guest in enumerate(booting)]
    leaver, stayer = guests[gone], guests[1 - gone]
    start_iperf3(leaver)
    with ControlClient(bed.control) as control:
        for _ in range(3):
            before = packets(stayer)
            to = f"--client {ADDRESSES[gone]} --time 600"
            stayer.check(f"iperf3 {to} --bidir > /tmp/iperf 2>&1 &")
            stayer.wait_until(f"test {PACKETS} -gt {before + 1000}")
            control.execute("device-del", device=f"dev{gone}")
            stayer.check("killall -9 iperf3 || true")
            before = packets(stayer)
            stayer.check("ping -c 3 -W 1 192.0.2.9 || true")  # asks who has it
            assert packets(stayer) > before
            control.execute(
                "device-add",
                socket=str(bed.folder / f"card{gone}"),
                backend="port:x",
                name=f"dev{gone}",
            )
            stayer.wait_until(f"ping -c 1 -W 1 {ADDRESSES[gone]} > /dev/null")
            assert_pings(stayer, ADDRESSES[gone])
            assert_pings(leaver, ADDRESSES[1 - gone])
            leaver.check("killall -9 iperf3; true")
            start_iperf3(leaver)
    assert_transfer(stayer, leaver, ADDRESSES[gone])
    assert_transfer(leaver, stayer, ADDRESSES[1 - gone])
    assert not re.search(rf"dev{1 - gone}: front-end pid \d+ disconnected", bed.log)
