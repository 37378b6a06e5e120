"""A tree with devices that only keep a journal: no rings, nothing that takes long to load.

    python tree_bed.py JOURNAL COMMAND ...

`run_in_tree` starts it; `PROLOGUE` is for programs that run in it.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vhostnet.errors import PeerError, VhostnetError
from vhostnet.frontdoors.seccomp import tree
from vhostnet.uapi import vhost

#: ioctls of the journal's own.
MISS, CRASH, SLOW = 0xAF71, 0xAF72, 0xAF73
MESSAGE = bytes(range(72))
TIMEOUT_S = 60


class Verbs:
    def __init__(self, devices: Devices, name: str) -> None:
        self.owner_pid = 0
        self.on_readable = lambda: None
        self._note = lambda what: devices.note(name, what)

    def stop_batching(self) -> None:
        self._note("stop_batching")


class File:
    """What a `VhostFile` is to its door."""

    def __init__(self, devices: Devices, name: str) -> None:
        self.verbs = Verbs(devices, name)
        self._messages: collections.deque[bytes] = collections.deque()
        self._note = lambda what: devices.note(name, what)

    def ioctl(self, caller: Any, number: int, argument: int) -> int:
        if number == vhost.VHOST_GET_FEATURES:
            caller.write(argument, b"features")
        elif number == vhost.VHOST_SET_OWNER:
            if self.verbs.owner_pid:
                raise PeerError("owned", errno.EBUSY)
            self.verbs.owner_pid = caller.pid
            self._note(f"owner {caller.pid}")
        elif number == vhost.VHOST_SET_VRING_KICK:
            fd = caller.descriptor(int.from_bytes(caller.read(argument + 4, 4), "little"))
            os.write(fd, (1).to_bytes(8, "little"))
            os.close(fd)
        elif number == vhost.VHOST_RESET_OWNER:
            self._messages.clear()
            self.verbs.owner_pid = 0
        elif number == MISS:
            self._messages.append(MESSAGE)
            self.verbs.on_readable()
        elif number == SLOW:
            time.sleep(0.01)
            self._note("slow")
        elif number == CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise PeerError("unknown", errno.ENOTTY)
        return 0

    def read(self, size: int) -> bytes:  # noqa: ARG002
        if not self._messages:
            raise PeerError("nothing", errno.EAGAIN)
        return self._messages.popleft()

    def unread(self, messages: list[bytes]) -> None:
        self._messages.extendleft(reversed(messages))

    def write(self, data: bytes) -> int:
        if len(data) < 40:
            raise PeerError("short", errno.EINVAL)
        self._note(f"write {len(data)} {data[0]}")
        return 72

    def would_sleep_for_ever(self) -> bool:
        return True

    def runs(self) -> bool:
        return False

    def owner_is_gone(self) -> None:
        self._note("owner is gone")
        self.verbs.owner_pid = 0

    def release(self) -> None:
        self._note("release")


class Devices:
    memory_alarm = None

    def __init__(self, journal: str) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        self.note("supervisor", str(os.getpid()))

    def note(self, name: str, what: str) -> None:
        os.write(self._journal, f"{name} {what}\n".encode())

    def open(self, name: str) -> File:
        self.note(name, "open")
        return File(self, name)

    def serving(self, loop: Any, calls: Any) -> Any:  # noqa: ARG002
        return contextlib.nullcontext()

    def before_exec(self, pid: int, has_other_threads: bool) -> None:
        pass

    def process_is_gone(self, pid: int) -> None:
        self.note("process", f"{pid} is gone")


PROLOGUE = f"""
import array, ctypes, errno, fcntl, mmap, os, select, signal, socket, stat, struct, sys, time
NODE = "/dev/vhost-net"
GET_FEATURES, SET_OWNER, RESET_OWNER, SET_KICK = 0x8008AF00, 0xAF01, 0xAF02, 0x4008AF20
MISS, CRASH, SLOW = {MISS}, {CRASH}, {SLOW}
libc = ctypes.CDLL(None, use_errno=True)
def opened(flags=os.O_RDWR, path=NODE, **more):
    return os.open(path, flags, **more)
def features(fd):
    word = bytearray(8)
    fcntl.ioctl(fd, GET_FEATURES, word)
    return bytes(word)
def refusal(call, *arguments):
    try:
        return call(*arguments)
    except OSError as e:
        return errno.errorcode[e.errno]
"""


def command(journal: Path, *words: str) -> list[str]:
    return [sys.executable, __file__, str(journal), *words]


def run_in_tree(journal: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a tree, to its end."""
    return subprocess.run(
        command(journal, sys.executable, "-c", PROLOGUE + program, *arguments),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def wait_until(condition: Any, what: str = "") -> Any:
    """Wait for something to be true; returns it."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return found


def supervisor_of(journal: Path) -> int:
    """Its pid, once it serves."""

    def look() -> int:
        lines = journal.read_text().splitlines() if journal.exists() else []
        return next((int(line.split()[1]) for line in lines if line.startswith("supervisor")), 0)

    return int(wait_until(look, "no supervisor"))


def is_alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


if __name__ == "__main__":
    try:
        sys.exit(tree.run(sys.argv[2:], lambda: Devices(sys.argv[1])))  # type: ignore[arg-type,return-value]
    except VhostnetError as e:
        print(e, file=sys.stderr)
        ours = tree.EXIT_OWN_FAILURE
        sys.exit(e.exit_status if isinstance(e, tree.CommandError) else ours)
