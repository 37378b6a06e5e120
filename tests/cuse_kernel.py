"""`vhostnet chardev` with the test as the kernel behind /dev/cuse, and as the caller.

A socket that keeps the borders of messages stands in for /dev/cuse, folders for /dev and
/sys/class/cuse, and the number of /dev/zero for the device's: who has /dev/zero open has the device
open.  What is behind an ioctl's argument is copied as the kernel does it, by addresses.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from serve_process import PATIENCE_S, READY_S
from vhostnet.uapi import fuse
from vhostnet.uapi.wire import Layout
from vhostnet_frontend import IoctlTransport, VerbError

STANDS_IN = "/dev/zero"
#: Of the daemon; reads its /dev/cuse from the environment, as its command line has no word for it.
PROGRAM = """
import functools, os, time
from pathlib import Path
from vhostnet.cli import chardev
from vhostnet.frontdoors.cuse_node import CuseNode

class Node(CuseNode):
    def settle(self):
        deadline = time.monotonic() + 20
        while self.number() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        super().settle()

def open_cuse():
    fd = int(os.environ["CUSE_FD"])
    os.set_inheritable(fd, False)
    os.set_blocking(fd, False)
    return fd

folder = Path(os.environ["CUSE_FOLDER"])
chardev.CuseNode = functools.partial(Node, dev=folder / "dev", sys_cuse=folder / "sys")
chardev.open_cuse = open_cuse
from vhostnet.cli.main import main
raise SystemExit(main())
"""


class CuseKernel:
    """A daemon that has registered its device, and the kernel that it talks to.

    Args:
        folder: for all its files.
        options: of `vhostnet chardev`.
        before: Python that the daemon runs first.
        prefix: words before the command.
    """

    def __init__(
        self, folder: Path, *options: str, before: str = "", prefix: Sequence[str] = ()
    ) -> None:
        self.node = folder / "dev" / "vhost-net"
        self._log = folder / "log"
        sys_folder = folder / "sys"
        for made in (self.node.parent, sys_folder):
            made.mkdir(exist_ok=True)
        self._mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._mine.settimeout(PATIENCE_S)
        self._uniques = itertools.count(2, 2)
        self._lock = threading.Lock()
        ready, told = os.pipe()
        environment = {"CUSE_FD": str(theirs.fileno()), "CUSE_FOLDER": str(folder)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, "-c", before + PROGRAM, "chardev", *options),
                    *("--ready-fd", str(told)),
                ],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno(), told],
                start_new_session=True,
            )
        theirs.close()
        os.close(told)
        try:
            self._mine.settimeout(READY_S)
            init = fuse.CuseInitIn(fuse.FUSE_KERNEL_VERSION, 38, 0, 1)
            self.call(0, fuse.CUSE_INIT, fuse.CUSE_INIT_IN, init)
            self._mine.settimeout(PATIENCE_S)
            number = os.stat(STANDS_IN).st_rdev
            making = sys_folder / "in the making"
            making.mkdir()
            (making / "dev").write_text(f"{os.major(number)}:{os.minor(number)}\n")
            making.rename(sys_folder / "vhost-net")  # whoever finds it finds it whole
            said = os.read(ready, 64) if select.select([ready], [], [], READY_S)[0] else b""
            assert said == b"READY=1\n", self.log()[-2000:]
        except BaseException:
            stop(self)
            print(self.log()[-3000:])
            raise
        finally:
            os.close(ready)

    def log(self) -> str:
        """What the daemon has said."""
        return self._log.read_text(errors="replace")

    def opener(self) -> int:
        """The pid of its opener."""
        return children_of(self.process.pid)[0]

    def end(self) -> int:
        """Take it down; its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Let go of the kernel's end."""
        self._mine.close()

    def call(
        self, tid: int, opcode: int, layout: Layout[object], body: object, data: bytes = b""
    ) -> bytes:
        """One request of thread *tid*, and its answer; OSError."""
        unique = next(self._uniques)
        payload = layout.pack(body) + data
        header = fuse.InHeader(40 + len(payload), opcode, unique, 0, 0, 0, tid, 0, 0)
        with self._lock:
            self._mine.send(fuse.IN_HEADER.pack(header) + payload)
            while True:
                reply = self._mine.recv(1 << 18)
                if not reply:
                    raise OSError(errno.ENOTCONN, self.log()[-2000:])
                head = fuse.OUT_HEADER.unpack(reply)
                if head.unique == unique:
                    break
        if head.error:
            raise OSError(-head.error, os.strerror(-head.error))
        return reply[fuse.OUT_HEADER.size :]


