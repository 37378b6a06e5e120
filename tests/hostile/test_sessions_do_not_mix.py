"""One device serves one guest after the other: no packet of one is ever seen by the next.

The backends are the loop, where a guest's own packets wait for it, and a real TAP in a network
namespace of its own, where the host's packets do.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from front_end import FrontEnd, Guest
from serve_process import PATIENCE_S, ServeProcess, wait_until
from vhostnet.demo.netns import Namespace
from vhostnet.errors import HostError

ETHERTYPE = b"\x88\xb5"
GUEST_MAC, HOST_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"

# Run inside of the namespace: open a packet socket on the TAP and hand it to our parent.
OPEN_WIRE = """
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
wire.bind((sys.argv[1], 0))
socket.send_fds(socket.socket(fileno=int(sys.argv[2])), [b"x"], [wire.fileno()])
"""


# As many flows of UDP, each of one datagram.
SEND_FLOWS = """
import socket, subprocess, sys
peer = "192.0.3.2"
subprocess.run(["ip", "neigh", "replace", peer, "lladdr", "02:00:00:00:00:01", "dev", sys.argv[1]])
for n in range(int(sys.argv[2])):
    flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flow.bind(("192.0.3.1", 20000 + n))
    flow.sendto(b"x", (peer, 9))
    flow.close()
"""


def frame(text: str, *, to_guest: bool = True, size: int = 60) -> bytes:
    """An Ethernet frame that says whose it is."""
    addresses = GUEST_MAC + HOST_MAC if to_guest else HOST_MAC + GUEST_MAC
    return (addresses + ETHERTYPE + text.encode()).ljust(size, b".")


@pytest.fixture
def guests() -> Iterator[tuple[Guest, Guest]]:
    """Two guests with memories of their own."""
    with contextlib.closing(Guest()) as a, contextlib.closing(Guest()) as b:
        yield a, b


# --- the loop ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    process = ServeProcess(tmp_path_factory.mktemp("loop"), "--backend", "loop")
    try:
        yield process
        process.check_and_stop()
    finally:
        process.kill()


def test_packets_that_wait_in_the_loop_go_with_their_guest(loop, guests):
    a, b = guests
    for _ in range(20):
        a.reset()
        b.reset()
        with FrontEnd(loop.socket) as peer:
            peer.start(a)
            # More than it has buffers for: the rest waits.
            a.rx.post(3)
            a.tx.send(*[frame(f"secret {n} of A") for n in range(10)])
            a.rx.wait_frames(3)
            a.tx.wait_used(10)
        with FrontEnd(loop.socket) as peer:
            peer.start(b)
            b.rx.post(8)
            b.tx.send(frame("mine"))
            assert b.rx.wait_frames(1) == [frame("mine")]
            peer.stop_ring(b.rx)
            assert b.rx.ring.used_idx() == 1


def test_packets_that_a_guest_has_not_kicked_yet_go_with_it(loop, guests):
    """Offered, not announced, and the front-end is gone: nobody may send them later."""
    a, b = guests
    with FrontEnd(loop.socket) as peer:
        peer.start(a)
        a.tx.send(frame("sent"))
        a.tx.wait_used(1)
        peer.stop_ring(a.tx)
        a.tx.send(frame("never sent"))
    with FrontEnd(loop.socket) as peer:
        peer.start(b)
        b.rx.post(8)
        b.tx.send(frame("mine"))
        assert b.rx.wait_frames(1) == [frame("mine")]
        peer.stop_ring(b.rx)
        assert b.rx.ring.used_idx() == 1


def test_the_memory_of_the_last_guest_is_not_mapped_any_more(loop, guests):
    a, b = guests
    with FrontEnd(loop.socket) as peer:
        peer.start(a)
        assert _guests_mapped(loop) == 1
    with FrontEnd(loop.socket) as peer:
        peer.start(b)
        assert _guests_mapped(loop) == 1
    wait_until(lambda: _guests_mapped(loop) == 0, "no memory of a guest is mapped")


def _guests_mapped(daemon: ServeProcess) -> int:
    return sum("memfd:guest" in line for line in daemon.maps())


# --- a TAP ------------------------------------------------------------------------------------


class Wire:
    """The host's end of a TAP: raw frames of one ethertype."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run(
                [
                    *namespace.prefix,
                    *(sys.executable, "-c", OPEN_WIRE, interface, str(theirs.fileno())),
                ],
                pass_fds=[theirs.fileno()],
                check=True,
                timeout=PATIENCE_S,
            )
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        self.socket = socket.socket(fileno=fds[0])
        self.socket.settimeout(PATIENCE_S)

    def send(self, *frames: bytes) -> None:
        for one in frames:
            # With the carrier off the kernel drops it, or says so.
            with contextlib.suppress(OSError):
                self.socket.send(one)

    def receive(self) -> bytes:
        """The next frame that came out of the TAP (our own sent ones are seen too, and passed)."""
        while True:
            data, address = self.socket.recvfrom(65536)
            if address[2] != socket.PACKET_OUTGOING:
                return data


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    try:
        made = Namespace()
    except HostError as error:
        pytest.skip(str(error))
    with made:
        made.add_tap("tap0", "192.0.2.1/24")
        made.add_tap("tap1", "192.0.3.1/24", queue_pairs=2)
        yield made


