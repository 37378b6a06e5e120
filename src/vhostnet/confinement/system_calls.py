"""The allow-list of system calls, and the filter that it becomes.

A module that makes system calls says so beside the code:

    SYSCALLS = ("accept4", "getsockopt")
    IOCTLS = (TUNSETCARRIER,)

and `declared` is the union over the modules that are loaded; OPENER_SYSCALLS and OPENER_IOCTLS are
those of its acts. What CPython and libc need beyond that is in BASE. Calls in `Limits` may be made
with some arguments only; a filter sees numbers, not what pointers point to.
"""

from __future__ import annotations

import errno
import mmap
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vhostnet.uapi.packet import PACKET_AUXDATA, SOL_PACKET

from . import kernel_raw as kernel
from .bpf import Assembler
from .stage import Missing
from .syscall_numbers import Calls, native

_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000

#: The interpreter and libc: memory, threads, signals, clocks, their own files.
BASE = (
    *("read", "write", "close", "lseek", "fstat", "newfstatat", "fcntl", "dup"),
    *("mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "membarrier"),
    *("futex", "set_robust_list", "rseq", "clone", "exit", "exit_group", "restart_syscall"),
    *("gettid", "getpid", "getuid", "geteuid", "getgid", "getegid", "uname", "sysinfo"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "getcpu"),
    *("sched_yield", "sched_getaffinity", "getrandom", "getrusage", "prctl", "ioctl"),
    "capget",
)
FIONCLEX, FIOCLEX, FIONBIO = 0x5450, 0x5451, 0x5421

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_AT_EMPTY_PATH = 0x1000
_SOCKET_TYPE = ~(socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) & 0xFFFFFFFF
_INT_MAX = 0x7FFFFFFF
_PRCTLS = (
    *(kernel.PR_SET_NAME, kernel.PR_GET_NAME, kernel.PR_GET_DUMPABLE, kernel.PR_GET_SECCOMP),
    *(kernel.PR_CAPBSET_READ, kernel.PR_GET_NO_NEW_PRIVS, kernel.PR_GET_MDWE, kernel.PR_SET_VMA),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """What an argument of a call may be.

    Attributes:
        argument: which, from 0; its lower 32 bits.
        upper: its upper 32 bits instead.
        mask: the bits that *values* are about.
        values: one of these; empty: anything.
        with_bits: at least one of these is set.
        without_bits: none of these is.
    """

    argument: int
    values: tuple[int, ...] = ()
    with_bits: int = 0
    without_bits: int = 0
    upper: bool = False
    mask: int = 0xFFFFFFFF


Limits = Mapping[str, tuple[Limit, ...]]


def declared(what: str) -> tuple[Any, ...]:
    """The union of the constants of this name, over our modules that are loaded."""
    found: set[Any] = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("vhostnet."):
            found.update(getattr(module, what, ()))
    return tuple(sorted(found))


def limits(pid: int, ioctls: Iterable[int]) -> Limits:
    """What the sealed process may ask for, it being *pid*."""
    no_code = (Limit(2, without_bits=mmap.PROT_EXEC),)
    return {
        "mmap": no_code,
        "mprotect": no_code,
        "clone": (Limit(0, with_bits=_CLONE_THREAD), Limit(0, without_bits=_CLONE_NAMESPACES)),
        "prctl": (Limit(0, values=_PRCTLS),),
        "ioctl": (Limit(1, values=(FIONBIO, FIOCLEX, FIONCLEX, *sorted(ioctls))),),
        "tgkill": (Limit(0, values=(pid,)),),
        # one process, by its number: neither 0 nor negative
        "kill": (
            Limit(0, with_bits=_INT_MAX, without_bits=~_INT_MAX & 0xFFFFFFFF),
            Limit(1, values=(signal.SIGKILL,)),
        ),
        "kcmp": (Limit(0, values=(pid,)), Limit(1, values=(pid,))),
        "setsockopt": (Limit(1, values=(SOL_PACKET,)), Limit(2, values=(PACKET_AUXDATA,))),
        "newfstatat": (Limit(3, with_bits=_AT_EMPTY_PATH),),
        "statx": (Limit(2, with_bits=_AT_EMPTY_PATH),),
        # no datagrams: such a socket, or any with an address given, reaches whoever has a path
        "socketpair": (
            Limit(0, values=(socket.AF_UNIX,)),
            Limit(1, values=(socket.SOCK_STREAM, socket.SOCK_SEQPACKET), mask=_SOCKET_TYPE),
        ),
        "sendto": (Limit(4, values=(0,)), Limit(4, values=(0,), upper=True)),
    }


def program(calls: Calls, names: Iterable[str], limited: Limits) -> bytes:
    """The filter: these calls, those of *limited* with such arguments, and EPERM.

    clone3, whose flags are in memory, does not exist (ENOSYS): libc then uses clone.
    """
    a = Assembler()
    a.load(_ARCH)
    a.if_equal(calls.audit, otherwise="deny")
    a.load(_NR)
    a.if_at_least(_X32, "deny")
    known = [name for name in dict.fromkeys(names) if name in calls.number]
    for name in known:
        a.if_equal(calls.number[name], name if name in limited else "allow")
    if "clone3" in calls.number:
        a.if_equal(calls.number["clone3"], "no such call")
    a.jump("deny")
    for name in known:
        if name in limited:
            a.label(name)
            _check(a, limited[name], name)
    a.label("no such call")
    a.finish(_RET_ERRNO | errno.ENOSYS)
    a.label("deny")
    a.finish(_RET_ERRNO | errno.EPERM)
    a.label("allow")
    a.finish(_RET_ALLOW)
    return a.assemble()


def _check(a: Assembler, checks: tuple[Limit, ...], name: str) -> None:
    for number, limit in enumerate(checks):
        a.load(_ARGS + 8 * limit.argument + 4 * limit.upper)  # little-endian, both processors
        if limit.mask != 0xFFFFFFFF:
            a.mask(limit.mask)
        if limit.with_bits:
            a.if_any_bit(limit.with_bits, otherwise="deny")
        if limit.without_bits:
            a.if_any_bit(limit.without_bits, then="deny")
        if limit.values:
            passed = f"{name} {number}"
            for value in limit.values:
                a.if_equal(value, passed)
            a.jump("deny")
            a.label(passed)
    a.jump("allow")


def restrict(names: Iterable[str], limited: Limits) -> str:
    """Put all threads under the filter; Missing."""
    calls = native()
    if calls is None:
        raise Missing("the numbers of this processor's system calls are not known")
    wanted = set(names) & set(calls.number)
    try:
        kernel.set_filter(program(calls, names, limited))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS):
            raise Missing("this kernel has no seccomp filters with TSYNC and LOG") from None
        raise Missing(f"seccomp: {error.strerror}") from None
    return f"{len(wanted)} are allowed"
