"""Programs in a tree that interrupt their calls, race with them, and never stop opening."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from host import RUNS_TREES
from tree_bed import run_in_tree

pytestmark = RUNS_TREES


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def said(journal: Path, program: str) -> list[str]:
    ended = run_in_tree(journal, program)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


# In C's way, without Python's own repetition of interrupted calls: what the kernel answers.
TIMER = """
libc.syscall.restype = ctypes.c_long
caught = 0
def count(*_):
    global caught
    caught += 1
signal.signal(signal.SIGALRM, count)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
path = ctypes.create_string_buffer(NODE.encode())
def call(*words):
    result = libc.syscall(*(ctypes.c_long(w) for w in words))
    return -ctypes.get_errno() if result < 0 else result
"""


def test_no_call_takes_effect_twice_however_often_it_is_interrupted(journal) -> None:
    lines = said(
        journal,
        TIMER
        + """
kick = os.eventfd(0)
n = kicks = interrupted = 0
argument = ctypes.create_string_buffer(struct.pack("=Ii", 0, kick))
for _ in range(400):
    fd = call(257, -100, ctypes.addressof(path), os.O_RDWR, 0)
    if fd == -errno.EINTR:
        interrupted += 1
        continue
    assert fd > 0, fd
    n += 1
    for number, at in ((SET_OWNER, 0), (SLOW, 0), (SET_KICK, ctypes.addressof(argument))):
        while (said := call(16, fd, number, at)) == -errno.EINTR:
            interrupted += 1
        assert said == 0, (number, said)  # EBUSY: the first one had its effect
        kicks += number == SET_KICK
    assert call(3, fd) == 0
signal.setitimer(signal.ITIMER_REAL, 0)
print(n, kicks, os.eventfd_read(kick), caught > 300, interrupted)
""",
    )
    n, kicks, kicked, caught, interrupted = lines[0].split()
    assert n == kicks == kicked, "an eventfd that is kicked once each time counts them"
    assert caught == "True", "the timer has rung all the time"
    notes = journal.read_text().splitlines()
    opens = [line for line in notes if line.endswith(" open")]
    assert len(opens) == len([line for line in notes if line.endswith(" release")])
    assert len([line for line in notes if line.endswith(" slow")]) == int(n)
    assert len(opens) == int(n), "no file was opened for a call that did not learn of it"
    del interrupted  # a call that was not received yet may be


def test_ten_thousand_open_and_close_leave_nothing(journal) -> None:
    lines = said(
        journal,
        """
def held(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))
supervisor = os.getppid()
os.close(opened())
before = held("self"), held(supervisor)
for k in range(10000):
    fd = opened()
    if k % 100 == 0:
        features(fd)
    os.close(fd)
features(opened())  # the supervisor has seen the closes before it
print(before[0], before[1], held("self"), held(supervisor))
""",
    )
    mine, its, mine_now, its_now = map(int, lines[0].split())
    assert mine_now == mine + 1
    assert its_now <= its + 3
    notes = journal.read_text().splitlines()
    assert sum(line.endswith(" open") for line in notes) == 10002
    assert sum(line.endswith(" release") for line in notes) == 10002


def test_files_are_opened_copied_passed_and_closed_by_many_at_once(journal) -> None:
    lines = said(
        journal,
        """
import random, threading
bad = []
def work(seed):
    r = random.Random(seed)
    a, b = socket.socketpair()
    held = []
    try:
        for _ in range(150):
            what = r.randrange(6)
            if what == 0 or not held:
                held.append(opened())
            elif what == 1:
                held.append(os.dup(r.choice(held)))
            elif what == 2:
                socket.send_fds(a, [b"x"], [r.choice(held)])
                held.append(socket.recv_fds(b, 1, 1)[1][0])
            elif what == 3:
                if features(r.choice(held)) != b"features": bad.append("features")
            elif what == 4:
                os.close(held.pop(r.randrange(len(held))))
            else:
                open("/dev/null").close()
    except BaseException as e:
        bad.append(repr(e))
    for fd in held:
        os.close(fd)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for t in threads: t.start()
children = []
for seed in range(3):
    pid = os.fork()
    if pid == 0:
        work(100 + seed)
        os._exit(len(bad))
    children.append(pid)
for t in threads: t.join()
print(bad, [os.waitpid(pid, 0)[1] for pid in children])
""",
    )
    assert lines == ["[] [0, 0, 0]"]
    notes = journal.read_text().splitlines()
    opens = sum(line.endswith(" open") for line in notes)
    assert opens == sum(line.endswith(" release") for line in notes) > 20


def test_a_thread_that_is_killed_in_its_call_takes_nobody_along(journal) -> None:
    lines = said(
        journal,
        """
fd = opened()
for _ in range(100):
    child = os.fork()
    if child == 0:
        while True:
            fcntl.ioctl(fd, SLOW)
    time.sleep(0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(features(fd).decode(), features(opened()).decode())
""",
    )
    assert lines == ["features features"]


def test_pointers_that_lead_nowhere_are_efault(journal) -> None:
    lines = said(
        journal,
        """
fd = opened()
libc.syscall.restype = ctypes.c_long
page = mmap.mmap(-1, 8192)
page.write(b"x" * 8192)
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
libc.mprotect(ctypes.c_void_p(at + 4096), 4096, 0)
libc.mprotect.argtypes = None
answers = set()
node = ctypes.create_string_buffer(NODE.encode())
for address in (0, 1, 4095, at + 4096, at + 4093, 2**47, 2**63, 2**64 - 1, 2**64 - 8):
    for nr, args in (
        (16, (fd, GET_FEATURES, address)), (16, (fd, SET_KICK, address)),
        (257, (-100, address, 2, 0)), (4, (address, at)), (262, (-100, address, at, 0)),
        (5, (fd, address)), (1, (fd, address, 72)), (20, (fd, address, 1)), (21, (address, 0)),
        (437, (-100, ctypes.addressof(node), address, 24)),
    ):
        result = libc.syscall(*(ctypes.c_long(w if w < 2**63 else w - 2**64) for w in (nr, *args)))
        answers.add(errno.errorcode[ctypes.get_errno()] if result < 0 else (nr, address))
print(sorted(map(str, answers)))
""",
    )
    assert lines == ["['EFAULT']"]


def test_as_many_files_as_there_are_descriptors(journal) -> None:
    lines = said(
        journal,
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
held = []
while True:
    fd = refusal(opened)
    if isinstance(fd, str):
        break
    held.append(fd)
print(fd, len(held) > 280, {features(fd) for fd in held})
for f in held: os.close(f)
print(features(opened()).decode())
""",
    )
    assert lines == ["EMFILE True {b'features'}", "features"]
    assert os.path.exists(journal)


def test_an_open_gives_its_descriptor_while_orphans_end(journal) -> None:
    """The supervisor is sent SIGCHLD in the midst of giving it."""
    lines = said(
        journal,
        """
def orphans():
    while True:
        middle = os.fork()
        if middle == 0:
            if os.fork():
                os._exit(0)
            os._exit(0)
        os.waitpid(middle, 0)
other = os.fork()
if other == 0:
    orphans()
answers = set()
for _ in range(1500):
    fd = refusal(opened)
    answers.add((fd, features(fd)) if isinstance(fd, int) and fd > 2 else fd)
    os.close(fd)
os.kill(other, signal.SIGKILL)
print(answers)
""",
    )
    assert lines == ["{(992, b'features')}"]
