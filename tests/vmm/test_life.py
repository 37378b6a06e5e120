"""What happens to a guest in its life: pauses, resets, cables pulled, memory added, death."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from long import LONG
from serve_process import PATIENCE_S
from vhostnet.demo import measure
from vhostnet.demo.machine import Machine
from vhostnet.demo.qemu import GuestVM

if TYPE_CHECKING:
    from conftest import Bed

pytestmark = [pytest.mark.vmm, pytest.mark.root]


@pytest.fixture(scope="module")
def guest(shared_bed: Bed) -> GuestVM:
    """A guest that lives through several tests."""
    shared_bed.serve()
    return shared_bed.boot()


def test_stop_and_cont(shared_bed: Bed, guest: GuestVM) -> None:
    shared_bed.assert_pings(guest)
    for _ in range(3):
        guest.qmp("stop")
        time.sleep(0.2)
        guest.qmp("cont")
        shared_bed.assert_pings(guest)
    shared_bed.assert_transfers(guest)


def test_stop_and_cont_in_the_middle_of_a_transfer(guest: GuestVM) -> None:
    guest.check("(ping -c 60 -i 0.05 192.0.2.1 > /tmp/ping; echo >> /tmp/done) > /dev/null 2>&1 &")
    for _ in range(4):
        time.sleep(0.3)
        guest.qmp("stop")
        time.sleep(0.1)
        guest.qmp("cont")
    guest.wait_until("test -e /tmp/done")
    assert "60 packets received" in guest.check("cat /tmp/ping")


def test_system_reset(shared_bed: Bed, guest: GuestVM) -> None:
    _reset(shared_bed, guest)


def test_system_reset_of_a_guest_with_packed_rings(bed: Bed) -> None:
    bed.serve()
    _reset(bed, bed.boot(properties={"packed": "on"}))


def _reset(bed: Bed, guest: GuestVM) -> None:
    bed.assert_pings(guest)
    guest.qmp("system_reset")
    guest.wait_for_shell()
    guest.add_address(0, "192.0.2.2/24")
    bed.assert_pings(guest)
    bed.assert_transfers(guest)


def test_the_driver_is_removed_and_loaded_again(shared_bed: Bed, guest: GuestVM) -> None:
    for _ in range(3):
        shared_bed.assert_pings(guest)
        guest.check("rmmod virtio_net")
        guest.check("modprobe virtio_net")
        guest.add_address(0, "192.0.2.2/24")
    shared_bed.assert_transfers(guest)


def test_the_cable_is_pulled_and_plugged_in_again(shared_bed: Bed, guest: GuestVM) -> None:
    shared_bed.assert_pings(guest)
    guest.qmp("set_link", name="net0", up=False)
    guest.wait_until("test $(cat /sys/class/net/eth0/carrier) = 0")
    assert guest.run("ping -c 1 -W 1 192.0.2.1")[0] != 0
    guest.qmp("set_link", name="net0", up=True)
    guest.wait_until("test $(cat /sys/class/net/eth0/carrier) = 1")
    shared_bed.assert_pings(guest)
    shared_bed.assert_transfers(guest)


@pytest.mark.parametrize("queue_pairs", [pytest.param(1, marks=LONG), 2])
def test_memory_is_plugged_in_while_packets_flow(bed: Bed, queue_pairs: int) -> None:
    # QEMU 7.2 announces each piece of memory once for every pair.
    bed.serve(queue_pairs=queue_pairs)
    guest = bed.boot(Machine(bed.accel, memory_mib=160, max_memory_mib=512, smp=queue_pairs))
    guest.run(f"ethtool -L eth0 combined {queue_pairs}")
    before = int(guest.check("awk '/MemTotal/ { print $2 }' /proc/meminfo"))
    guest.check("ping -c 100 -i 0.05 192.0.2.1 > /tmp/ping 2>&1 &")
    backend = {"qom-type": "memory-backend-memfd", "id": "more", "size": 256 << 20, "share": True}
    guest.qmp("object-add", **backend)
    guest.qmp("device_add", driver="pc-dimm", id="dimm0", memdev="more")
    # Linux shows it in blocks of 128 MiB, and may leave it to us to take them into use.
    guest.wait_until(
        "for block in /sys/devices/system/memory/memory*/state; do"
        " grep -q online $block || echo online > $block; done;"
        f" test $(awk '/MemTotal/ {{ print $2 }}' /proc/meminfo) -gt {before + 200 * 1024}"
    )
    # More than there was before: the buffers of these packets lie in the new memory as well.
    guest.check("mount -o remount,size=90% /tmp")
    assert measure.transfer(bed.path(guest), "to_guest", 120)
    assert measure.transfer(bed.path(guest), "to_host", 16)
    guest.wait_until("grep -q transmitted /tmp/ping")
    assert " 0% packet loss" in guest.check("cat /tmp/ping")


@pytest.mark.usefixtures("vhostnet_only")
def test_a_killed_vmm_makes_room_for_the_next(bed: Bed) -> None:
    daemon = bed.serve()
    assert daemon is not None
    for _ in range(2):
        guest = bed.boot()
        bed.assert_pings(guest)
        guest.kill()
    guest = bed.boot()
    bed.assert_pings(guest)
    bed.assert_transfers(guest)
    assert daemon.running()


@pytest.mark.usefixtures("vhostnet_only")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_new_daemon_takes_over_a_running_guest(bed: Bed, end: signal.Signals) -> None:
    daemon = bed.serve()
    assert daemon is not None
    guest = bed.boot(reconnect_s=1)
    bed.assert_pings(guest)
    daemon.process.send_signal(end)
    daemon.process.wait(PATIENCE_S)
    bed.start_daemon()
    guest.wait_until("ping -c 1 -W 1 192.0.2.1")
    bed.assert_pings(guest)
    bed.assert_transfers(guest)


@pytest.mark.usefixtures("vhostnet_only")
def test_the_daemon_connects_where_the_vmm_listens(bed: Bed) -> None:
    daemon = bed.serve(client=True)
    assert daemon is not None
    guest = bed.boot(server=True)
    bed.assert_pings(guest)
    bed.assert_transfers(guest)


@pytest.mark.usefixtures("vhostnet_only")
def test_one_off_ends_with_its_vmm(bed: Bed) -> None:
    daemon = bed.serve("--one-off")
    assert daemon is not None
    guest = bed.boot()
    bed.assert_pings(guest)
    guest.stop()
    assert daemon.process.wait(PATIENCE_S) == 0


@pytest.mark.usefixtures("vhostnet_only")
def test_the_daemon_ends_with_a_guest_attached(bed: Bed) -> None:
    daemon = bed.serve()
    assert daemon is not None
    guest = bed.boot()
    bed.assert_pings(guest)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(PATIENCE_S) == 0
