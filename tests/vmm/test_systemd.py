"""The units under Debian's systemd: activation, readiness, watchdog, restart, reload, end.

In a virtual machine (Debian's kernel, udev, device policy), and in namespaces of this machine,
where the processor is not emulated and a second is a second.  How long things took is printed
(-rP shows it); no test depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from systemd_container import Container
from systemd_machine import boot
from systemd_root import python

from long import IS_LONG
from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.machine import Machine, VhostUserNic
from vhostnet.demo.qemu import GuestVM
from vhostnet.errors import HostError

pytestmark = [pytest.mark.vmm, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1200)]

UNIT, SOCKET = "vhostnet@tap0.service", "vhostnet@tap0.socket"
GUEST = "192.0.2.2"
#: Exposure, times ten, that `systemd-analyze security` may find.
THRESHOLD = 20
#: An emulated processor starts the daemon in 20 to 40 s.
PATIENCE_S = 240.0


class Shell(Protocol):
    """Where commands are run."""

    def run(self, command: str, timeout: float = 60.0) -> tuple[int, str]: ...
    def check(self, command: str, timeout: float = 60.0) -> str: ...
    def stop(self) -> object: ...


@dataclass(frozen=True)
class Bed:
    """A machine with a TAP that belongs to the units' user."""

    where: str
    shell: Shell

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.shell.check(f"systemctl show -P {name} {unit}").strip()

    def journal(self, unit: str) -> str:
        return self.shell.check(f"journalctl --sync && journalctl --no-pager -o cat -u {unit}")

    def uptime(self) -> float:
        return float(self.shell.check("cat /proc/uptime").split()[0])

    def pings(self, address: str) -> float:
        """Wait until *address* answers; seconds since the machine started."""
        once = f"ping -c 1 -W 1 -w 1 {address} > /dev/null 2>&1"
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            line = f"for i in $(seq 100); do {once} && break; sleep 0.05; done"
            if self.shell.run(f"{line}; {once}", PATIENCE_S)[0] == 0:
                return self.uptime()
        raise AssertionError(f"{address} does not answer")

    def restarted(self, unit: str, address: str, command: str) -> None:
        """Do something that ends the daemon: it is there again, and so is the guest's card."""
        pid, restarts = (self.show(unit, name) for name in ("MainPID", "NRestarts"))
        before = self.uptime()
        self.shell.check(command.replace("PID", pid))
        deadline = time.monotonic() + PATIENCE_S
        while self.show(unit, "MainPID") in (pid, "0"):
            assert time.monotonic() < deadline, self.journal(unit)
            time.sleep(0.1)
        answered = self.pings(address)
        assert int(self.show(unit, "NRestarts")) == int(restarts) + 1, self.journal(unit)
        started, ready = (
            int(self.show(unit, f"{name}TimestampMonotonic")) / 1e6
            for name in ("ExecMainStart", "ActiveEnter")
        )
        print(
            f"{self.where}: {command}: started again after {started - before:.2f} s, ready "
            f"{ready - started:.2f} s later, ping answered {answered - started:.2f} s after the "
            "start"
        )


@pytest.fixture(scope="module", params=["container", "machine"])
def bed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    shell: Shell
    try:
        if request.param == "container":
            shell = Container(watchdog_s=4)
        else:
            shell = boot(tmp_path_factory.mktemp("machine"), watchdog_s=8)
    except HostError as error:
        pytest.skip(str(error))
    try:
        for tap, network in (("tap0", "192.0.2"), ("tap1", "198.51.100")):
            shell.check(
                f"/sbin/ip tuntap add {tap} mode tap user vhostnet && /sbin/ip addr add "
                f"{network}.1/24 dev {tap} && /sbin/ip link set {tap} up"
            )
        yield Bed(request.param, shell)
    finally:
        shell.stop()


@pytest.fixture
def not_emulated(bed: Bed) -> None:
    if bed.where != "container":
        pytest.skip("takes an emulated processor a minute, and shows nothing else")


@pytest.fixture
def not_emulated_or_long(request: pytest.FixtureRequest) -> None:
    if not IS_LONG:
        request.getfixturevalue("not_emulated")


# --- the order is that of a daemon's life -------------------------------------------------------


def test_systemd_finds_nothing_wrong_with_what_is_installed(bed: Bed) -> None:
    assert bed.shell.check("systemctl --failed --quiet --no-legend") == ""
    said = bed.shell.check(f"systemd-analyze verify --man=no vhostnet.service {UNIT} {SOCKET}")
    assert said == ""
    assert "vhostnet" not in bed.journal("systemd-udevd.service")
    assert "(kvm)" in bed.shell.check("id vhostnet")
    assert bed.shell.check("stat -c '%U:%G %a' /run/vhostnet") == "vhostnet:vhostnet 755\n"


def test_the_apparmor_profile_can_be_loaded(bed: Bed) -> None:
    if bed.where != "machine":
        pytest.skip("the kernel is not the machine's own")
    bed.shell.check("apparmor_parser --add --skip-cache /etc/apparmor.d/vhostnet-serve")
    bed.shell.check("grep 'vhostnet-serve (enforce)' /sys/kernel/security/apparmor/profiles")


