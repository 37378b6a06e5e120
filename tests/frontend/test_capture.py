"""Captures of what a driver sends and receives: nothing missing, nothing that was not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from beds import SocketTap, frame, in_process
from port_bed import MRG, PACKED_MRG, PortBed

from pcapng_reader import read
from serve_process import wait_until
from vhostnet.backends.memory_backends import NullBackend
from vhostnet.capture.capture import Capture, CaptureOptions
from vhostnet.datapath import catalogue
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import HostError, UsageError
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, mask
from vhostnet_frontend import NetDriver, VnetHeader

PLAIN = mask(VIRTIO_F_VERSION_1)
PACKED = PLAIN | mask(VIRTIO_F_RING_PACKED)


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    catalogue.warm({*catalogue.kernels_for("tap"), *catalogue.kernels_for("null")})


def _received(driver: NetDriver) -> bytes:
    data = driver.receive(timeout=60.0)
    assert data is not None
    return data


class Bed:
    """A driver on a device with a socket for a TAP, captured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tap = SocketTap()
        self.net = VhostNet("dev 0")
        self.transport = in_process(self.tap.queue, self.net)
        self.capture: Capture | None = None

    def start(self, *, ring_size: int = 1 << 20, **options: object) -> Capture:
        wanted = CaptureOptions(str(self.path), **options)  # type: ignore[arg-type]
        self.capture = Capture(wanted, ring_size=ring_size)
        self.capture.attach(self.net)
        return self.capture

    def driver(self, features: int = PLAIN, **options: object) -> NetDriver:
        made = NetDriver(self.transport, features=features, **options)  # type: ignore[arg-type]
        made.start()
        return made

    def send(self, driver: NetDriver, frames: list[bytes]) -> None:
        for data in frames:
            driver.send(data)
        self.transport.flush()

    def receive(self, driver: NetDriver, frames: list[bytes]) -> None:
        for data in frames:
            self.tap.wire.send(bytes(12) + data)
            assert _received(driver) == data

    def close(self) -> None:
        if self.capture is not None:
            self.capture.stop()
        self.tap.close()


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path / "capture.pcapng")
    yield made
    made.close()


@pytest.mark.parametrize("features", [PLAIN, PACKED], ids=["split", "packed"])
def test_both_directions_are_in_the_file_and_nothing_else(bed: Bed, features: int) -> None:
    began = time.time_ns()
    capture = bed.start()
    sent = [frame(n, size) for n, size in enumerate((60, 61, 1514, 9000))]
    received = [frame(100 + n, size) for n, size in enumerate((60, 1514))]
    with bed.driver(features) as driver:
        bed.send(driver, sent)
        bed.receive(driver, received)
        bed.send(driver, sent[:1])
    capture.stop()
    file = read(bed.path)
    assert file.names == ["dev0-rx", "dev0-tx"]
    assert [p.data for p in file.of("dev0-tx")] == [*sent, sent[0]]
    assert [p.data for p in file.of("dev0-rx")] == received
    assert {p.flags for p in file.of("dev0-rx")} == {1}
    assert {p.flags for p in file.of("dev0-tx")} == {2}
    assert not any(p.comment or p.lost_before for p in file.packets)
    times = [p.time_ns for p in file.packets]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.time_ns()
    assert file.statistics == {0: (2, 2, 0), 1: (5, 5, 0)}
    assert capture.packets == 7


def test_it_begins_and_ends_while_packets_move_and_goes_on_over_resets(bed: Bed) -> None:
    with bed.driver() as driver:
        bed.send(driver, [frame(0)])
        bed.start()
        bed.send(driver, [frame(1)])
    with bed.driver(PACKED) as driver:
        bed.send(driver, [frame(2)])
        assert bed.capture is not None
        bed.capture.stop()
        bed.send(driver, [frame(3)])
    assert len(bed.tap.sent()) == 4
    assert [p.data for p in read(bed.path).packets] == [frame(1), frame(2)]


def test_comments_say_what_the_header_says(bed: Bed) -> None:
    bed.start()
    data = frame(1, 3000)
    headers = [
        VnetHeader(flags=1, gso_type=1, hdr_len=66, gso_size=1448, csum_start=34, csum_offset=16),
        VnetHeader(flags=1, gso_type=0x84, hdr_len=86, gso_size=7, csum_start=54, csum_offset=16),
        VnetHeader(flags=2),
    ]
    with bed.driver() as driver:
        for header in headers:
            driver.send(data, header=header)
        bed.transport.flush()
    assert bed.capture is not None
    bed.capture.stop()
    assert [p.comment for p in read(bed.path).packets] == [
        "GSO tcpv4, size 1448; checksum partial, start 34 offset 16",
        "GSO tcpv6, size 7, ECN; checksum partial, start 54 offset 16",
        "checksum valid",
    ]


