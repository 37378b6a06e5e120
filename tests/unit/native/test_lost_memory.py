"""The SIGBUS handler, in processes of its own: it is a process's only one, and may end it."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys

import pytest

HUGE = 2 << 20

# What every process begins with: a file of two pages, mapped and listed.
PRELUDE = """
import ctypes, mmap, os, sys, threading
from vhostnet.errors import HostError
from vhostnet.native import lost_memory_raw, mmap_raw
PAGE = mmap.PAGESIZE
def made(size, flags=0):
    fd = os.memfd_create("shared", flags)
    os.ftruncate(fd, size)
    return fd
def word(hva):
    return ctypes.c_uint64.from_address(hva)
alarm = lost_memory_raw.install()
fd = made(2 * PAGE)
hva = mmap_raw.map_shared(fd, 2 * PAGE, 0)
word(hva).value = 7
def alarms():
    try:
        return os.eventfd_read(alarm)
    except BlockingIOError:
        return 0
"""


def run(body: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + PRELUDE + body],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def succeeds(body: str) -> None:
    done = run(body)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_whole_mapping_reads_zeros_and_the_alarm_says_so():
    succeeds(
        "assert not mmap_raw.is_lost(hva) and not alarms()\n"
        "os.ftruncate(fd, PAGE)\n"
        "assert word(hva).value == 7 and not mmap_raw.is_lost(hva)\n"
        "assert word(hva + PAGE).value == 0\n"
        "assert mmap_raw.is_lost(hva) and alarms() == 1\n"
        "assert word(hva).value == 0\n"
        "word(hva + 8).value = 9\n"
        "assert word(hva + 8).value == 9 and alarms() == 0\n"
    )


def test_only_the_mapping_that_was_touched_is_lost():
    succeeds(
        "other = mmap_raw.map_shared(fd, 2 * PAGE, 0)\n"
        "os.ftruncate(fd, 0)\n"
        "word(other + PAGE).value\n"
        "assert mmap_raw.is_lost(other) and not mmap_raw.is_lost(hva)\n"
        "word(hva).value\n"
        "assert mmap_raw.is_lost(hva) and alarms() == 2\n"
    )


def test_a_mapping_in_the_place_of_a_lost_one_is_not_lost():
    succeeds(
        "os.ftruncate(fd, 0)\n"
        "word(hva).value\n"
        "mmap_raw.unmap(hva, 2 * PAGE)\n"
        "os.ftruncate(fd, 2 * PAGE)\n"
        "again = mmap_raw.map_shared(fd, 2 * PAGE, 0)\n"
        "assert not mmap_raw.is_lost(again)\n"
        "os.ftruncate(fd, 0)\n"
        "word(again).value\n"
        "assert mmap_raw.is_lost(again)\n"
    )


def test_a_system_call_says_efault_and_nothing_is_lost():
    succeeds(
        "import errno\n"
        "os.ftruncate(fd, 0)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "null = os.open('/dev/null', os.O_WRONLY)\n"
        "a, b = os.pipe()\n"
        "assert libc.write(b, ctypes.c_void_p(hva), ctypes.c_size_t(8)) == -1\n"
        "assert ctypes.get_errno() == errno.EFAULT and not mmap_raw.is_lost(hva)\n"
    )


def test_errno_is_what_it_was():
    succeeds(
        "libc = ctypes.CDLL(None)\n"
        "libc.__errno_location.restype = ctypes.POINTER(ctypes.c_int)\n"
        "lost_memory_raw._table[lost_memory_raw._ALARM] = -1  # so that write() fails\n"
        "os.ftruncate(fd, 0)\n"
        "place = libc.__errno_location()\n"
        "at = ctypes.c_uint64.from_address(hva)\n"
        "place[0] = 4242\n"
        "at.value = place[0]\n"
        "assert place[0] == 4242 and mmap_raw.is_lost(hva)\n"
    )


def test_many_threads_may_fault_at_once_while_others_map():
    succeeds(
        "def work(n):\n"
        "    for _ in range(50):\n"
        "        mine = made(64 * PAGE)\n"
        "        at = mmap_raw.map_shared(mine, 64 * PAGE, 0)\n"
        "        word(at + 8).value = n\n"
        "        os.ftruncate(mine, 0)\n"
        "        if word(at + 63 * PAGE).value or not mmap_raw.is_lost(at):\n"
        "            failed.append(n)\n"
        "        mmap_raw.unmap(at, 64 * PAGE)\n"
        "        os.close(mine)\n"
        "failed = []\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]\n"
        "[t.join() for t in threads]\n"
        "assert not failed and word(hva).value == 7 and not mmap_raw.is_lost(hva)\n"
    )


def test_a_table_that_is_full_refuses_and_maps_nothing():
    succeeds(
        "lost_memory_raw._table[lost_memory_raw._N] = lost_memory_raw.MAX_MAPPINGS\n"
        "n = len(open('/proc/self/maps').readlines())\n"
        "try:\n"
        "    mmap_raw.map_shared(fd, PAGE, 0)\n"
        "except HostError as e:\n"
        "    assert 'mappings' in str(e)\n"
        "else:\n"
        "    raise AssertionError\n"
        "assert len(open('/proc/self/maps').readlines()) == n\n"
    )


@pytest.mark.parametrize(
    "cause",
    [
        # a mapping that is nobody's guest memory: a bug of ours
        "other = mmap.mmap(f := made(PAGE), PAGE)\nos.ftruncate(f, 0)\nother[0]\n",
        # listed no more
        "lost_memory_raw.unlist_mapping(hva)\nos.ftruncate(fd, 0)\nword(hva).value\n",
        # sent by a process
        "os.kill(os.getpid(), 7)\n",
    ],
    ids=["a mapping of somebody else", "a mapping not listed any more", "a signal that was sent"],
)
def test_any_other_sigbus_still_ends_the_process(cause):
    assert run(cause + "print('alive')\n").returncode == -signal.SIGBUS


def test_any_other_sigbus_goes_to_the_handler_of_before():
    done = run(
        "other = mmap.mmap(f := made(PAGE), PAGE)\nos.ftruncate(f, 0)\nother[0]\n",
        before="import faulthandler; faulthandler.enable()\n",
    )
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr


def test_huge_pages_are_replaced_whole():
    try:
        fd = os.memfd_create("probe", os.MFD_HUGETLB)
        os.ftruncate(fd, HUGE)
        mmap.mmap(fd, HUGE).close()
        os.close(fd)
    except OSError as e:
        pytest.skip(f"no huge page is free here: {e.strerror}")
    succeeds(
        "huge = 2 << 20\n"
        "fd = made(huge, os.MFD_HUGETLB)\n"
        "start, end = mmap_raw.whole_pages(os.fstat(fd), 4096, 4096)\n"
        "assert (start, end) == (0, huge)\n"
        "at = mmap_raw.map_shared(fd, end - start, start)\n"
        "word(at).value = 7\n"
        "os.ftruncate(fd, 0)\n"
        "assert word(at + 4096).value == 0 and word(at).value == 0\n"
        "assert mmap_raw.is_lost(at) and alarms() == 1\n"
        "mmap_raw.unmap(at, huge)\n"
    )
