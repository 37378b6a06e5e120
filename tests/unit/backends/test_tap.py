"""A real TAP in a namespace of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import threading

import pytest

from driver_ring import DriverRing, Memory
from instance import OneCard
from serve_process import wait_until
from vhostnet.backends.tap import TapBackend
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import HostError, UsageError
from vhostnet.observe.watchdog import Watchdog
from vhostnet.uapi.virtio import VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, mask

#: A bridge from the TAP to a link of 2 Mbit/s, in whose queue packets stay charged to the TAP.
BOTTLENECK = """
ip link add br0 type bridge; ip link add slow0 type veth peer name slow1
tc qdisc add dev slow0 root tbf rate 2mbit burst 3k limit 200k
for dev in tapslow slow0; do ip link set $dev master br0; done
for dev in br0 tapslow slow0 slow1; do ip link set $dev up; done
"""


@pytest.fixture
def tap(namespace):
    backend = namespace.run(TapBackend.open, "tap0", 1, False)
    yield backend
    backend.close()


FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5" + bytes(range(50))


def test_the_carrier_is_off_until_a_driver_is_there(namespace, tap):
    namespace.up("tap0")
    assert not namespace.carrier("tap0")
    tap.set_link(True)
    assert namespace.carrier("tap0")
    tap.set_link(False)
    assert not namespace.carrier("tap0")


def test_an_announcement_reaches_the_network(namespace, tap):
    namespace.up("tap0")
    wire = namespace.packet_socket("tap0")
    tap.send_frame(FRAME)
    assert wire.recv(2000) == FRAME
    wire.close()


def test_packets_of_the_last_guest_are_discarded_and_counted(namespace, tap):
    namespace.up("tap0")
    tap.set_link(True)
    wire = namespace.packet_socket("tap0")
    for _ in range(5):
        wire.send(FRAME)
    assert tap.discard_pending() >= 5
    with pytest.raises(BlockingIOError):
        os.read(tap.queues[0].poll_fd, 2000)
    wire.close()


def test_what_the_kernel_drops_because_nobody_reads_is_counted(namespace, tap):
    namespace.run(os.system, "ip link set tap0 txqueuelen 5")
    namespace.up("tap0")
    tap.set_link(True)
    wire = namespace.packet_socket("tap0")
    before = tap.interface_drops()["rx"]
    for _ in range(20):
        with contextlib.suppress(OSError):  # ENOBUFS: it was dropped
            wire.send(b"\xff" * 60)
    wire.close()
    asked = ["ip", "-json", "-stats", "link", "show", "tap0"]
    [link] = json.loads(namespace.run(subprocess.check_output, asked))
    assert tap.interface_drops()["rx"] == link["stats64"]["tx"]["dropped"] >= before + 10


@pytest.mark.parametrize("hdr_len", [10, 12])
def test_the_header_size_and_offloads_follow_the_driver(namespace, tap, hdr_len):
    namespace.up("tap0")
    tap.set_link(True)
    tap.negotiate(hdr_len, mask(VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4))
    assert tap.queues[0].record[0]["guest_csum"] == 1
    tap.discard_pending()
    wire = namespace.packet_socket("tap0")
    wire.send(FRAME)
    # the interface's own chatter (IPv6) may come between
    packets = iter(lambda: os.read(tap.queues[0].poll_fd, 2000), None)
    assert len(next(p for p in packets if p.endswith(FRAME))) == hdr_len + len(FRAME)
    tap.negotiate(hdr_len, 0)
    assert tap.queues[0].record[0]["guest_csum"] == 0
    wire.close()


def test_a_tap_in_use_is_refused_in_one_line(namespace, tap):  # noqa: ARG001
    with pytest.raises(HostError, match="TAP tap0: is in use by another program"):
        namespace.run(TapBackend.open, "tap0", 1, False)


def test_single_and_multi_queue_do_not_mix(namespace, tap):  # noqa: ARG001
    with pytest.raises(HostError, match="must match --queue-pairs"):
        namespace.run(TapBackend.open, "tap0", 2, False)


def test_queues_are_attached_and_detached(namespace):
    backend = namespace.run(TapBackend.open, "tapmq", 3, False)
    namespace.up("tapmq")
    backend.set_link(True)
    backend.attach_queue(2, False)
    backend.attach_queue(1, False)
    wire = namespace.packet_socket("tapmq")
    backend.discard_pending()
    for _ in range(20):
        wire.send(FRAME)
    got = 0
    while True:
        try:
            os.read(backend.queues[0].poll_fd, 2000)
        except BlockingIOError:
            break
        got += 1
    assert got >= 20  # all of them, and perhaps the interface's own chatter
    backend.attach_queue(1, True)
    wire.close()
    backend.close()


def test_a_descriptor_is_adopted(tap):
    twin = TapBackend.adopt([os.dup(tap.queues[0].poll_fd)], 1, False)
    assert twin.name == "tap0"
    twin.close()


def test_a_descriptor_that_is_no_tap_is_refused():
    with pytest.raises(UsageError, match="not an attached TAP"):
        TapBackend.adopt([0], 1, False)


def test_as_many_descriptors_as_queue_pairs_are_wanted():
    with pytest.raises(UsageError, match="1 descriptors for 2 queue pairs"):
        TapBackend.adopt([0], 2, False)


def test_what_was_read_for_one_driver_is_not_given_to_another(tap):
    tap.negotiate(12, 0)
    tap.queues[0].record[0]["hold_len"] = 100
    tap.negotiate(12, 0)  # the same driver, after stop and cont
    assert tap.queues[0].record[0]["hold_len"] == 100
    tap.negotiate(10, 0)
    assert tap.queues[0].record[0]["hold_len"] == 0


def test_a_tap_with_a_full_send_buffer_goes_on_when_there_is_room(namespace):
    """A TAP announces room only to somebody who asked since it was full."""
    import fcntl

    backend = namespace.run(TapBackend.open, "tapslow", 1, False)
    fcntl.ioctl(backend.queues[0].poll_fd, 0x400454D4, struct.pack("=i", 20000))  # TUNSETSNDBUF
    namespace.run(os.system, BOTTLENECK)
    backend.negotiate(12, 0)
    backend.set_link(True)
    memory = Memory(1 << 21)
    net = VhostNet("test")
    net.set_owner(0)
    net.set_features(1 << 32)
    table = memory.table()
    net.set_mem_table(table)
    ring, kick = DriverRing(memory, 256), os.eventfd(0)
    net.set_vring_num(1, 256)
    net.set_vring_addr(1, ring.addresses())
    net.set_vring_kick(1, os.dup(kick))
    net.set_backend(1, backend.queues[0])
    frame = b"\x02\0\0\0\0\xaa" + b"\x02\0\0\0\0\x09" + b"\x88\xb5" + bytes(1400)
    for _ in range(60):
        ring.send(bytes(12) + frame)
    os.eventfd_write(kick, 1)
    wait_until(lambda: ring.used_idx() == 60, "all frames sent")
    net.reset_owner()
    table.release()
    memory.close()
    backend.close()
    os.close(kick)


def test_a_tap_that_is_deleted_is_reported_and_packets_are_dropped(namespace, caplog):
    backend = namespace.run(TapBackend.open, "tapgone", 1, False)
    namespace.up("tapgone")
    backend.negotiate(12, 0)
    memory = Memory()
    net = VhostNet("test")
    net.set_owner(0)
    net.set_features(1 << 32)
    table = memory.table()
    net.set_mem_table(table)
    kicks = [os.eventfd(0), os.eventfd(0)]
    rings = [DriverRing(memory, 16) for _ in kicks]
    for index, ring in enumerate(rings):
        net.set_vring_num(index, 16)
        net.set_vring_addr(index, ring.addresses())
        net.set_vring_kick(index, os.dup(kicks[index]))
        net.set_backend(index, backend.queues[0])
    namespace.run(os.system, "ip link del tapgone")
    net.flush()
    for _ in range(3):
        rings[1].send(bytes(12) + FRAME)
        os.eventfd_write(kicks[1], 1)
        net.flush()
    assert len(rings[1].collect()) == 3
    assert net.tx.counters()["drop_gone"] == 3
    watchdog = Watchdog(lambda: [OneCard(net)])
    for _ in range(3):
        watchdog.check()
    assert caplog.text.count("tx is stalled: the backend was deleted") == 1
    assert caplog.text.count("the TAP was deleted") == 1
    net.reset_owner()
    table.release()
    memory.close()
    backend.close()
    for kick in kicks:
        os.close(kick)
    assert threading.active_count() >= 1


def test_a_tap_that_is_down_drops_by_that_cause_and_the_watchdog_says_so(namespace, tap, caplog):
    tap.negotiate(12, 0)
    memory = Memory()
    net = VhostNet("test")
    net.set_owner(0)
    net.set_features(1 << 32)
    table = memory.table()
    net.set_mem_table(table)
    ring, kick = DriverRing(memory, 16), os.eventfd(0)
    net.set_vring_num(1, 16)
    net.set_vring_addr(1, ring.addresses())
    net.set_vring_kick(1, os.dup(kick))
    net.set_backend(1, tap.queues[0])
    watchdog = Watchdog(lambda: [OneCard(net)])
    for _ in range(4):
        ring.send(bytes(12) + FRAME)
        os.eventfd_write(kick, 1)
        net.flush()
        watchdog.check()
    assert net.tx.counters()["drop_down"] == 4
    stalled = "tx is stalled: every packet that the guest sends is dropped: the interface is down"
    assert caplog.text.count(stalled) == 1
    namespace.up("tap0")
    ring.send(bytes(12) + FRAME)
    os.eventfd_write(kick, 1)
    net.flush()
    watchdog.check()
    assert net.tx.counters()["packets"] == 1
    assert caplog.text.count("tx moves again, after") == 1
    net.reset_owner()
    table.release()
    memory.close()
    os.close(kick)