def test_packets_that_were_dropped_say_why(bed: Bed) -> None:
    bed.start()
    with bed.driver() as driver:
        bed.tap.wire.send(bytes(12) + frame(1, 8000))  # larger than any one buffer
        bed.receive(driver, [frame(2)])
        driver.send(b"")
        bed.transport.flush()
    assert bed.capture is not None
    bed.capture.stop()
    assert [(p.original, p.comment) for p in read(bed.path).packets] == [
        (8000, "dropped: drop_too_small"),
        (60, ""),
        (0, "dropped: drop_short"),
    ]


def test_snaplen_keeps_a_beginning_and_tells_the_length(bed: Bed) -> None:
    bed.start(snaplen=33)
    with bed.driver() as driver:
        bed.send(driver, [frame(1, 1000), frame(2, 20)])
    assert bed.capture is not None
    bed.capture.stop()
    first, second = read(bed.path).packets
    assert (first.data, first.original) == (frame(1, 1000)[:33], 1000)
    assert (second.data, second.original) == (frame(2, 20), 20)


def udp(port: int, size: int = 100) -> bytes:
    """An Ethernet frame of IPv4 and UDP."""
    ip = bytes.fromhex("4500 0056 0000 0000 4011 0000 c0000202 c0000201")
    head = bytes(12) + b"\x08\x00" + ip + (999).to_bytes(2, "big") + port.to_bytes(2, "big")
    return head.ljust(size, b"\x55")


def test_a_filter_is_applied_before_anything_is_kept(bed: Bed) -> None:
    try:
        bed.start(filter="udp port 53", snaplen=20)
    except HostError as err:
        pytest.skip(str(err))
    with bed.driver() as driver:
        bed.send(driver, [udp(52), udp(53), frame(1), udp(53, 1400)])
    assert bed.capture is not None
    bed.capture.stop()
    file = read(bed.path)
    assert [p.data for p in file.packets] == [udp(53)[:20]] * 2
    assert file.statistics[1] == (4, 2, 0)


def test_what_is_no_filter_is_said(bed: Bed) -> None:
    with pytest.raises((UsageError, HostError), match=r"is no filter|libpcap"):
        bed.start(filter="udp prot 53")
    assert not bed.path.exists()


def test_a_full_ring_loses_packets_of_the_capture_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhostnet.capture.capture.PAUSE_S", 0.3)  # the thread sleeps longer
    backend, path, net = NullBackend(1), tmp_path / "capture.pcapng", VhostNet("dev0")
    transport = in_process(backend.queues[0], net)
    capture = Capture(CaptureOptions(str(path)), ring_size=1 << 15)
    capture.attach(net)
    template = bytes((7 * k + 1) & 0xFF for k in range(200))
    with NetDriver(transport, features=PLAIN) as driver:
        driver.start()
        sender = driver.sender(template, stamped=True)
        assert sender.run(count=3000).frames == 3000
        assert sender.finish()
        transport.flush()
        # the ring is empty again: the next one tells what was lost before it
        wait_until(lambda: capture.packets == sum(q.accepted for q in capture.counts()), "its end")
        driver.send(template)
        transport.flush()
        assert net.tx.counters()["packets"] == 3001, "never one of the guest's"
    capture.stop()
    packets = read(path).packets
    seen, accepted, lost = read(path).statistics[1]
    assert (seen, accepted + lost, len(packets)) == (3001, 3001, accepted)
    assert lost > 1000
    assert sum(p.lost_before for p in packets) == lost
    numbers = [int.from_bytes(p.data[14:22], "little") for p in packets[:-1]]
    assert numbers == sorted(numbers)
    for packet, number in zip(packets, numbers, strict=False):
        assert packet.data == template[:14] + number.to_bytes(8, "little") + template[22:]


