"""The door behind /dev/cuse, with the test as the kernel and child processes as callers.

A socket that keeps the borders of messages stands in for /dev/cuse: one read, one request.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from host import TAKES_DESCRIPTORS
from vhostnet.device.kernel_verbs import KernelVerbs
from vhostnet.device.memory import MemoryTable
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import HostError
from vhostnet.frontdoors import cuse_files
from vhostnet.frontdoors.cuse_channel import CuseChannel, open_cuse
from vhostnet.frontdoors.cuse_files import CuseFiles
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.peer_log import PeerLog
from vhostnet.frontdoors.vhost_ioctl import VhostFile
from vhostnet.protocol.cuse_session import CuseSession
from vhostnet.uapi import fuse, vhost
from vhostnet.uapi.virtio import VIRTIO_F_ACCESS_PLATFORM
from vhostnet.uapi.wire import Layout


class NoMemory:
    """An owner that shares nothing."""

    released = 0
    remote = None

    def __init__(self, _pid: int) -> None:
        pass

    def space(self) -> MemoryTable:
        return MemoryTable()

    def maps(self, _uva: int, _size: int) -> bool:
        return True

    def regions(self, _wanted: object) -> list:
        return []

    def log(self, _address: int) -> tuple[int, int]:
        return 0, 0

    def release(self) -> None:
        NoMemory.released += 1


class Door:
    """Session, channel and files on a loop; the other end is ours."""

    def __init__(self) -> None:
        self.kernel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.kernel.settimeout(60.0)
        self.loop = Loop()
        self.devices: list[VhostFile] = []
        log = PeerLog(cuse_files.log, "test", self.loop.call_later)
        self.files = CuseFiles(self.make_device, self.loop, log)
        self.channel = CuseChannel(theirs.detach())
        self.session = CuseSession("test", self.files.open, self.channel.send)
        self.files.wake = self.session.wake
        self.channel.connect(self.session.receive)
        self.is_gone = False
        self.channel.watch(self.loop, self._gone)
        self.unique = 0
        self.call(0, fuse.CUSE_INIT, fuse.CUSE_INIT_IN, fuse.CuseInitIn(7, 38, 0, 1))

    def _gone(self) -> None:
        self.is_gone = True

    def make_device(self, name: str) -> VhostFile:
        self.devices.append(VhostFile(KernelVerbs(VhostNet(name), NoMemory)))
        return self.devices[-1]

    def close(self) -> None:
        self.session.close()
        self.channel.close()
        self.files.close()
        self.kernel.close()
        self.loop.close()

    def send(self, tid: int, opcode: int, layout: Layout, body: object, data: bytes = b"") -> int:
        self.unique += 2
        payload = layout.pack(body) + data
        header = fuse.InHeader(40 + len(payload), opcode, self.unique, 0, 0, 0, tid, 0, 0)
        self.kernel.send(fuse.IN_HEADER.pack(header) + payload)
        return self.unique

    def turn(self) -> None:
        self.loop.run_once(60.0)

    def answer(self) -> tuple[int, int, bytes]:
        reply = self.kernel.recv(1 << 17)
        head = fuse.OUT_HEADER.unpack(reply)
        return head.error, head.unique, reply[16:]

    def call(
        self, tid: int, opcode: int, layout: Layout, body: object, data: bytes = b""
    ) -> tuple[int, bytes]:
        unique = self.send(tid, opcode, layout, body, data)
        self.turn()
        error, answered, payload = self.answer()
        assert answered == unique
        return error, payload

    def open(self, tid: int = 1) -> int:
        error, payload = self.call(tid, fuse.FUSE_OPEN, fuse.OPEN_IN, fuse.OpenIn(2, 0))
        if error:
            raise OSError(-error, os.strerror(-error))
        return fuse.OPEN_OUT.unpack(payload).fh

    def release(self, fh: int) -> None:
        body = fuse.ReleaseIn(fh, 0, 0, 0)
        assert self.call(1, fuse.FUSE_RELEASE, fuse.RELEASE_IN, body)[0] == 0

    def ioctl(self, tid: int, fh: int, number: int, data: bytes = b"", room: int = 0) -> int:
        body = fuse.IoctlIn(fh, 2, number, 0x1000, len(data), room)
        return -self.call(tid, fuse.FUSE_IOCTL, fuse.IOCTL_IN, body, data)[0]


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


class Owner:
    """A process that waits, with an eventfd as descriptor 50."""

    PROGRAM = (
        "import os, sys\n"
        "os.dup2(os.eventfd(0), 50)\n"
        "print('ready', flush=True)\n"
        "if sys.stdin.readline() == 'exec\\n':\n"
        "    os.execvp('sh', ['sh', '-c', 'echo again; read x'])\n"
    )

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self.process.pid
        self.wait_for(b"ready\n")

    def wait_for(self, line: bytes) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line

    def run_another_program(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"exec\n")
        self.process.stdin.flush()
        self.wait_for(b"again\n")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    yield made
    made.end()


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


KICK = vhost.VRING_FILE.pack(vhost.VringFile(0, 50))
CLOSED = vhost.VRING_FILE.pack(vhost.VringFile(0, 51))


@TAKES_DESCRIPTORS
def test_an_owners_descriptors_are_its_own(door: Door, owner: Owner) -> None:
    fh = door.open(owner.pid)
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_OWNER) == 0
    before = n_descriptors()
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_VRING_CALL, KICK) == 0
    assert n_descriptors() == before + 1
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_VRING_CALL, CLOSED) == errno.EBADF
    for _ in range(50):
        assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_VRING_CALL, KICK) == 0
    assert n_descriptors() == before + 1
    assert door.ioctl(owner.pid, fh, vhost.VHOST_RESET_OWNER) == 0
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_VRING_CALL, KICK) == errno.EPERM


def test_any_thread_of_the_owner_may_and_nobody_else(door: Door, owner: Owner) -> None:
    fh = door.open(owner.pid)
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_OWNER) == 0
    assert door.ioctl(os.getpid(), fh, vhost.VHOST_SET_VRING_CALL, KICK) == errno.EPERM
    assert door.ioctl(os.getpid(), fh, vhost.VHOST_SET_OWNER) == errno.EBUSY


def test_a_thread_id_is_not_a_process_id(door: Door) -> None:
    """This test's process is the owner, by a thread that is not its first."""
    fh, results = door.open(), []
    tids: list[int] = []
    go_on = threading.Event()

    def wait() -> None:
        tids.append(threading.get_native_id())
        go_on.wait(30)

    thread = threading.Thread(target=wait)
    thread.start()
    while not tids:
        os.sched_yield()
    assert tids[0] != os.getpid()
    results.append(door.ioctl(tids[0], fh, vhost.VHOST_SET_OWNER))
    go_on.set()
    thread.join()
    results.append(door.ioctl(os.getpid(), fh, vhost.VHOST_RESET_OWNER))
    assert results == [0, 0]


