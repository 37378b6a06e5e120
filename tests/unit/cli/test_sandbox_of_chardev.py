"""`vhostnet chardev` in its sandbox: what is refused, and what the opener does for it.

The test is the kernel behind /dev/cuse, and drives the device from its own process; with the real
/dev/cuse that is tests/chardev.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cuse_kernel import STANDS_IN, CuseKernel, CuseTransport, children_of, stop
from host import TAKES_DESCRIPTORS
from oracle.lab import Tap, describe, frame
from oracle.namespace import Namespace, namespace_or_skip
from serve_process import wait_until
from telling import HARMLESS, N_ATTEMPTS, SEEN, TELLING, what_it_said
from unit.cli.test_sandbox_of_serve import STAGES, ask, needs_all
from vhostnet.uapi import tun
from vhostnet.uapi.packet import PACKET_VNET_HDR_SZ, SOL_PACKET
from vhostnet_frontend import GuestMemory, NetDriver, VerbError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CUSE is root's")
NUM = 64
HDR = 12
ETH_P_ALL = 3


@pytest.fixture
def chardev(tmp_path: Path) -> Iterator[Callable[..., CuseKernel]]:
    """Starts a daemon in tmp_path."""
    started: list[CuseKernel] = []

    def start(*options: str, **more: object) -> CuseKernel:
        started.append(CuseKernel(tmp_path, *options, **more))
        return started[-1]

    yield start
    for daemon in started:
        stop(daemon)


@pytest.fixture(scope="module")
def net() -> Iterator[Namespace]:
    with namespace_or_skip() as made:
        yield made


@pytest.fixture
def tap(net: Namespace) -> Iterator[Tap]:
    made = net.run(Tap, "cuse0", HDR, tun.IFF_VNET_HDR, True, True)
    yield made
    net.run(made.close)


def packets_both_ways(kernel: CuseKernel, tap: Tap, *, private: bool = False) -> None:
    """A driver's whole conversation, and a packet to each side."""
    size = NUM * 4096 + (1 << 20)
    with (
        contextlib.closing(GuestMemory(size, private=private)) as memory,
        NetDriver(CuseTransport(kernel), tap.fd, num=NUM, memory=memory) as driver,
    ):
        driver.start()
        driver.send(frame(1))
        assert tap.sent(1) == [describe(frame(1))]
        tap.wire.send(frame(2))
        assert driver.receive(timeout=10.0) == frame(2)
        driver.stop()


@needs_all
@pytest.mark.parametrize("private", [False, True], ids=["mapped", "by system calls"])
def test_a_worker_can_neither_open_a_file_nor_make_a_socket(
    chardev: Callable[..., CuseKernel], tap: Tap, private: bool
) -> None:
    kernel = chardev(before=TELLING)
    packets_both_ways(kernel, tap, private=private)
    said = what_it_said(kernel.log())
    assert len(said) == N_ATTEMPTS
    assert said.pop(SEEN) == "ENOENT"
    assert set(said.values()) == {"EPERM"}, said
    assert kernel.end() == 0