@pytest.fixture(scope="module", params=[1, 2], ids=["one pair", "two pairs"])
def tap(request, namespace: Namespace, tmp_path_factory) -> Iterator[tuple[ServeProcess, Wire]]:
    name = f"tap{request.param - 1}"
    process = ServeProcess(
        tmp_path_factory.mktemp("tap"),
        *("--backend", f"tap:{name}", "--queue-pairs", str(request.param)),
        prefix=namespace.prefix,
    )
    wire = Wire(namespace, name)
    try:
        yield process, wire
        process.check_and_stop()
    finally:
        wire.socket.close()
        process.kill()


@pytest.mark.root
def test_packets_of_the_host_for_one_guest_are_not_given_to_the_next(tap, guests):
    daemon, wire = tap
    a, b = guests
    with FrontEnd(daemon.socket) as peer:
        peer.start(a)
        a.rx.post(2)
        # Two are received, one is held by the device, the others wait in the kernel.
        wire.send(*[frame(f"for A, {n}") for n in range(50)])
        assert a.rx.wait_frames(2) == [frame("for A, 0"), frame("for A, 1")]
    wire.send(frame("for nobody"))
    with FrontEnd(daemon.socket) as peer:
        peer.start(b)
        b.rx.post(8)
        received = _receive_until(b, wire, frame("for B"))
        assert set(received) == {frame("for B")}


@pytest.mark.root
def test_packets_that_a_guest_left_in_its_ring_are_not_sent_for_the_next(tap, guests):
    daemon, wire = tap
    a, b = guests
    with FrontEnd(daemon.socket) as peer:
        peer.start(a)
        a.tx.send(frame("from A", to_guest=False))
        assert wire.receive() == frame("from A", to_guest=False)
        peer.stop_ring(a.tx)
        a.tx.send(frame("left by A", to_guest=False))
    with FrontEnd(daemon.socket) as peer:
        peer.start(b)
        b.tx.send(frame("from B", to_guest=False))
        assert wire.receive() == frame("from B", to_guest=False)


@pytest.mark.root
def test_a_flood_from_the_host_while_guests_change_is_never_mixed(tap, guests):
    daemon, wire = tap
    wire.socket.setblocking(False)
    for turn in range(20):
        guest = guests[turn % 2]
        guest.reset()
        mine = frame(f"turn {turn}")
        with FrontEnd(daemon.socket) as peer:
            peer.start(guest)
            guest.rx.post(12)
            received = _receive_until(guest, wire, mine)
            # What the host sends from now on arrives at any moment of the change.
            wire.send(*[mine] * 60)
        assert set(received) == {mine}


@pytest.mark.root
@pytest.mark.parametrize("tap", [2], indirect=True, ids=["two pairs"])
def test_all_flows_reach_a_guest_that_uses_one_pair_of_two(tap, namespace, guests):
    """The kernel spreads flows over the queues that are attached; one of them has no guest."""
    daemon, wire = tap
    guest, n_flows = guests[0], 12
    with FrontEnd(daemon.socket) as peer:
        peer.start(guest)
        guest.rx.post(1)
        _receive_until(guest, wire, frame("carrier is on"))
        guest.rx.post(n_flows)
        subprocess.run(
            [*namespace.prefix, sys.executable, "-c", SEND_FLOWS, "tap1", str(n_flows)],
            check=True,
            timeout=PATIENCE_S,
        )
        assert len(guest.rx.wait_used(n_flows)) == n_flows


def _receive_until(guest: Guest, wire: Wire, wanted: bytes) -> list[bytes]:
    """Send one frame now and then until one is received; returns all that the guest got.

    The first ones may be lost: the interface needs a moment after its carrier went on.
    """

    def arrived() -> bool:
        wire.send(wanted)
        return guest.rx.ring.used_idx() != guest.rx.ring.used_seen

    wait_until(arrived, "a frame of the host's")
    return [guest.rx.frame(used) for used in guest.rx.ring.collect()]
