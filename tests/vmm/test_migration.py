"""Live migration into a file and out of it, under traffic: the dirty log misses nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from long import LONG
from vhostnet.demo.machine import Machine, VhostUserNic
from vhostnet.demo.qemu import GuestVM
from vhostnet.demo.tools import spawn

if TYPE_CHECKING:
    from conftest import Bed, RunBed

pytestmark = [pytest.mark.vmm, pytest.mark.root]

PAGE = 4096
RAM = 256 << 20  # what is compared: all of the guest's memory
HOST_GUEST = "192.0.2.2"
MIB = 1 << 20
PATIENCE_S = 240.0
#: Sends to the guest, not at full speed, until its standard input ends; tells the digest.
SEND_TCP = f"""
import hashlib, random, select, socket, sys
rng, digest = random.Random(1), hashlib.sha256()
with socket.create_connection(("192.0.2.2", 5300), timeout={PATIENCE_S}) as s:
    while not select.select([sys.stdin], [], [], 0.03)[0]:
        block = rng.randbytes({MIB})
        digest.update(block)
        s.sendall(block)
print(digest.hexdigest())
"""
MARK = b"vhostnet writes this page"
SEND_UDP = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect(("192.0.2.2", 9))
    for n in range(100):
        s.send({MARK!r} + n.to_bytes(1300, "little"))
"""


