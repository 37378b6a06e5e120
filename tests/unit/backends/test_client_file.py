"""What a client hands over with SET_BACKEND: real packet sockets, TAPs and macvtaps."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import subprocess
import tty
from collections.abc import Iterator
from typing import Any

import pytest

from instance import MRG, RX, TX, V1, Instance
from oracle.namespace import Namespace, namespace_or_skip
from serve_process import wait_until
from vhostnet.backends.client_file import ClientFile, client_file
from vhostnet.backends.tap import tap_queue
from vhostnet.datapath.layout import IO_NOWAIT, IO_POLLED
from vhostnet.errors import PeerError
from vhostnet.uapi import packet, tun

ETHERTYPE = 0x88B5
ETH_P_ALL = 3
HDR = bytes(12)


def frame(number: int, size: int = 60, tag: bytes = b"") -> bytes:
    head = b"\xff" * 6 + b"\x02\0\0\0\0\x09" + tag + ETHERTYPE.to_bytes(2, "big")
    return (head + number.to_bytes(4, "big")).ljust(size, b".")


@pytest.fixture(scope="module")
def net() -> Iterator[Namespace]:
    with namespace_or_skip() as made:
        yield made


def ip(net: Namespace, words: str) -> None:
    done = net.run(
        lambda: subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    )
    if done.returncode:
        pytest.skip(f"ip {words}: {done.stderr}")


def packet_socket(net: Namespace, interface: str, kind: int = socket.SOCK_RAW) -> socket.socket:
    """Bound, blocking, with all that the interface receives."""
    made = net.run(socket.socket, socket.AF_PACKET, kind, ETHERTYPE)
    made.bind((interface, ETHERTYPE))
    return made


@pytest.fixture
def link(net: Namespace) -> Iterator[socket.socket]:
    """A veth pair v0 - v1, up; a socket at the far end, v1."""
    ip(net, "link add v0 type veth peer name v1")
    for name in ("v0", "v1"):
        ip(net, f"link set {name} up")
    far = packet_socket(net, "v1")
    far.settimeout(60)
    yield far
    far.close()
    ip(net, "link del v0")


class Pair(Instance):
    """An instance on a client's file instead of a socket pair."""

    def __init__(self, fd: int, features: int = MRG | V1, **headers: int) -> None:
        self.fd = fd
        self.flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        super().__init__(features)
        self.queue: ClientFile = client_file(fd)
        self.queue.set_header(headers.get("made", 0), headers.get("spoken", self.hdr_len))

    def send(self, *frames: bytes) -> None:
        for data in frames:
            self.tx.send(bytes(self.hdr_len) + data)
        self.kick(TX)

    def send_unaided(self, data: bytes) -> None:
        """As `send`, without control, which would shake a worker that is stuck."""
        self.tx.send(bytes(self.hdr_len) + data)
        os.eventfd_write(self.kicks[TX], 1)

    def received(self, buffers: list[int]) -> list[bytes]:
        """What arrives in these buffers, header included, one for each."""
        wait_until(lambda: self.rx.used_idx() >= len(buffers), "packets")
        used = self.rx.collect()
        return [self.memory.read(gpa, one.length) for gpa, one in zip(buffers, used, strict=True)]

    def post(self, n: int) -> list[int]:
        made = [self.rx.post(2048)[0] for _ in range(n)]
        self.kick(RX)
        return made

    def close(self) -> None:
        super().close()
        assert fcntl.fcntl(self.fd, fcntl.F_GETFL) == self.flags
        self.queue.close()


@contextlib.contextmanager
def served(fd: int, *args: Any, **headers: int) -> Iterator[Pair]:
    pair = Pair(fd, *args, **headers)
    try:
        yield pair.start()
    finally:
        pair.close()


def vnet_hdr(sock: socket.socket, size: int) -> None:
    option, value = (packet.PACKET_VNET_HDR, 1) if size == 10 else (packet.PACKET_VNET_HDR_SZ, size)
    try:
        sock.setsockopt(packet.SOL_PACKET, option, value)
    except OSError as e:
        pytest.skip(f"this Linux has no such header: {e.strerror}")


# --- packet sockets -------------------------------------------------------------------------------

pytestmark = pytest.mark.root


@pytest.mark.parametrize("features", [MRG | V1, MRG, 0], ids=["modern", "mergeable", "legacy"])
@pytest.mark.parametrize("waits", [True, False], ids=["blocking", "non-blocking"])
def test_a_packet_socket_sends_and_receives(net, link, features, waits):
    with packet_socket(net, "v0") as near:
        near.setblocking(waits)
        size = 12 if features else 10
        vnet_hdr(near, size)
        with served(near.fileno(), features) as pair:
            pair.send(frame(1), frame(2, 1514))
            assert [link.recv(2000), link.recv(2000)] == [frame(1), frame(2, 1514)]
            buffers = pair.post(3)
            for k in range(3):
                link.send(frame(k))
            got = pair.received(buffers)
            assert [one[size:] for one in got] == [frame(k) for k in range(3)]
            if features:
                assert {one[10:size] for one in got} == {b"\x01\0"}
            pair.send_unaided(frame(3))
            assert link.recv(2000) == frame(3)


