"""The daemon behind a CUSE device, from CUSE_INIT to its end; the test is the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vhostnet.errors import HostError
from vhostnet.frontdoors import cuse_daemon
from vhostnet.frontdoors.cuse_daemon import serve_cuse
from vhostnet.frontdoors.cuse_files import CuseFiles
from vhostnet.frontdoors.cuse_node import CuseNode, NodeOptions
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.uapi import fuse


class Node(CuseNode):
    """The device comes into being when the reply to CUSE_INIT has been read."""

    kernel: Kernel

    def settle(self) -> None:
        self.kernel.registers()
        super().settle()


class Kernel:
    """The other end of /dev/cuse, and its /sys; it makes no node itself."""

    def __init__(self, folder: Path) -> None:
        self.dev, self.sys = folder / "dev", folder / "sys"
        self.dev.mkdir()
        self.sys.mkdir()
        self.mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.mine.settimeout(60)
        self.theirs = theirs.detach()
        self.described = b""

    def node(self, *, replace: bool = False) -> Node:
        made = Node(NodeOptions("x", replace=replace), dev=self.dev, sys_cuse=self.sys)
        made.kernel = self
        return made

    def asks(self, major: int = fuse.FUSE_KERNEL_VERSION) -> None:
        """CUSE_INIT."""
        header = fuse.InHeader(56, fuse.CUSE_INIT, 2, 0, 0, 0, 0, 0, 0)
        body = fuse.CUSE_INIT_IN.pack(fuse.CuseInitIn(major, 38, 0, 1))
        self.mine.send(fuse.IN_HEADER.pack(header) + body)

    def registers(self) -> None:
        """It has been answered."""
        self.described = self.mine.recv(1 << 16)
        (self.sys / "x").mkdir()
        (self.sys / "x" / "dev").write_text("4095:7\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.mine.close()


@pytest.fixture(autouse=True)
def _handlers_of_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def no_device(_name: str) -> Any:
    raise AssertionError("nobody opens it")


def serve(kernel: Kernel, node: CuseNode, on_ready: Callable[[], None]) -> int:
    loop = Loop()
    try:
        return serve_cuse(loop, node, kernel.theirs, no_device, on_ready)
    finally:
        loop.close()


def test_it_may_be_looked_at_from_before_it_is_ready_until_its_files_are_closed(
    kernel: Kernel,
) -> None:
    may_make_nodes(kernel)
    kernel.asks()
    told: list[str] = []

    @contextlib.contextmanager
    def serving(files: CuseFiles) -> Iterator[None]:
        told.append(f"{len(files.devices())} files")
        yield
        told.append("end")

    def ready() -> None:
        told.append("ready")
        os.kill(os.getpid(), signal.SIGTERM)

    loop = Loop()
    node = kernel.node()
    with contextlib.closing(loop):
        serve_cuse(loop, node, kernel.theirs, no_device, ready, serving=serving)
    assert told == ["0 files", "ready", "end"]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def may_make_nodes(kernel: Kernel) -> None:
    try:
        os.mknod(kernel.dev / "try", 0o020600, os.makedev(4095, 8))
    except PermissionError:
        pytest.skip("needs root to make device nodes")
    (kernel.dev / "try").unlink()


def test_a_signal_ends_it_and_takes_the_node_away(kernel: Kernel) -> None:
    may_make_nodes(kernel)
    before = descriptors() - 1  # one end of the socket is the daemon's, and goes with it
    kernel.asks()

    def ready() -> None:
        assert os.stat(kernel.dev / "x").st_rdev == os.makedev(4095, 7)
        assert b"DEVNAME=x\0" in kernel.described
        os.kill(os.getpid(), signal.SIGTERM)

    assert serve(kernel, kernel.node(), ready) == 0
    assert list(kernel.dev.iterdir()) == []
    assert descriptors() == before


def test_what_was_there_before_is_back_after_the_end(kernel: Kernel) -> None:
    may_make_nodes(kernel)
    os.mknod(kernel.dev / "x", 0o020600, os.makedev(10, 238))
    kernel.asks()

    def ready() -> None:
        assert os.stat(kernel.dev / "x").st_rdev == os.makedev(4095, 7)
        os.kill(os.getpid(), signal.SIGINT)

    assert serve(kernel, kernel.node(replace=True), ready) == 0
    assert os.stat(kernel.dev / "x").st_rdev == os.makedev(10, 238)
    assert [path.name for path in kernel.dev.iterdir()] == ["x"]


def test_a_kernel_that_does_not_ask_is_not_waited_for(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuse_daemon, "INIT_TIMEOUT_S", 0.1)
    before = descriptors() - 1
    with pytest.raises(HostError, match="does not ask"):
        serve(kernel, kernel.node(), lambda: None)
    assert descriptors() == before


def test_another_protocol_is_the_hosts_refusal(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.asks(major=8)
    with pytest.raises(HostError, match="does not ask"):
        serve(kernel, kernel.node(), lambda: None)
    assert "the kernel speaks FUSE 8" in caplog.text


def test_a_connection_that_the_kernel_ends_ends_the_daemon(kernel: Kernel) -> None:
    may_make_nodes(kernel)
    kernel.asks()
    with pytest.raises(HostError, match="has ended x's connection"):
        serve(kernel, kernel.node(), kernel.mine.close)
    assert list(kernel.dev.iterdir()) == []
