"""Sealing this process, and asking the kernel whether it is sealed.

See the package's theory of operation for the order, and why.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from vhostnet.errors import HostError

from . import capabilities, kernel_raw, landlock, namespaces, system_calls
from .stage import Missing, Report, Stage

SYSCALLS = ("pread64",)  # of /proc/self/status

#: Values of --sandbox.
AUTO, REQUIRED, NONE = "auto", "required", "none"
MODES = (AUTO, REQUIRED, NONE)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a door cannot give up.

    Attributes:
        capabilities: that it keeps, a mask.
        never: stages that it cannot have at all, and why.
    """

    capabilities: int = 0
    never: Mapping[str, str] = field(default_factory=dict)


_report = Report()
_status_fd = -1


def seal(mode: str, before: Iterable[Stage] = (), bounds: Bounds | None = None) -> Report:
    """Go through the stages; what cannot be had is in the report, or HostError if it is required.

    To be called while the process has one thread; not undone by anything.

    Args:
        mode: AUTO or REQUIRED.
        before: stages that are done already.
        bounds: of the door; None: it gives up everything.
    """
    global _report, _status_fd
    bounds = bounds or Bounds()
    kept = bounds.capabilities
    with contextlib.suppress(OSError):  # then it cannot be asked later
        _status_fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    limited = system_calls.limits(os.getpid(), system_calls.declared("IOCTLS"))
    names = (*system_calls.BASE, *system_calls.declared("SYSCALLS"))
    report = Report(mode, "", list(before))
    for name, act in (
        ("no new privileges", _no_new_privileges),
        ("namespaces", namespaces.leave_host),
        ("capabilities", lambda: capabilities.keep_only(kept)),
        ("landlock", landlock.refuse_all),
        ("memory", no_new_code),
        ("system calls", lambda: system_calls.restrict(names, limited)),
    ):
        if name in bounds.never:
            report.stages.append(Stage(name, False, bounds.never[name], wanted=False))
        else:
            report.stages.append(tried(name, act))
    _report = report
    if mode == REQUIRED and report.lacking:
        first = report.lacking[0]
        raise HostError(f"--sandbox required: {first.name}: {first.detail}", errno.EPERM)
    return report


def not_sealed(why: str) -> None:
    """Say why this process is not sealed, for those who ask."""
    global _report
    _report = Report(NONE, why)


def is_sealed() -> bool:
    """Whether `seal` was called: nothing can be opened or loaded any more."""
    return bool(_report.stages)


def report() -> Report:
    """What became of the stages."""
    return _report


def tried(name: str, act: Callable[[], str]) -> Stage:
    """A stage, and what becomes of it."""
    try:
        return Stage(name, True, act())
    except Missing as missing:
        return Stage(name, False, str(missing))


def _no_new_privileges() -> str:
    kernel_raw.prctl(kernel_raw.PR_SET_NO_NEW_PRIVS, 1)
    return "exec gains none"


def no_new_code() -> str:
    """Let no memory become executable that was not; Missing."""
    try:
        kernel_raw.prctl(kernel_raw.PR_SET_MDWE, kernel_raw.PR_MDWE_REFUSE_EXEC_GAIN)
    except OSError:
        # the filter refuses PROT_EXEC to mmap and mprotect as well
        raise Missing("this kernel has no PR_SET_MDWE (Linux 6.3 has)") from None
    return "none becomes executable"


def attempts() -> dict[str, str]:
    """What happens when the calling thread tries; "possible", or the errno's name."""
    return {
        "open a file": _outcome(lambda: os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))),
        "make a socket": _outcome(lambda: socket.socket(socket.AF_UNIX).close()),
        "executable memory": _outcome(kernel_raw.try_executable_page),
        "start a program": _outcome(lambda: os.execv("/", ["/"]), looked=errno.EACCES),
    }


def kernel_facts() -> dict[str, str]:
    """What /proc/self/status says: no-new-privs, seccomp, capabilities."""
    wanted = {
        "NoNewPrivs": "no-new-privs",
        "Seccomp": "seccomp",
        "CapEff": "cap-effective",
        "CapPrm": "cap-permitted",
        "CapBnd": "cap-bounding",
        "CapAmb": "cap-ambient",
    }
    found = {}
    fd = _status_fd
    with contextlib.suppress(OSError):
        if fd < 0:
            fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        for line in os.pread(fd, 1 << 16, 0).decode().splitlines():
            name, _, value = line.partition(":")
            if name in wanted:
                found[wanted[name]] = value.strip()
    if fd >= 0 and fd != _status_fd:
        os.close(fd)
    return found


def _outcome(attempt: Callable[[], object], looked: int = 0) -> str:
    """What came of it; *looked* is the errno of a kernel that does not refuse, but cannot."""
    try:
        attempt()
    except OSError as error:
        if error.errno != looked:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "possible"