def wait_until(condition: Callable[[], bool], timeout: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status_of(guest: GuestVM) -> str:
    status: str = guest.qmp("query-migrate")["status"]
    assert status in ("setup", "active", "device", "completed"), status
    return status


def migrate_to_file(guest: GuestVM, state: Path) -> None:
    """Migrate; the guest is paused afterwards, its memory as it was at the end."""
    guest.qmp("migrate", uri=f"exec:cat > {state}")
    wait_until(lambda: status_of(guest) == "completed")


class OverSocket:
    """A guest of `vhostnet serve`, which goes on serving it when it has moved."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed

    def boot(self) -> GuestVM:
        if self.bed.serve() is None:
            pytest.skip("QEMU's own card needs no dirty log")
        return self.bed.boot()

    def arrive(self, state: Path, *, paused: bool) -> GuestVM:
        """Start the guest again from the file."""
        machine = Machine(self.bed.accel, incoming=f"exec:cat {state}", paused=paused)
        nics = [VhostUserNic(self.bed.socket)]
        moved = GuestVM(self.bed.image, machine, nics, prefix=self.bed.host.prefix)
        return self.bed.stack.enter_context(moved)


class OverIoctls:
    """A guest of one `vhostnet run`, which arrives at another one."""

    def __init__(self, bed: RunBed, memory: str, options: tuple[str, ...] = ()) -> None:
        self.bed = bed
        self.machine = bed.machine(memory)
        bed.options = options

    def boot(self) -> GuestVM:
        packed = "on" if self.bed.options else "off"
        return self.bed.start(self.machine, properties={"packed": packed})

    def arrive(self, state: Path, *, paused: bool) -> GuestVM:
        """Start the guest again from the file."""
        return self.bed.arrive(state, dataclasses.replace(self.machine, paused=paused))


DOORS: dict[str, Callable[[pytest.FixtureRequest], OverSocket | OverIoctls]] = {
    "vhost-user": lambda request: OverSocket(request.getfixturevalue("bed")),
    "run, private memory": lambda request: OverIoctls(
        request.getfixturevalue("run_bed"), "private"
    ),
    "run, shared memory": lambda request: OverIoctls(request.getfixturevalue("run_bed"), "shared"),
    "run, private memory, packed": lambda request: OverIoctls(
        request.getfixturevalue("run_bed"), "private", ("--packed-rings",)
    ),
    "run, shared memory, packed": lambda request: OverIoctls(
        request.getfixturevalue("run_bed"), "shared", ("--packed-rings",)
    ),
}


@pytest.fixture(
    params=[
        "vhost-user",
        "run, private memory",
        "run, shared memory, packed",
        "run, private memory, packed",
        pytest.param("run, shared memory", marks=LONG),
    ]
)
def door(request: pytest.FixtureRequest) -> OverSocket | OverIoctls:
    return DOORS[request.param](request)


def arrived(door: OverSocket | OverIoctls, state: Path, *, paused: bool) -> GuestVM:
    """Start the guest again from the file, and wait until all of it is there."""
    moved = door.arrive(state, paused=paused)
    wait_until(lambda: moved.qmp("query-status")["status"] in ("running", "paused"))
    return moved


def receive_more(guest: GuestVM, mib: int = 16) -> None:
    """Wait until so much more has come to the guest."""
    counter = "$(cat /sys/class/net/eth0/statistics/rx_bytes)"
    wanted = int(guest.check(f"echo {counter}")) + mib * MIB
    guest.wait_until(f"test {counter} -ge {wanted}", timeout=PATIENCE_S)


def test_a_guest_migrates_under_traffic_and_every_byte_arrives(
    door: OverSocket | OverIoctls,
) -> None:
    bed, guest = door.bed, door.boot()
    bed.assert_pings(guest)
    guest.check("(nc -l -p 5300 | sha256sum > /tmp/sum; echo > /tmp/done) > /dev/null 2>&1 &")
    guest.wait_until("netstat -ltn | grep -q ':5300 '")
    sender = spawn(
        [sys.executable, "-c", SEND_TCP],
        prefix=bed.host.prefix,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    receive_more(guest)
    migrate_to_file(guest, bed.folder / "state")
    guest.stop()
    moved = arrived(door, bed.folder / "state", paused=False)
    receive_more(moved)
    said, _ = sender.communicate(timeout=PATIENCE_S)
    moved.wait_until("test -e /tmp/done", timeout=PATIENCE_S)
    assert moved.check("cut -d' ' -f1 /tmp/sum").strip() == said.decode().strip()
    bed.assert_transfers(moved)
    bed.assert_quiet_log()


def test_pages_that_only_we_have_written_are_migrated(door: OverSocket | OverIoctls) -> None:
    """Packets arrive, after their pages were sent, in a card that the guest does not look at."""
    bed, guest = door.bed, door.boot()
    bed.assert_pings(guest)
    mac = guest.check("cat /sys/class/net/eth0/address").strip()
    neighbour = ["ip", "neigh", "replace", HOST_GUEST, "lladdr", mac, "dev", "tap0"]
    spawn(neighbour, prefix=bed.host.prefix).wait()
    # the buffers stay posted, but nobody takes packets out of them
    guest.check("ip link set eth0 down")
    # enough dirty memory that the migration does not end before it may
    guest.check("(while :; do dd if=/dev/urandom of=/tmp/x bs=1M count=24; done) >/dev/null 2>&1 &")
    guest.qmp("migrate-set-parameters", **{"downtime-limit": 1, "max-bandwidth": 40 << 20})
    guest.qmp("migrate", uri=f"exec:cat > {bed.folder / 'state'}")
    wait_until(lambda: guest.qmp("query-migrate").get("ram", {}).get("dirty-sync-count", 0) >= 3)
    spawn([sys.executable, "-c", SEND_UDP], prefix=bed.host.prefix).wait()
    assert status_of(guest) == "active"
    guest.qmp("migrate-set-parameters", **{"downtime-limit": 20000})
    wait_until(lambda: status_of(guest) == "completed")
    before, after = bed.folder / "before", bed.folder / "after"
    guest.qmp("pmemsave", val=0, size=RAM, filename=str(before))
    guest.stop()
    moved = arrived(door, bed.folder / "state", paused=True)
    moved.qmp("pmemsave", val=0, size=RAM, filename=str(after))
    written = 0
    with before.open("rb") as a, after.open("rb") as b:
        for page in range(RAM // PAGE):
            was, now = a.read(PAGE), b.read(PAGE)
            # Other pages are the guest's own: QEMU 7.2's emulated processor itself loses a
            # few of its last writes.
            if MARK in was:
                written += was.count(MARK)
                assert was == now, f"page {page:#x} was written and not logged"
    assert written >= 100
    bed.assert_quiet_log()