def test_a_process_that_cannot_be_seen_owns_nothing(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    fh = door.open(0)
    assert door.ioctl(0, fh, vhost.VHOST_SET_OWNER) == errno.EPERM
    assert "pid namespace" in caplog.text
    assert door.ioctl(0, fh, vhost.VHOST_SET_FEATURES, bytes(8)) == 0


@TAKES_DESCRIPTORS
def test_the_end_of_the_owner_ends_its_device_and_not_the_file(door: Door, owner: Owner) -> None:
    before = n_descriptors()
    fh = door.open(owner.pid)
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_OWNER) == 0
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_VRING_CALL, KICK) == 0
    owner.end()
    door.turn()
    assert door.devices[0].verbs.owner_pid == 0
    assert n_descriptors() <= before
    assert door.ioctl(os.getpid(), fh, vhost.VHOST_SET_VRING_CALL, KICK) == errno.EPERM
    assert door.ioctl(os.getpid(), fh, vhost.VHOST_SET_OWNER) == 0


def test_an_owner_that_runs_another_program_is_no_owner_any_more(door: Door, owner: Owner) -> None:
    fh = door.open(owner.pid)
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_OWNER) == 0
    owner.run_another_program()
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_VRING_CALL, KICK) == errno.EPERM
    assert door.devices[0].verbs.owner_pid == 0