def test_a_packet_socket_without_headers_is_served_with_headers_of_our_own(net, link):
    with packet_socket(net, "v0") as near, served(near.fileno(), made=12, spoken=0) as pair:
        pair.send(frame(1))
        assert link.recv(2000) == frame(1)
        buffers = pair.post(1)
        link.send(frame(2))
        assert pair.received(buffers) == [bytes(10) + b"\x01\0" + frame(2)]


def test_a_frame_beyond_the_mtu_is_dropped_and_completed(net, link):
    with packet_socket(net, "v0") as near:
        vnet_hdr(near, 12)
        with served(near.fileno()) as pair:
            pair.send(frame(1), frame(2, 2000), frame(3))
            assert [link.recv(3000), link.recv(3000)] == [frame(1), frame(3)]
            assert pair.tx.used_idx() == 3
            assert pair.counter(TX, "drop_too_long") == 1


def test_frames_for_an_interface_that_is_down_are_dropped_and_completed(net, link):
    with packet_socket(net, "v0") as near:
        vnet_hdr(near, 12)
        with served(near.fileno()) as pair:
            ip(net, "link set v0 down")
            pair.send(frame(1), frame(2))
            assert pair.tx.used_idx() == 2
            assert pair.counter(TX, "drop_down") == 2
            ip(net, "link set v0 up")
            buffers = pair.post(1)

            def arrived() -> bool:
                link.send(frame(3))
                return pair.rx.used_idx() > 0

            wait_until(arrived, "a packet after the interface is up again")
            assert pair.memory.read(buffers[0], 72)[12:] == frame(3)


def test_a_socket_without_room_is_waited_for(net, link):
    """EAGAIN keeps the head; the link is so slow that the send buffer fills up."""
    shape = "tc qdisc add dev v0 root tbf rate 2mbit burst 3k limit 200k"
    if net.run(lambda: subprocess.run(shape.split(), capture_output=True)).returncode:
        pytest.skip("no tbf here")
    with packet_socket(net, "v0") as near:
        vnet_hdr(near, 12)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        with served(near.fileno()) as pair:
            frames = [frame(k, 1514) for k in range(12)]
            for data in frames:
                pair.tx.send(HDR + data)
            pair.kick(TX)
            assert [link.recv(2000) for _ in frames] == frames
            wait_until(lambda: pair.tx.used_idx() == 12, "the last completion")
            assert pair.counter(TX, "packets") == 12
            assert pair.counter(TX, "drop_refused") == 0


def test_a_frame_whose_vlan_tag_was_taken_off_is_lost(net, link):
    """As in Linux, whose peek and receive differ by the tag's length."""
    with packet_socket(net, "v0") as near:
        near.bind(("v0", ETH_P_ALL))
        vnet_hdr(near, 12)
        with served(near.fileno()) as pair:
            buffers = pair.post(2)
            link.send(frame(1))
            link.send(frame(2, 64, tag=b"\x81\0\0\x05"))
            link.send(frame(3))
            got = pair.received(buffers)
            assert [one[12:] for one in got] == [frame(1), frame(3)]


def test_a_flood_of_what_is_thrown_away_does_not_hold_the_worker(net, link):
    with packet_socket(net, "v0") as near:
        vnet_hdr(near, 10)  # not what was negotiated: every packet is lost
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        pair = Pair(near.fileno(), MRG | V1)
        try:
            for k in range(600):
                link.send(frame(k))
            pair.post(1)
            runs = pair.net.worker.record[0]["runs"]
            pair.start()
            wait_until(lambda: not pair.queue.record[0]["readable"], "all of them lost")
            assert pair.net.worker.record[0]["runs"] - runs >= 600 // 256
            assert pair.rx.used_idx() == 0
        finally:
            pair.close()