def test_without_the_sandbox_the_same_worker_can(
    chardev: Callable[..., CuseKernel], tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above is able to fail."""
    monkeypatch.setenv("ATTEMPTS", ",".join(HARMLESS))
    kernel = chardev("--sandbox", "none", before=TELLING)
    packets_both_ways(kernel, tap)
    assert what_it_said(kernel.log()) == dict.fromkeys(HARMLESS, "done")
    assert "sandbox: none (--sandbox none)" in kernel.log()
    assert kernel.end() == 0


@needs_all
def test_what_holds_is_what_the_kernel_and_the_protocols_thread_say(
    chardev: Callable[..., CuseKernel], tap: Tap, tmp_path: Path
) -> None:
    control = str(tmp_path / "control")
    kernel = chardev("--control", control)
    packets_both_ways(kernel, tap)
    told = ask(control, "query-sandbox")
    assert told["sandbox"] == "auto"
    assert [stage["stage"] for stage in told["stages"] if stage["holds"]] == STAGES
    assert set(told["attempts"].values()) == {"EPERM"}
    for task in Path(f"/proc/{kernel.process.pid}/task").iterdir():
        status = (task / "status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert set(re.findall(r"Cap\w+:\t(\w+)", status)) == {"0" * 16}
        for space in ("user", "mnt", "net", "ipc", "uts"):
            assert os.readlink(task / "ns" / space) != os.readlink(f"/proc/self/ns/{space}")
    ask(control, "capture-start", file=str(tmp_path / "c"))
    with contextlib.closing(CuseTransport(kernel)):
        assert len(ask(control, "query-devices")) == 1
    ask(control, "capture-stop")
    assert kernel.end() == 0
    assert not os.path.exists(control)


def test_the_node_is_made_dressed_and_taken_away(chardev: Callable[..., CuseKernel]) -> None:
    kernel = chardev("--mode", "640")
    status = os.stat(kernel.node)
    assert status.st_rdev == os.stat(STANDS_IN).st_rdev
    assert oct(status.st_mode & 0o777) == "0o640"
    assert kernel.end() == 0
    assert os.listdir(kernel.node.parent) == []


def test_a_node_that_was_there_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev" / "vhost-net", 0o020600, os.makedev(10, 238))
    kernel = CuseKernel(tmp_path, "--replace-node")
    try:
        assert os.stat(kernel.node).st_rdev == os.stat(STANDS_IN).st_rdev
        assert kernel.end() == 0
        assert os.stat(kernel.node).st_rdev == os.makedev(10, 238)
    finally:
        stop(kernel)


def test_who_has_not_the_device_open_is_not_looked_into(
    chardev: Callable[..., CuseKernel],
) -> None:
    """What a guest that has taken the daemon over might ask for: the memory of another process."""
    kernel = chardev()
    with contextlib.closing(CuseTransport(kernel, has_device=False)) as stranger:
        with pytest.raises(VerbError) as refused:
            stranger.set_owner()
        assert refused.value.errno in (errno.EPERM, errno.ESRCH)
    assert kernel.end() == 0


def test_a_packet_socket_is_a_backend(
    chardev: Callable[..., CuseKernel], net: Namespace, tap: Tap
) -> None:
    kernel = chardev()

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        made.setsockopt(SOL_PACKET, PACKET_VNET_HDR_SZ, HDR)
        made.bind((tap.name, ETH_P_ALL))
        return made

    with (
        net.run(bound) as backend,
        NetDriver(CuseTransport(kernel), backend.fileno(), num=NUM) as driver,
    ):
        driver.start()
        driver.send(frame(3))
        wait_until(lambda: is_readable(tap.fd), "a frame")
        assert os.read(tap.fd, 4096)[HDR:] == frame(3)
        driver.transport.set_backend(0, backend.fileno())  # the same again: nothing happens
    assert kernel.end() == 0


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@TAKES_DESCRIPTORS
def test_what_could_hold_it_up_is_closed_by_the_opener(
    chardev: Callable[..., CuseKernel], tmp_path: Path
) -> None:
    """Kicks that are files, sockets and pipes: refused, and nothing is left of them anywhere."""
    kernel = chardev()
    with contextlib.closing(CuseTransport(kernel)) as device:
        device.set_owner()
        device.set_vring_num(0, NUM)
        reader, writer = os.pipe()
        with (tmp_path / "file").open("w") as file, socket.socket() as inet:
            for fd in (file.fileno(), inet.fileno(), writer):
                with pytest.raises(VerbError) as refused:
                    device.set_vring_kick(0, fd)
                assert refused.value.errno == errno.EINVAL
        os.close(writer)
        wait_until(lambda: is_readable(reader), "the last writer's end")
        assert os.read(reader, 1) == b""
        os.close(reader)
    assert kernel.end() == 0


def test_an_opener_that_dies_is_told_of_and_running_devices_go_on(
    chardev: Callable[..., CuseKernel], tap: Tap
) -> None:
    kernel = chardev()
    with NetDriver(CuseTransport(kernel), tap.fd, num=NUM) as driver:
        driver.start()
        os.kill(kernel.opener(), signal.SIGKILL)
        wait_until(lambda: "the opener has ended (status -9)" in kernel.log(), "a line")
        driver.send(frame(1))
        assert tap.sent(1) == [describe(frame(1))]
        with contextlib.closing(CuseTransport(kernel)) as other, pytest.raises(VerbError):
            other.set_owner()
    assert kernel.end() == 0


@needs_all
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_that_the_daemon_does_is_refused(tmp_path: Path, tap: Tap) -> None:
    trace, control = tmp_path / "trace", str(tmp_path / "control")
    options = ("--control", control, "--metrics", f"unix:{tmp_path}/metrics")
    options += ("--pcap", str(tmp_path / "c"), "--trace", str(tmp_path / "t"))
    kernel = CuseKernel(tmp_path, *options, prefix=("strace", "-f", "-qq", "-o", str(trace)))
    try:
        for private in (False, True):
            packets_both_ways(kernel, tap, private=private)
        with NetDriver(CuseTransport(kernel), tap.fd, num=NUM) as driver:
            driver.start()
            for command in ("query-vrings", "query-stats", "query-memory", "query-workers"):
                ask(control, command)
        [daemon] = children_of(kernel.process.pid)
        os.kill(daemon, signal.SIGTERM)
        assert kernel.process.wait(10) == 0
    finally:
        stop(kernel)
    lines = trace.read_text().splitlines()
    sealed = max(at for at, line in enumerate(lines) if " seccomp(" in line)
    assert [line for line in lines[sealed:] if "= -1 EPERM" in line] == []
    assert any("pidfd_getfd(" in line for line in lines[sealed:])  # the opener's
    assert (tmp_path / "c").read_bytes().count(frame(1)) == 2
    assert "SET_OWNER" in (tmp_path / "t").read_text()
