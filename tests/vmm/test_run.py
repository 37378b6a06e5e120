"""Real guests on the character device of `vhostnet run`: QEMU's own `tap,vhost=on`, unmodified."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from long import LONG
from serve_process import PATIENCE_S, READY_S
from tree_bed import is_alive, wait_until
from vhostnet.demo import measure
from vhostnet.demo.console import Console
from vhostnet.demo.guest_image import READY_LINE
from vhostnet.demo.machine import Machine, command_line
from vhostnet.demo.measure import DIRECTIONS
from vhostnet.demo.qemu import BOOT_S
from vhostnet.demo.qmp import Qmp
from vhostnet.demo.run_demo import check_vhost
from vhostnet.errors import HostError
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET

if TYPE_CHECKING:
    from conftest import RunBed

pytestmark = [pytest.mark.vmm, pytest.mark.root]
MEMORY = ["private", "shared"]
HOST, GUEST = "192.0.2.1", "192.0.2.2"


@pytest.mark.parametrize("memory", MEMORY)
def test_a_thousand_pings_and_sixteen_mib(run_bed: RunBed, memory: str) -> None:
    guest = run_bed.start(run_bed.machine(memory))
    pinged = measure.ping(run_bed.path(guest), 1000, interval_s=0.002)
    assert (pinged.sent, pinged.lost) == (1000, 0)
    measure.start_iperf3(guest)
    for direction in DIRECTIONS:
        assert measure.tcp(run_bed.path(guest), direction, 1) > 10
        assert measure.transfer(run_bed.path(guest), direction, 16)
    tasks = [
        Path(f"/proc/{run_bed.supervisor()}/task/{task}/comm").read_text().strip()
        for task in os.listdir(f"/proc/{run_bed.supervisor()}/task")
    ]
    assert any(task.startswith("vhost-") for task in tasks), "our worker serves it"


@LONG
@pytest.mark.parametrize("memory", MEMORY)
def test_a_quarter_gib_arrives_unchanged(run_bed: RunBed, memory: str) -> None:
    guest = run_bed.start(run_bed.machine(memory, mib=768))
    for direction in DIRECTIONS:
        assert measure.transfer(run_bed.path(guest), direction, 256)


@pytest.mark.parametrize("memory", MEMORY)
def test_two_queue_pairs_are_both_used(run_bed: RunBed, memory: str) -> None:
    guest = run_bed.start(run_bed.machine(memory, smp=2), queue_pairs=2)
    guest.check("ethtool -L eth0 combined 2")
    for cpu in (0, 1):
        guest.check(f"taskset {1 << cpu:#x} ping -c 8 -i 0.1 {HOST}")
    run_bed.assert_transfers(guest, 8)
    text = run_bed.log.read_text()
    assert "open0: its first ring starts" in text
    assert "open1: its first ring starts" in text
    guest.check("ethtool -L eth0 combined 1")
    run_bed.assert_pings(guest)
    guest.check("ethtool -L eth0 combined 2")
    run_bed.assert_pings(guest)


@pytest.mark.parametrize("memory", MEMORY)
def test_reset_and_reload_of_the_driver(run_bed: RunBed, memory: str) -> None:
    guest = run_bed.start(run_bed.machine(memory))
    run_bed.assert_pings(guest)
    guest.qmp("system_reset")
    guest.wait_for_shell()
    guest.add_address(0, f"{GUEST}/24")
    run_bed.assert_pings(guest)
    guest.qmp("stop")
    guest.qmp("cont")
    run_bed.assert_pings(guest)
    check_vhost(guest, run_bed.log)


def test_a_daemon_is_served_after_its_command_has_ended(run_bed: RunBed) -> None:
    """QEMU's -daemonize."""
    machine = Machine(run_bed.accel, private=True, paused=True)
    folder = run_bed.folder
    argv = command_line(run_bed.image, machine, (run_bed.tap(),))
    argv += ["-serial", f"file:{folder / 'console.log'}"]
    argv += ["-chardev", f"socket,id=shell,path={folder / 'shell'},server=on,wait=off"]
    argv += ["-serial", "chardev:shell", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
    argv += ["-daemonize", "-pidfile", str(folder / "pid")]
    ended = subprocess.run(
        [*run_bed.prefix, *argv], capture_output=True, text=True, timeout=READY_S, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    pid = int((folder / "pid").read_text())
    qmp = Qmp(folder / "qmp")
    try:
        with socket.socket(socket.AF_UNIX) as shell:
            shell.connect(str(folder / "shell"))
            console = Console(shell.fileno(), shell.fileno(), lambda: "a daemon")
            qmp.call("cont")
            console.expect(READY_LINE.encode() + b"\n", BOOT_S)
            status, said = console.run(
                f"ip addr add {GUEST}/24 dev eth0; ip link set eth0 up; "
                f"ping -c 100 -i 0.01 -q {HOST}",
                60.0,
            )
            assert status == 0, said
            assert "100 packets transmitted, 100 packets received" in said
        assert "its first ring starts" in run_bed.log.read_text()
        supervisor = run_bed.supervisor()
        assert is_alive(supervisor)
    finally:
        qmp.close()
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid))
    wait_until(lambda: not is_alive(supervisor))


