"""What we see of another process: its memory, its descriptors, and that it is still itself."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import TAKES_DESCRIPTORS
from vhostnet.errors import PeerError
from vhostnet.frontdoors.foreign_process import CallerIsGone, ForeignThread, thread_group

PAGE = 4096

# Maps four pages (read-write, read-only, no access, nothing) and a string that ends at the
# third, in a second thread whose leader sleeps; says where and who; execs when told to.
CHILD = """
import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(None, ctypes.c_size_t(4 * 4096), 3, 0x22, -1, ctypes.c_long(0))
ctypes.memmove(at, bytes(range(256)) * 32, 8192)
ctypes.memmove(at + 8192 - 6, b"hello\\0", 6)
ctypes.memmove(at + 4096 - 3, b"\\x01\\x02\\x03", 3)
libc.mprotect(ctypes.c_void_p(at + 4096), 4096, 1)
libc.mprotect(ctypes.c_void_p(at + 8192), 4096, 0)
libc.munmap(ctypes.c_void_p(at + 12288), 4096)
event = os.eventfd(7)
def thread():
    print(at, event, threading.get_native_id(), flush=True)
    sys.stdin.readline()
    print(*ctypes.string_at(at, 8), os.eventfd_read(event), flush=True)
    sys.stdin.readline()
    os.execv("/bin/cat", ["cat"])
threading.Thread(target=thread).start()
"""


class Child:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.at, self.event, self.tid = self.listen()

    def listen(self) -> list[int]:
        assert self.process.stdout
        return [int(word) for word in self.process.stdout.readline().split()]

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture(params=["asked", "text"])
def thread(child: Child, request, monkeypatch) -> Iterator[ForeignThread]:
    if request.param == "text":  # as before Linux 6.11
        monkeypatch.setattr(ForeignThread, "_mapping_of", ForeignThread._mapping_in_text)
    with ForeignThread(child.tid) as made:
        yield made


def refusal(call, *arguments) -> int:
    with pytest.raises(PeerError) as refused:
        call(*arguments)
    return refused.value.errno


def test_a_thread_belongs_to_its_process(child: Child) -> None:
    assert child.tid != child.process.pid
    assert thread_group(child.tid) == child.process.pid
    with ForeignThread(child.tid) as thread:
        assert thread.pid == child.process.pid
    assert thread_group(threading.get_native_id()) == os.getpid()


def test_memory_is_read_and_written_where_a_system_call_could(child: Child, thread) -> None:
    assert thread.read(child.at, 4) == b"\0\1\2\3"
    assert thread.read(child.at + PAGE - 1, 2) == b"\x03\0"  # over a border of protections
    assert thread.read(child.at + PAGE, PAGE)[1] == 1
    thread.write(child.at, b"\x09\x08")
    child.say("")
    assert child.listen()[:3] == [9, 8, 2]


def test_memory_that_a_system_call_could_not_reach_is_efault(child: Child, thread) -> None:
    for address, size in (
        (0, 1),
        (child.at + 2 * PAGE - 1, 2),  # into no access
        (child.at + 2 * PAGE, 1),
        (child.at + 3 * PAGE, 1),
        ((1 << 47) - 1, 4),
        ((1 << 64) - 4, 4),
        ((1 << 64) - 4, 8),
        (0xFFFF800000000000, 1),
    ):
        assert refusal(thread.read, address, size) == errno.EFAULT
        assert refusal(thread.write, address, bytes(size)) == errno.EFAULT
    assert refusal(thread.write, child.at + PAGE, b"x") == errno.EFAULT
    assert refusal(thread.write, child.at + PAGE - 1, b"xx") == errno.EFAULT
    assert thread.read(child.at + PAGE - 1, 2) == b"\x03\0", "nothing is written by halves"
    assert thread.read(0, 0) == b""
    thread.write(0, b"")


def test_a_string_ends_at_its_zero_and_is_read_no_further(child: Child, thread) -> None:
    end = child.at + 2 * PAGE
    assert thread.read_string(end - 6, 4096) == b"hello"
    assert thread.read_string(end - 1, 4096) == b""
    assert refusal(thread.read_string, end, 4096) == errno.EFAULT
    assert refusal(thread.read_string, child.at + 1, 8) == errno.ENAMETOOLONG
    assert thread.read_string(child.at + PAGE - 3, 4096) == b"\1\2\3"  # on over the border


@TAKES_DESCRIPTORS
def test_a_descriptor_is_the_same_open_file(child: Child) -> None:
    with ForeignThread(child.tid) as thread:
        ours = thread.descriptor(child.event)
        assert os.eventfd_read(ours) == 7
        os.eventfd_write(ours, 5)
        assert not os.get_inheritable(ours)
        os.close(ours)
        assert refusal(thread.descriptor, 999) == errno.EBADF
        assert refusal(thread.descriptor, -2) == errno.EBADF
    child.say("")
    assert child.listen()[-1] == 5


def test_nothing_is_used_of_a_thread_that_waits_no_more(child: Child) -> None:
    asked = 0

    def still_waits() -> bool:
        nonlocal asked
        asked += 1
        return False

    with ForeignThread(child.tid, still_waits) as thread:
        for call in (
            lambda: thread.pid,
            lambda: thread.read(child.at, 4),
            lambda: thread.write(child.at, b"\xff"),
            lambda: thread.descriptor(child.event),
        ):
            with pytest.raises(CallerIsGone):
                call()
    assert asked == 4
    child.say("")
    assert child.listen()[0] == 0, "written although the thread was gone"


def test_a_thread_that_has_ended_is_gone() -> None:
    child = Child()
    child.process.kill()
    child.process.communicate()
    with ForeignThread(child.tid) as thread:
        for call in (
            lambda: thread.pid,
            lambda: thread.read(child.at, 4),
            lambda: thread.descriptor(0),
        ):
            with pytest.raises(CallerIsGone):
                call()


def test_after_exec_what_was_open_reaches_nothing_of_the_new_program(child: Child) -> None:
    thread = ForeignThread(child.process.pid)
    assert thread.read(child.at, 2) == b"\0\1"
    with open(f"/proc/{child.process.pid}/maps") as maps:
        everywhere = [int(line.split("-")[0], 16) for line in maps]
    child.say("")
    child.listen()
    child.say("")
    while Path(f"/proc/{child.process.pid}/comm").read_text() != "cat\n":
        time.sleep(0.01)
    child.say("cat now")
    assert child.process.stdout
    assert child.process.stdout.readline() == "cat now\n"
    with open(f"/proc/{child.process.pid}/maps") as maps:
        everywhere += [int(line.split("-")[0], 16) for line in maps]
    for address in everywhere:
        assert refusal(thread.read, address, 1) == errno.EFAULT
        assert refusal(thread.write, address, b"x") == errno.EFAULT
    thread.close()


@TAKES_DESCRIPTORS
def test_nothing_stays_open(child: Child) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with ForeignThread(child.tid) as thread:
            thread.read(child.at, 4)
            os.close(thread.descriptor(child.event))
            thread.close()
    assert len(os.listdir("/proc/self/fd")) == before