@pytest.mark.usefixtures("link")
def test_an_error_that_is_pending_is_einval(net):
    with packet_socket(net, "v0") as near:
        ip(net, "link set v0 down")
        with pytest.raises(PeerError, match="error") as refused:
            client_file(near.fileno())
        assert refused.value.errno == errno.EINVAL
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN
        client_file(near.fileno()).close()


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [
        (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (socket.AF_INET, socket.SOCK_DGRAM, 0),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
        (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_other_sockets_are_no_backends(family, kind, protocol):
    n = len(os.listdir("/proc/self/fd"))
    try:
        made = socket.socket(family, kind, protocol)
    except PermissionError:
        pytest.skip("raw sockets need root")
    with made:
        with pytest.raises(PeerError) as refused:
            client_file(made.fileno())
        assert refused.value.errno == errno.ENOTSOCK
    assert len(os.listdir("/proc/self/fd")) == n


@pytest.mark.parametrize("path", ["/dev/null", "/dev/ptmx", "/dev/zero"])
def test_other_devices_are_no_backends(path):
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    with pytest.raises(PeerError) as refused:
        client_file(fd)
    os.close(fd)
    assert refused.value.errno == errno.ENOTSOCK


@pytest.mark.usefixtures("link")
def test_the_same_socket_is_known_again(net):
    with packet_socket(net, "v0") as one, packet_socket(net, "v0") as other:
        made = client_file(one.fileno())
        copy = os.dup(one.fileno())
        assert made.is_file(copy)
        assert not made.is_file(other.fileno())
        assert made.source != client_file(other.fileno()).source
        os.close(copy)
        made.close()


# --- TAPs that wait -------------------------------------------------------------------------------


@pytest.fixture
def tap(net: Namespace) -> Iterator[int]:
    """A TAP as a careless client opens it: a read of it waits."""
    fd = net.run(os.open, "/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    flags = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
    request = struct.pack("16sH22x", b"t0", flags)
    fcntl.ioctl(fd, tun.TUNSETIFF, request)
    fcntl.ioctl(fd, tun.TUNSETVNETHDRSZ, struct.pack("i", 12))
    ip(net, "link set t0 up")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("io", [IO_NOWAIT, IO_POLLED])
def test_a_tap_that_waits_does_not_hold_the_worker(net, tap, io):
    with packet_socket(net, "t0") as far:
        far.settimeout(60)
        pair = Pair(tap)
        try:
            pair.queue.record[0]["io"] = io
            pair.start()
            buffers = pair.post(2)
            pair.send_unaided(frame(1))
            assert far.recv(2000) == frame(1)
            far.send(frame(2))
            pair.flush()
            far.send(frame(3))
            got = [one[12:] for one in pair.received(buffers)]
            assert got == [frame(2), frame(3)]
            for index in (RX, TX):  # control is answered
                pair.net.set_backend(index, None)
        finally:
            pair.close()


def test_a_file_that_does_not_know_nowait_is_asked_by_poll(instance):
    """As a TAP before Linux 6.4; here the two ends of a terminal."""
    master, slave = os.openpty()
    tty.setraw(slave)
    pair = instance(start=False)
    pair.queue = tap_queue(master, fill_checksums=False)
    pair.queue.record[0]["tap_hdr_len"] = 12
    pair.queue.record[0]["io"] = IO_NOWAIT
    pair.start()
    try:
        pair.tx.send(HDR + frame(1))
        pair.kick(TX)
        assert os.read(slave, 2000) == HDR + frame(1)
        [buffer] = pair.rx.post(2048)
        pair.kick(RX)
        os.write(slave, HDR + frame(2))
        wait_until(lambda: pair.rx.used_idx() == 1, "a packet")
        assert pair.memory.read(buffer, 72) == bytes(10) + b"\x01\0" + frame(2)
        assert pair.queue.record[0]["io"] == IO_POLLED
    finally:
        for index in (RX, TX):
            pair.net.set_backend(index, None)
        os.close(master)
        os.close(slave)


# --- macvtap --------------------------------------------------------------------------------------


@pytest.fixture
def macvtap(net: Namespace, link: socket.socket) -> Iterator[int]:
    assert link.fileno() >= 0  # what it is made upon
    ip(net, "link add link v0 name mv0 type macvtap mode passthru")
    ip(net, "link set mv0 up")
    index = net.run(socket.if_nametoindex, "mv0")
    try:
        fd = os.open(f"/dev/tap{index}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        pytest.skip(f"macvtap's device: {e}")
    fcntl.ioctl(fd, tun.TUNSETVNETHDRSZ, struct.pack("i", 12))
    yield fd
    os.close(fd)
    ip(net, "link del mv0")


def test_a_macvtap_sends_and_receives_and_never_waits(link, macvtap):
    with served(macvtap) as pair:
        assert pair.queue.source == "mv0"
        pair.send(frame(1))
        assert link.recv(2000) == frame(1)
        buffers = pair.post(2)
        link.send(frame(2))
        wait_until(lambda: pair.rx.used_idx() == 1, "a packet")
        pair.send_unaided(frame(4))
        assert link.recv(2000) == frame(4)
        link.send(frame(3, 64, tag=b"\x81\0\0\x05"))
        got = [one[12:] for one in pair.received(buffers)]
        assert got == [frame(2), frame(3, 64, tag=b"\x81\0\0\x05")]
        pair.send(b"too short")
        assert pair.tx.used_idx() == 3
        assert pair.counter(TX, "drop_bad_header") == 1