@pytest.mark.parametrize(
    ("memory", "packed"),
    [
        ("private", "off"),
        ("shared", "on"),
        pytest.param("private", "on", marks=LONG),
        pytest.param("shared", "off", marks=LONG),
    ],
)
def test_a_guest_behind_an_iommu(run_bed: RunBed, memory: str, packed: str) -> None:
    """Its misses are read from the descriptor, its updates written to it."""
    run_bed.options = ("--packed-rings",)
    properties = {"iommu_platform": "on", "ats": "on", "disable-legacy": "on", "packed": packed}
    guest = run_bed.start(run_bed.machine(memory, iommu=True), properties=properties)
    features = guest.check("cat /sys/bus/virtio/devices/virtio0/features")
    assert features[VIRTIO_F_RING_PACKED] == ("1" if packed == "on" else "0")
    run_bed.assert_pings(guest)
    run_bed.assert_transfers(guest, 2)
    check_vhost(guest, run_bed.log)


@pytest.mark.parametrize("memory", MEMORY)
def test_the_guest_resets_single_rings(run_bed: RunBed, memory: str) -> None:
    """VIRTIO_F_RING_RESET: a ring is stopped, gets another size, and goes on alone."""
    properties = {"queue_reset": "on", "disable-legacy": "on"}
    guest = run_bed.start(run_bed.machine(memory), properties=properties)
    assert guest.check("cat /sys/bus/virtio/devices/virtio0/features")[VIRTIO_F_RING_RESET] == "1"
    for size in (64, 256, 128):
        guest.check(f"ethtool -G eth0 rx {size} tx {size}")
        run_bed.assert_pings(guest)
    run_bed.assert_transfers(guest, 4)
    check_vhost(guest, run_bed.log)


@pytest.mark.parametrize("memory", MEMORY)
def test_a_guest_with_packed_rings(run_bed: RunBed, memory: str) -> None:
    run_bed.options = ("--packed-rings",)
    guest = run_bed.start(run_bed.machine(memory), properties={"packed": "on"})
    features = guest.check("cat /sys/bus/virtio/devices/virtio0/features")
    assert features[VIRTIO_F_RING_PACKED] == "1"
    pinged = measure.ping(run_bed.path(guest), 300, interval_s=0.002)
    assert (pinged.sent, pinged.lost) == (300, 0)
    run_bed.assert_transfers(guest, 16)
    for _ in range(3):  # the bases that QEMU keeps have both wrap counters
        guest.qmp("stop")
        guest.qmp("cont")
        run_bed.assert_transfers(guest, 1)
    guest.qmp("system_reset")
    guest.wait_for_shell()
    guest.add_address(0, f"{GUEST}/24")
    run_bed.assert_pings(guest)
    check_vhost(guest, run_bed.log)


def test_qemu_goes_on_when_the_supervisor_is_killed(run_bed: RunBed) -> None:
    # The bed asks the kernel to kill QEMU when its parent ends: that is to be a shell.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    guest = run_bed.start(run_bed.machine("private"), within=shell)
    run_bed.assert_pings(guest)
    os.kill(run_bed.supervisor(), signal.SIGKILL)
    assert guest.qmp("query-status")["running"]
    assert guest.check("echo alive").strip() == "alive"
    wait_until(lambda: "the command goes on" in guest.qemu_log(), "a line of who is left")
    guest.qmp("system_reset")
    guest.wait_for_shell()
    guest.add_address(0, f"{GUEST}/24")
    run_bed.assert_pings(guest)  # by QEMU's own card
    assert "falling back on userspace virtio" in guest.qemu_log()
    with contextlib.suppress(OSError, HostError):
        guest.qmp("quit")
    assert guest.process.wait(PATIENCE_S) == 0


def test_the_demo_through_run(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    words = ["demo", "--quick", "--door", "run", "--json", str(file)]
    ended = subprocess.run(
        [sys.executable, "-m", "vhostnet", *words],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )
    if ended.returncode == 4:
        pytest.skip(ended.stderr.strip().splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    assert '"lost": 0' in file.read_text()