def children_of(pid: int) -> list[int]:
    """The children of a process, all its threads'."""
    tasks = Path(f"/proc/{pid}/task")
    return [
        int(word) for task in tasks.iterdir() for word in (task / "children").read_text().split()
    ]


class CuseTransport(IoctlTransport):
    """An open file of the device, whose calls the test passes on itself.

    Args:
        has_device: what stands in for it is open in this process, as in every caller's.
    """

    def __init__(self, kernel: CuseKernel, *, has_device: bool = True) -> None:
        super().__init__(os.open(STANDS_IN if has_device else "/dev/null", os.O_RDWR))
        self._kernel = kernel
        reply = self._call(fuse.FUSE_OPEN, fuse.OPEN_IN, fuse.OpenIn(os.O_RDWR, 0))
        self._fh = fuse.OPEN_OUT.unpack(reply).fh

    def _call(self, opcode: int, layout: Layout[object], body: object, data: bytes = b"") -> bytes:
        return self._kernel.call(threading.get_native_id(), opcode, layout, body, data)

    def ioctl(self, number: int, argument: bytes | int = 0) -> bytes:
        if isinstance(argument, int):
            self._ioctl(number, argument)
            return b""
        buffer = ctypes.create_string_buffer(argument, len(argument))
        self._ioctl(number, ctypes.addressof(buffer))
        return buffer.raw

    def _ioctl(self, number: int, argument: int) -> None:
        data, room = b"", 0
        from_us: list[tuple[int, int]] = []
        for _ in range(4):
            flags = fuse.FUSE_IOCTL_UNRESTRICTED
            body = fuse.IoctlIn(self._fh, flags, number, argument, len(data), room)
            try:
                reply = self._call(fuse.FUSE_IOCTL, fuse.IOCTL_IN, body, data)
            except OSError as e:
                raise VerbError(e.errno or errno.EIO, f"{number:#x}: {e.strerror}") from e
            head, rest = fuse.IOCTL_OUT.unpack(reply), reply[fuse.IOCTL_OUT.size :]
            if not head.flags & fuse.FUSE_IOCTL_RETRY:
                for (base, size), piece in zip(from_us, [rest], strict=bool(rest)):
                    ctypes.memmove(base, piece, min(size, len(piece)))
                return
            size = fuse.IOCTL_IOVEC.size
            pieces = [
                (iovec.base, iovec.len)
                for iovec in (
                    fuse.IOCTL_IOVEC.unpack(rest, at * size)
                    for at in range(head.in_iovs + head.out_iovs)
                )
            ]
            data = b"".join(ctypes.string_at(*piece) for piece in pieces[: head.in_iovs])
            from_us = pieces[head.in_iovs :]
            room = sum(length for _, length in from_us)
        raise AssertionError("asked for memory again and again")

    def write(self, data: bytes) -> int:
        body = fuse.WriteIn(self._fh, 0, len(data), 0, 0, os.O_RDWR, 0)
        try:
            reply = self._call(fuse.FUSE_WRITE, fuse.WRITE_IN, body, data)
        except OSError as e:
            raise VerbError(e.errno or errno.EIO, f"write: {e.strerror}") from e
        return fuse.WRITE_OUT.unpack(reply).size

    def close(self) -> None:
        if self.fd >= 0:
            body = fuse.ReleaseIn(self._fh, 0, 0, 0)
            self._call(fuse.FUSE_RELEASE, fuse.RELEASE_IN, body)
        super().close()


def stop(daemon: CuseKernel) -> None:
    """End it, whatever state a test that failed has left it in."""
    daemon.process.kill()
    daemon.process.wait()
    daemon.close()
