"""A bed for end-to-end tests: a namespace with a TAP, `vhostnet serve`, real guests.

VHOSTNET_TEST_CARD=qemu puts QEMU's own card in vhostnet's place, for telling a fault of the bed
from a fault of vhostnet.  Tests that only make sense for vhostnet are skipped then.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tree_bed import is_alive, wait_until
from vhostnet.demo import measure
from vhostnet.demo.accel import accelerator
from vhostnet.demo.daemon import Daemon
from vhostnet.demo.guest_image import GuestImage, guest_image
from vhostnet.demo.machine import Machine, Nic, TapNic, VhostUserNic
from vhostnet.demo.netns import Namespace
from vhostnet.demo.qemu import GuestVM
from vhostnet.demo.run_demo import check_vhost, run_prefix
from vhostnet.errors import HostError

HOST, GUEST = "192.0.2.1", "192.0.2.2"
RING_PACKED = 34  # the feature's bit number
STAND_IN = os.environ.get("VHOSTNET_TEST_CARD") == "qemu"


class Bed:
    """A namespace, at most one daemon at a time, and guests; all of it ends with the test."""

    def __init__(self, image: GuestImage, accel: str, folder: Path, stack: ExitStack) -> None:
        self.image = image
        self.accel = accel
        self.folder = folder
        self.socket = folder / "socket"
        self.stack = stack
        self.host = stack.enter_context(Namespace())
        self.queue_pairs = 1

    def serve(
        self, *options: str, queue_pairs: int = 1, mtu: int | None = None, client: bool = False
    ) -> Daemon | None:
        """Make the TAP and start the daemon on it."""
        self.queue_pairs = queue_pairs
        self.host.add_tap("tap0", f"{HOST}/24", queue_pairs=queue_pairs, mtu=mtu)
        return self.start_daemon(*options, client=client)

    def start_daemon(self, *options: str, client: bool = False) -> Daemon | None:
        """Start a (further) daemon on the TAP that is there."""
        if STAND_IN:
            return None
        arguments = ["--socket-path", str(self.socket), "--backend", "tap:tap0", *options]
        if self.queue_pairs > 1:
            arguments += ["--queue-pairs", str(self.queue_pairs)]
        if client:
            arguments.append("--client")
        daemon = Daemon(arguments, log=self.folder / "vhostnet.log", prefix=self.host.prefix)
        return self.stack.enter_context(daemon)

    def boot(
        self,
        machine: Machine | None = None,
        properties: Mapping[str, str] | None = None,
        *,
        mtu: int | None = None,
        server: bool = False,
        reconnect_s: int | None = None,
    ) -> GuestVM:
        """Boot a guest on the daemon and give its eth0 an address."""
        guest = self.power_on(machine, properties, server=server, reconnect_s=reconnect_s)
        guest.wait_for_shell()
        if (properties or {}).get("packed") == "on" and not _negotiated(guest, RING_PACKED):
            pytest.skip("packed rings were asked for but are not offered")
        guest.add_address(0, f"{GUEST}/24", mtu=mtu)
        return guest

    def power_on(
        self,
        machine: Machine | None = None,
        properties: Mapping[str, str] | None = None,
        *,
        server: bool = False,
        reconnect_s: int | None = None,
    ) -> GuestVM:
        """Start a guest and do not wait for it."""
        nic: Nic = VhostUserNic(
            self.socket,
            queue_pairs=self.queue_pairs,
            server=server,
            reconnect_s=reconnect_s,
            properties=properties or {},
        )
        if STAND_IN:
            nic = TapNic("tap0", queue_pairs=self.queue_pairs, properties=properties or {})
        machine = machine or Machine(self.accel)
        guest = GuestVM(self.image, machine, [nic], prefix=self.host.prefix)
        return self.stack.enter_context(guest)

    def path(self, guest: GuestVM) -> measure.Path:
        """Name the way between `guest` and the host."""
        return measure.Path(guest, self.host, guest_address=GUEST, host_address=HOST)

    def assert_pings(self, guest: GuestVM, *, size: int = 56) -> None:
        """Check that the guest reaches the host and nothing is lost."""
        result = measure.ping(self.path(guest), 10, size=size, interval_s=0.05)
        assert (result.sent, result.lost) == (10, 0)

    def assert_transfers(self, guest: GuestVM, mib: int = 4) -> None:
        """Check that a file arrives unchanged, each way."""
        for direction in measure.DIRECTIONS:
            assert measure.transfer(self.path(guest), direction, mib), direction

    def assert_quiet_log(self) -> None:
        """Check that the daemon had no bug to report."""
        log = self.folder / "vhostnet.log"
        assert "Traceback" not in (log.read_text() if log.exists() else "")


class RunBed(Bed):
    """QEMU in `vhostnet run`, in a namespace with a TAP: no daemon."""

    #: of `vhostnet run`
    options: tuple[str, ...] = ()
    #: how often it was started: each time has a log of its own
    number = 0

    @property
    def log(self) -> Path:
        return self.folder / f"run{self.number}.log"

    @property
    def prefix(self) -> list[str]:
        return [*self.host.prefix, *run_prefix(self.log, *self.options)]

    def tap(self, queue_pairs: int = 1, properties: Mapping[str, str] | None = None) -> TapNic:
        """Make the TAP; QEMU's options for it."""
        self.queue_pairs = queue_pairs
        self.host.add_tap("tap0", f"{HOST}/24", queue_pairs=queue_pairs)
        self.nic = TapNic("tap0", queue_pairs=queue_pairs, properties=properties or {}, vhost=True)
        return self.nic

    def machine(self, memory: str, *, smp: int = 1, mib: int = 256, iommu: bool = False) -> Machine:
        """A guest whose memory is "private" (QEMU's default) or "shared"."""
        return Machine(self.accel, mib, private=memory == "private", smp=smp, iommu=iommu)

    def start(
        self,
        machine: Machine,
        queue_pairs: int = 1,
        properties: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> GuestVM:
        """Boot a guest whose card is ours, and prove that it is."""
        nic = self.tap(queue_pairs, properties)
        prefix = [*self.prefix, *within]
        guest = self.stack.enter_context(GuestVM(self.image, machine, [nic], prefix=prefix))
        guest.wait_for_shell()
        guest.add_address(0, f"{GUEST}/24")
        check_vhost(guest, self.log)
        return guest

    def arrive(self, state: Path, machine: Machine) -> GuestVM:
        """Start a guest that was migrated to the file *state*, by another `vhostnet run`.

        Args:
            machine: as it was.
        """
        before = self.supervisor()
        wait_until(lambda: not is_alive(before))  # and has let go of the TAP
        self.number += 1
        machine = dataclasses.replace(machine, incoming=f"exec:cat {state}")
        guest = GuestVM(self.image, machine, [self.nic], prefix=self.prefix)
        return self.stack.enter_context(guest)

    def supervisor(self) -> int:
        """The process that the worker threads are of."""
        return int(self.log.read_text().split("supervisor is process ")[1].split()[0])


def _negotiated(guest: GuestVM, bit: int) -> bool:
    """Tell whether the guest's driver and its first card agreed on a feature."""
    return guest.check("cat /sys/bus/virtio/devices/virtio0/features")[bit] == "1"


@pytest.fixture(scope="session")
def image() -> GuestImage:
    try:
        return guest_image()
    except HostError as err:
        pytest.skip(str(err))


@pytest.fixture(scope="session")
def accel(image: GuestImage) -> str:
    return accelerator(image)


@pytest.fixture(scope="module")
def shared_bed(
    image: GuestImage, accel: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bed]:
    """A bed for all tests of a module that do not change it for the others."""
    yield from _bed(image, accel, tmp_path_factory.mktemp("bed"))


@pytest.fixture
def bed(image: GuestImage, accel: str, tmp_path: Path) -> Iterator[Bed]:
    """A bed of the test's own."""
    yield from _bed(image, accel, tmp_path)


@pytest.fixture
def vhostnet_only() -> None:
    if STAND_IN:
        pytest.skip("says something about vhostnet only")


@pytest.fixture
def run_bed(image: GuestImage, accel: str, tmp_path: Path) -> Iterator[RunBed]:
    with ExitStack() as stack:
        try:
            made = RunBed(image, accel, tmp_path, stack)
        except HostError as err:
            pytest.skip(str(err))
        yield made
        for log in tmp_path.glob("run*.log"):
            assert "Traceback" not in log.read_text()


def _bed(image: GuestImage, accel: str, folder: Path) -> Iterator[Bed]:
    with ExitStack() as stack:
        try:
            made = Bed(image, accel, folder, stack)
        except HostError as err:
            pytest.skip(str(err))
        yield made
        made.assert_quiet_log()