@pytest.mark.parametrize("unit", ["vhostnet.service", "vhostnet@tap0.service"])
def test_the_units_are_as_closed_as_they_were(bed: Bed, unit: str) -> None:
    said = bed.shell.check(f"systemd-analyze security --no-pager --threshold={THRESHOLD} {unit}")
    print(said.strip().splitlines()[-1])


def test_who_connects_to_the_socket_starts_the_daemon(bed: Bed) -> None:
    bed.shell.check(f"systemctl start {SOCKET}")
    assert bed.shell.check("stat -c '%U:%G %a' /run/vhostnet/tap0.sock") == "root:kvm 660\n"
    assert bed.show(UNIT, "ActiveState") == "inactive"
    guest = python("/opt/vhostnet/tests/vmm/pinged_guest.py", "/run/vhostnet/tap0.sock")
    bed.shell.check(f"export {guest.replace(' /opt', '; setsid /opt', 1)} > /tmp/guest 2>&1 &")
    deadline = time.monotonic() + PATIENCE_S
    while bed.show(UNIT, "ActiveState") == "inactive":
        assert time.monotonic() < deadline, bed.shell.check("cat /tmp/guest")
        time.sleep(0.05)


def test_a_start_is_done_when_the_daemon_is_ready(bed: Bed) -> None:
    # no word of the daemon's would have come yet if systemd did not wait for its READY=1
    bed.shell.check(f"systemctl start {UNIT}", PATIENCE_S)
    assert bed.show(UNIT, "StatusText").startswith("1 devices")
    assert bed.show(UNIT, "ActiveState") == "active"
    assert bed.pings(GUEST)
    if bed.where == "machine":
        current = f"/proc/{bed.show(UNIT, 'MainPID')}/attr/current"
        assert bed.shell.check(f"cat {current}").strip() == "vhostnet-serve (enforce)"


@pytest.mark.usefixtures("not_emulated_or_long")
def test_a_daemon_that_is_killed_is_started_again_and_the_card_is_back(bed: Bed) -> None:
    bed.restarted(UNIT, GUEST, "kill -KILL PID")
    assert bed.shell.check("tail -n 1 /tmp/guest") == "back\n"


@pytest.mark.usefixtures("not_emulated_or_long")
def test_a_daemon_that_stands_still_is_killed_by_the_watchdog(bed: Bed) -> None:
    bed.restarted(UNIT, GUEST, "kill -STOP PID")
    assert "Watchdog timeout" in bed.journal(UNIT)


def test_a_stop_ends_all_and_leaves_the_tap(bed: Bed) -> None:
    before = bed.uptime()
    bed.shell.check(f"systemctl stop {SOCKET} {UNIT}", PATIENCE_S)
    print(f"{bed.where}: stopped in {bed.uptime() - before:.2f} s")
    journal = bed.journal(UNIT)
    assert "closed the session: vhostnet ends" in journal
    assert "Traceback" not in journal
    assert f"{UNIT}: Deactivated successfully." in journal
    assert bed.shell.run("test -e /run/vhostnet/tap0.sock")[0] != 0
    bed.shell.check("test -e /sys/class/net/tap0")
    assert bed.shell.run("dmesg | grep 'apparmor=.DENIED'")[1] == ""


@pytest.mark.usefixtures("not_emulated")
def test_a_linux_guest_lives_through_a_restart_and_a_reload(
    bed: Bed, image: GuestImage, accel: str
) -> None:
    assert isinstance(bed.shell, Container)
    unit, address = "vhostnet.service", "198.51.100.2"
    inside = Path("/run/vhostnet/vm2.sock")
    # the socket is there when the start is done, for whoever comes next
    bed.shell.check(f"test ! -e {inside} && systemctl start {unit} && test -S {inside}")
    nic = VhostUserNic(bed.shell.seen_from_here(inside), reconnect_s=1)
    with GuestVM(image, Machine(accel), [nic]) as guest:
        guest.wait_for_shell()
        guest.add_address(0, f"{address}/24")
        bed.pings(address)
        bed.restarted(unit, address, "kill -KILL PID")
        bed.shell.check("sed -i '$a busy-poll-us = 20' /etc/vhostnet/vhostnet.toml")
        bed.shell.check(f"systemctl reload {unit}")
        bed.pings(address)
    bed.shell.check(f"systemctl stop {unit} && test ! -e {inside}")
    assert "vm2: busy_poll_us=20" in bed.journal(unit)


@pytest.mark.usefixtures("not_emulated")
def test_the_end_of_one_unit_leaves_the_sockets_of_others(bed: Bed) -> None:
    bed.shell.check(f"systemctl start {SOCKET} vhostnet.service")
    bed.shell.check("systemctl stop vhostnet.service")
    bed.shell.check("test -S /run/vhostnet/tap0.sock")
