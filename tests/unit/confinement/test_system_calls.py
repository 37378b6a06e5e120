"""The allow-list: what it allows, with which arguments; and that it is what the code calls."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vhostnet
from bpf_machine import verdict
from vhostnet.cli import sandbox
from vhostnet.confinement import kernel_raw, system_calls
from vhostnet.confinement.syscall_numbers import CALLS, NAMES
from vhostnet.native import libc_raw

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
I386 = 0x40000003
PID = 4711
THREAD = 0x003D0F00
TUNSETOFFLOAD, TIOCSTI, FIONBIO = 0x400454D0, 0x5412, 0x5421


@pytest.fixture(params=CALLS)
def answer(request):
    calls = CALLS[request.param]
    names = (*system_calls.BASE, "accept4", "socketpair", "kcmp", "setsockopt", "statx", "sendto")
    code = system_calls.program(calls, names, system_calls.limits(PID, [TUNSETOFFLOAD]))

    def ask(name: str, *args: int, audit: int = calls.audit) -> int:
        """0, or the errno."""
        said = verdict(code, calls.number.get(name, 5000), args, audit)
        return 0 if said == ALLOW else said - ERRNO

    return ask


@pytest.mark.parametrize("name", ["read", "write", "futex", "accept4", "exit_group"])
def test_what_is_listed_is_allowed(answer, name):
    assert answer(name) == 0


@pytest.mark.parametrize(
    "name",
    [
        *("openat", "execve", "execveat", "ptrace", "process_vm_writev", "socket", "connect"),
        *("mount", "unshare", "setns", "seccomp", "kill", "pidfd_getfd", "capset", "bind"),
    ],
)
def test_what_is_not_is_refused(answer, name):
    assert answer(name) == errno.EPERM


@pytest.mark.parametrize(
    ("name", "args", "code"),
    [
        ("kcmp", (PID, PID, 0, 3, 4), 0),
        ("kcmp", (PID, 1, 0, 3, 4), errno.EPERM),
        ("kcmp", (1, PID, 0, 3, 4), errno.EPERM),
        ("setsockopt", (3, 263, 8), 0),  # PACKET_AUXDATA
        ("setsockopt", (3, 263, 5), errno.EPERM),  # PACKET_RX_RING
        ("setsockopt", (3, 1, 8), errno.EPERM),
        ("statx", (3, 0, 0x5000), 0),
        ("statx", (-100 & 0xFFFFFFFF, 0, 0x4000), errno.EPERM),
        ("mmap", (0, 4096, 3), 0),
        ("mmap", (0, 4096, 7), errno.EPERM),
        ("mmap", (0, 4096, 4), errno.EPERM),
        ("mprotect", (0, 4096, 1), 0),
        ("mprotect", (0, 4096, 5), errno.EPERM),
        ("clone", (THREAD,), 0),
        ("clone", (0x11,), errno.EPERM),  # fork
        ("clone", (THREAD | 0x10000000,), errno.EPERM),  # CLONE_NEWUSER
        ("tgkill", (PID, 1, 6), 0),
        ("tgkill", (1, 1, 6), errno.EPERM),
        ("ioctl", (3, TUNSETOFFLOAD), 0),
        ("ioctl", (3, FIONBIO), 0),
        ("ioctl", (3, TIOCSTI), errno.EPERM),
        ("prctl", (kernel_raw.PR_GET_SECCOMP,), 0),
        ("prctl", (kernel_raw.PR_SET_DUMPABLE, 1), errno.EPERM),
        ("newfstatat", (3, 0, 0, 0x1000), 0),
        ("newfstatat", (3, 0, 0, 0), errno.EPERM),
        ("socketpair", (1, 1), 0),
        ("socketpair", (2, 1), errno.EPERM),
        ("socketpair", (1, 5 | 0x80800), 0),  # SOCK_SEQPACKET
        ("socketpair", (1, 2), errno.EPERM),  # SOCK_DGRAM
        ("socketpair", (1, 2 | 0x80800), errno.EPERM),
        ("socketpair", (1, 3), errno.EPERM),  # SOCK_RAW: datagrams, too
        ("sendto", (3, 4096, 1, 0x4000, 0, 0), 0),
        ("sendto", (3, 4096, 1, 0x4000, 4096, 110), errno.EPERM),
        ("sendto", (3, 4096, 1, 0x4000, 1 << 32, 110), errno.EPERM),
        ("clone3", (), errno.ENOSYS),
    ],
)
def test_some_are_allowed_with_some_arguments_only(answer, name, args, code):
    assert answer(name, *args) == code


@pytest.mark.parametrize(
    ("pid", "signum", "code"),
    [
        (PID, 9, 0),
        (PID, 15, errno.EPERM),
        (0, 9, errno.EPERM),  # our group
        (0xFFFFFFFF, 9, errno.EPERM),  # all that there are
        ((1 << 64) - 1, 9, errno.EPERM),
        ((1 << 64) - PID, 9, errno.EPERM),  # a group
        (1 << 32, 9, errno.EPERM),  # the kernel takes the lower half
    ],
)
def test_one_process_is_killed_at_a_time(pid, signum, code):
    calls = CALLS["x86_64"]
    program = system_calls.program(calls, ["kill"], system_calls.limits(PID, []))
    said = verdict(program, calls.number["kill"], (pid, signum), calls.audit)
    assert said == (ALLOW if code == 0 else ERRNO | code)


def test_system_calls_of_another_kind_are_refused(answer):
    assert answer("read", audit=I386) == errno.EPERM


def test_x32_is_refused():
    calls = CALLS["x86_64"]
    code = system_calls.program(calls, ["read"], {})
    assert verdict(code, calls.number["read"] | 0x40000000, (), calls.audit) == ERRNO | errno.EPERM


def test_every_declared_call_has_a_number():
    sandbox.import_all()
    for what in ("SYSCALLS", "OPENER_SYSCALLS"):
        assert set(system_calls.declared(what)) <= NAMES
    assert set(system_calls.BASE) <= NAMES


#: libc's names of system calls, where they differ; None: it makes none, or the kernel's clock page.
CALL_OF = {
    "pread": "pread64",
    "pwrite": "pwrite64",
    "raise": "tgkill",
    "sigaction": "rt_sigaction",
    "memcpy": None,
    "__errno_location": None,
    "syscall": None,
    # of memory that only the owner of a character device has
    "process_vm_readv": None,
    "process_vm_writev": None,
}


ROOMS = ("native", "datapath")
_BY_NAME, _BY_NUMBER = r'ExternalFunction\(\s*"(\w+)"', r"_c_syscall\(_SYS_(\w+)"


def test_what_compiled_code_calls_by_number_has_that_number():
    calls = CALLS.get(os.uname().machine)
    if calls is None:
        pytest.skip("not in the table")
    ours = {name[5:].lower(): n for name, n in vars(libc_raw).items() if name.startswith("_SYS_")}
    assert ours == {name: calls.number[name] for name in ("read", "write", "writev")}


def test_what_compiled_code_calls_is_declared():
    sandbox.import_all()
    allowed = {*system_calls.BASE, *system_calls.declared("SYSCALLS")}
    root = Path(vhostnet.__file__).parent
    sources = [file.read_text() for room in ROOMS for file in (root / room).glob("*.py")]
    by_name = {name for text in sources for name in re.findall(_BY_NAME, text)}
    by_number = {name.lower() for text in sources for name in re.findall(_BY_NUMBER, text)}
    assert "epoll_wait" in by_name
    assert "writev" in by_number
    called = by_name | by_number
    assert {CALL_OF.get(name, name) for name in called} - {None} <= allowed


def test_nothing_that_opens_or_starts_is_declared():
    """By any door that has landlock."""
    sandbox.import_all()
    allowed = {*system_calls.BASE, *system_calls.declared("SYSCALLS")}
    for name in ("open", "openat", "openat2", "execve", "socket", "connect", "bind", "ptrace"):
        assert name not in allowed


#: What a daemon of each door imports, and some of what it may and may not call.
DOORS = {
    "serve": (
        "import vhostnet.cli.serve; import_all(OF_FILES)",
        {"accept4"},
        {"pidfd_open", "readv", "process_vm_readv", "process_vm_writev", "kill", "waitid", "dup2"},
    ),
    "chardev": (
        "from vhostnet.cli.chardev import _OTHERS; import_all(_OTHERS)",
        {"accept4", "pidfd_open", "readv"},
        {"process_vm_readv", "process_vm_writev", "kill", "waitid", "dup2"},
    ),
    "run": (
        "from vhostnet.cli.run import _OTHERS; import_all(_OTHERS)\n"
        "import vhostnet.frontdoors.seccomp.devices",
        {"accept4", "pidfd_open", "process_vm_readv", "process_vm_writev", "kill", "waitid"},
        {"readv"},
    ),
}
NEVER = {
    *("open", "openat", "openat2", "execve", "execveat", "socket", "connect", "bind", "ptrace"),
    *("pidfd_getfd", "stat", "lstat", "access", "unlink", "rename", "mknod", "clone3", "setns"),
    *("unshare", "mount", "seccomp", "capset"),
}


@pytest.mark.parametrize(("imports", "may", "may_not"), DOORS.values(), ids=DOORS)
def test_each_door_has_a_list_of_its_own(imports, may, may_not):
    program = (
        "from vhostnet.cli.sandbox import OF_FILES, import_all\n"
        f"{imports}\n"
        "from vhostnet.confinement import system_calls\n"
        "print(*system_calls.BASE, *system_calls.declared('SYSCALLS'))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    allowed = set(said.stdout.decode().split())
    assert may <= allowed
    assert not allowed & (may_not | NEVER)


def test_this_machine_has_the_numbers_that_the_table_says():
    calls = CALLS.get(os.uname().machine)
    if calls is None:
        pytest.skip("not in the table")
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if os.uname().machine != "x86_64" or not header.exists():
        pytest.skip("no header to compare with")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    assert {name: numbers.get(name) for name in calls.number} == {
        name: str(number) for name, number in calls.number.items()
    }