@TAKES_DESCRIPTORS
def test_files_that_are_closed_leave_nothing_behind(door: Door, owner: Owner) -> None:
    before, released = n_descriptors(), NoMemory.released
    for _ in range(100):
        fh = door.open(owner.pid)
        assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_OWNER) == 0
        assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_VRING_KICK, KICK) == 0
        door.release(fh)
    assert n_descriptors() == before
    assert NoMemory.released == released + 100
    assert door.session.n_open == 0


def test_there_is_an_end_to_open_files(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuse_files, "MAX_FILES", 3)
    opened = [door.open() for _ in range(3)]
    with pytest.raises(OSError, match="Too many open files in system"):
        door.open()
    door.release(opened[1])
    door.open()


def test_a_miss_wakes_the_reader_from_another_thread(door: Door, owner: Owner) -> None:
    fh = door.open(owner.pid)
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_OWNER) == 0
    features = (1 << VIRTIO_F_ACCESS_PLATFORM).to_bytes(8, "little")
    assert door.ioctl(owner.pid, fh, vhost.VHOST_SET_FEATURES, features) == 0
    body = fuse.ReadIn(fh, 0, 72, 0, 0, 0)
    unique = door.send(owner.pid, fuse.FUSE_READ, fuse.READ_IN, body)
    door.turn()
    door.kernel.setblocking(False)
    with pytest.raises(BlockingIOError):
        door.answer()
    door.kernel.settimeout(60.0)
    net = door.devices[0].verbs.net
    threading.Thread(target=lambda: net.on_iotlb_miss(0x1000, 1)).start()
    door.turn()
    error, answered, payload = door.answer()
    assert (error, answered) == (0, unique)
    assert vhost.MSG.unpack(payload).iotlb.iova == 0x1000


def test_a_bug_costs_one_call_and_not_the_device(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    fh = door.open()

    def fails(_caller: object, _number: int, _argument: int) -> int:
        raise ZeroDivisionError

    door.devices[0].ioctl = fails  # type: ignore[method-assign]
    assert door.ioctl(1, fh, vhost.VHOST_GET_FEATURES) == errno.EIO
    assert "bug in this program" in caplog.text
    other = door.open()
    assert door.ioctl(1, other, vhost.VHOST_SET_FEATURES, bytes(8)) == 0


def test_a_host_that_has_no_descriptor_left_says_so(door: Door) -> None:
    fh = door.open()

    def fails(_caller: object, _number: int, _argument: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    door.devices[0].ioctl = fails  # type: ignore[method-assign]
    assert door.ioctl(1, fh, vhost.VHOST_SET_OWNER) == errno.EMFILE


def test_bytes_that_are_no_request_are_answered_if_they_can_be(door: Door) -> None:
    door.kernel.send(b"x" * 17)
    header = fuse.InHeader(48, fuse.FUSE_READ, 99, 0, 0, 0, 1, 0, 0)
    door.kernel.send(fuse.IN_HEADER.pack(header) + bytes(8))
    door.turn()
    assert door.answer() == (-errno.EIO, 99, b"")
    assert door.open() > 0


def test_the_kernel_may_end_it(door: Door) -> None:
    door.open()
    door.kernel.close()
    door.turn()
    assert door.is_gone


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "modprobe cuse"),
        (lambda path: path.touch(0o000), "may not be opened"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(
    tmp_path, make: Callable[..., None], said: str
) -> None:
    make(tmp_path / "cuse")
    if said == "may not be opened" and os.geteuid() == 0:
        pytest.skip("root may open everything")
    with pytest.raises(HostError, match=said):
        open_cuse(str(tmp_path / "cuse"))