def test_it_ends_after_so_many_packets(bed: Bed) -> None:
    capture = bed.start(count=3)
    with bed.driver() as driver:
        bed.send(driver, [frame(n) for n in range(5)])
        wait_until(lambda: bool(capture.ended), "the end of the capture")
        bed.send(driver, [frame(9)])
        assert len(bed.tap.sent()) == 6
    assert capture.ended == "3 packets were captured"
    assert [p.data for p in read(bed.path).packets] == [frame(n) for n in range(3)]
    capture.stop()
    assert len(read(bed.path).packets) == 3


def test_files_of_a_bounded_size_are_each_whole(bed: Bed) -> None:
    capture = bed.start(rotate=20_000, ring_size=1 << 14)
    sent = [frame(n, 1000) for n in range(60)]
    with bed.driver() as driver:
        for data in sent:  # slowly: nothing is lost for want of room
            bed.send(driver, [data])
            wait_until(lambda: capture.packets >= sent.index(data), "the packet")  # noqa: B023
    capture.stop()
    paths = [bed.path, *(Path(f"{bed.path}.{n}") for n in range(1, capture.files))]
    assert capture.files > 3
    files = [read(path) for path in paths]
    assert [p.data for file in files for p in file.packets] == sent
    for path, file in zip(paths, files, strict=True):
        assert path.stat().st_size < 22_000
        assert file.names == ["dev0-rx", "dev0-tx"]
        assert file.statistics[1][0] >= len(file.packets)
    assert not Path(f"{bed.path}.{capture.files}").exists()


def test_a_reader_that_goes_ends_the_capture_and_nothing_else(bed: Bed) -> None:
    os.mkfifo(bed.path)
    reader = os.open(bed.path, os.O_RDONLY | os.O_NONBLOCK)
    capture = bed.start()
    with bed.driver() as driver:
        bed.send(driver, [frame(1)])
        wait_until(lambda: capture.packets == 1, "the packet")
        os.close(reader)
        bed.send(driver, [frame(2)])
        wait_until(lambda: bool(capture.ended), "the end of the capture")
        bed.send(driver, [frame(3)])
        assert len(bed.tap.sent()) == 3
    assert capture.ended == "its reader has gone"


def test_a_disk_that_is_full_at_once_is_said() -> None:
    with pytest.raises(HostError, match="No space left"):
        Capture(CaptureOptions("/dev/full"))


def test_a_device_that_is_gone_is_let_go_of(tmp_path: Path) -> None:
    path = tmp_path / "capture.pcapng"
    capture = Capture(CaptureOptions(str(path)), ring_size=1 << 16)
    for n in range(3):
        net = VhostNet(f"file {n}")
        capture.attach(net)
        del net
    wait_until(lambda: not capture._queues(), "the queues to be forgotten")
    assert len(capture.counts()) == 6
    capture.stop()
    assert read(path).names == [f"file{n}-{d}" for n in range(3) for d in ("rx", "tx")]


@pytest.mark.parametrize("features", [MRG, PACKED_MRG], ids=["split", "packed"])
def test_between_two_guests_each_sees_its_own(tmp_path: Path, features: int) -> None:
    catalogue.warm(catalogue.kernels_for("port"))
    bed = PortBed()
    path = tmp_path / "capture.pcapng"
    capture = Capture(CaptureOptions(str(path)))
    for card in bed.cards:
        capture.attach(card[0])
    first, second = bed.open(0, features), bed.open(1, features)
    first.start()
    second.start()
    first.send(frame(1))
    assert _received(second) == frame(1)
    second.send(frame(2, 1000))
    assert _received(first) == frame(2, 1000)
    second.send(frame(3, 10))
    second.transport.flush()  # type: ignore[attr-defined]
    capture.stop()
    bed.close()
    file = read(path)
    said = {name: [(p.data, p.comment) for p in file.of(name)] for name in file.names}
    assert said == {
        "a0-rx": [(frame(2, 1000), "")],
        "a0-tx": [(frame(1), "")],
        "b0-rx": [(frame(1), "")],
        "b0-tx": [(frame(2, 1000), ""), (frame(3, 10), "dropped: drop_bad_header")],
    }


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is missing")
def test_tcpdump_reads_it(bed: Bed) -> None:
    bed.start()
    with bed.driver() as driver:
        bed.send(driver, [udp(53), udp(54)])
    assert bed.capture is not None
    bed.capture.stop()
    done = subprocess.run(
        ["tcpdump", "-nr", str(bed.path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert "192.0.2.2.999 > 192.0.2.1.53" in lines[0]
