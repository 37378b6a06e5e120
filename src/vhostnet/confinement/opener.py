"""The opener: the process that keeps the rights, and the sealed process's handle on it.

READY     waits for a request
    Operations:  `acts.perform` checks and does it, and answers
    Caveats:     one request at a time; what may wait for somebody else has a thread of its own
GONE      the sealed process has ended, in whatever way: the channel has

It is forked while the daemon has one thread and has not loaded the compiler, does not react to the
signals that end or reload a daemon (a service manager sends them to all of its processes, and
sockets are still to be removed), and is confined itself: no exec, no fork, no new code, unix
sockets only, and of the daemon's capabilities those that its policy needs.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from vhostnet.errors import VhostnetError

from . import acts, capabilities, kernel_raw, system_calls
from .policy import Policy
from .seal import no_new_code
from .stage import Missing

log = logging.getLogger("vhostnet")

#: Beyond BASE and what the acts declare: name services (groups) may read files and ask a daemon.
_CALLS = (
    *("openat", "open", "readlink", "readlinkat", "stat", "lstat", "statx", "access", "faccessat"),
    *("faccessat2", "getdents64", "poll", "ppoll", "socket", "connect", "sendto", "recvfrom"),
    *("sendmsg", "recvmsg", "getsockopt", "setsockopt", "getpeername", "getsockname", "pread64"),
    "wait4",
)
# What a sealed process may ask for in part: a lookup through libc loads libraries and asks daemons.
_WHOLE = ("mmap", "mprotect", "newfstatat", "statx", "setsockopt", "sendto")
_END_MS = 1000
#: Requests that wait for somebody else at once; nobody honest has many.
MAX_ASIDE = 64
#: Beyond any limit; the kernel closes a range in one call.
_MAX_FD = 2**31 - 1


@dataclass(slots=True)
class Opener:
    """The process.

    Attributes:
        pid: of a child of ours; 0: it is our parent.
        pidfd: readable when it has ended.
    """

    pid: int
    pidfd: int
    asked: acts.Asked

    def status(self) -> str:
        """How it has ended, for log lines."""
        if not self.pid:
            return "unknown"
        _, status = os.waitpid(self.pid, 0)
        return str(os.waitstatus_to_exitcode(status))

    def close(self) -> None:
        """Let it end, and wait for that; a parent waits for us."""
        acts.ask_from_now_on(None)
        self.asked.close()
        ended = select.poll()  # not select(): descriptors may be above 1023
        ended.register(self.pidfd, select.POLLIN)
        with contextlib.suppress(ChildProcessError):
            if self.pid and ended.poll(_END_MS):
                os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def start(policy: Policy, reread: Callable[[], Policy]) -> Opener:
    """Fork it.

    Args:
        policy: what it may do.
        reread: what that is when the file of --config has changed; VhostnetError if it is wrong.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _be_opener(theirs, policy, reread, lambda: 0)
    theirs.close()
    return Opener(pid, os.pidfd_open(pid), acts.Asked(ours))


def start_above(policy: Callable[[int], Policy]) -> Opener:
    """Become it, in a session of its own, and go on in a child: it is among the ancestors of all
    that the child will start, and ends as the child does.

    Args:
        policy: what it may do for the child, by its pid.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid != 0:
        ours.close()
        with contextlib.suppress(OSError):
            os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)  # who reads what a command prints waits until nobody has it
        made = policy(pid)
        _be_opener(theirs, made, lambda: made, lambda: _end_of(pid))
    theirs.close()
    return Opener(0, os.pidfd_open(os.getppid()), acts.Asked(ours))


def _end_of(pid: int) -> int:
    """The exit status of a child, as a shell says it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _be_opener(
    channel: socket.socket,
    policy: Policy,
    reread: Callable[[], Policy],
    end: Callable[[], int],
) -> NoReturn:
    """Serve, and exit with the status that *end* says."""
    status = 1
    try:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(signum, signal.SIG_IGN)
        _close_all_but(channel.fileno())
        _confine(policy)
        serve(channel, policy, reread)
        status = end()
    except BaseException:
        log.exception("bug in this program: the opener")
    finally:
        os._exit(status)


def serve(channel: socket.socket, policy: Policy, reread: Callable[[], Policy]) -> None:
    """Answer until the channel ends."""
    aside = threading.BoundedSemaphore(MAX_ASIDE)
    while True:
        try:
            packet = channel.recv(acts.NUMBER_BYTES + acts.MAX_MESSAGE)
        except ConnectionResetError:  # it has ended, and an answer was not read
            return
        if not packet:
            return
        number, message = packet[: acts.NUMBER_BYTES], packet[acts.NUMBER_BYTES :]
        if policy.processes is not None and acts.may_wait(message):
            if _began_aside(aside, (channel, policy, number, message)):
                continue
            reply, fds = acts.too_many(), list[int]()
        else:
            reply, fds = acts.perform(policy, message)
        if policy.is_outdated:
            policy = _with_new_file(policy, reread)
        if not _answered(channel, number + reply, fds):
            return


_Request = tuple[socket.socket, Policy, bytes, bytes]


def _began_aside(aside: threading.BoundedSemaphore, request: _Request) -> bool:
    if not aside.acquire(blocking=False):
        return False
    try:
        args = (aside, *request)
        threading.Thread(target=_perform_aside, args=args, name="aside", daemon=True).start()
    except RuntimeError:  # no more threads
        aside.release()
        return False
    return True


def _perform_aside(
    aside: threading.BoundedSemaphore,
    channel: socket.socket,
    policy: Policy,
    number: bytes,
    message: bytes,
) -> None:
    try:
        reply, fds = acts.perform(policy, message)
        _answered(channel, number + reply, fds)
    finally:
        aside.release()


def _answered(channel: socket.socket, reply: bytes, fds: list[int]) -> bool:
    """Whether somebody is there to hear it."""
    try:
        acts.answer(channel, reply, fds)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
        return False
    return True


def _with_new_file(policy: Policy, reread: Callable[[], Policy]) -> Policy:
    policy.is_outdated = False
    try:
        new = reread()
    except VhostnetError:
        return policy  # the sealed process says what is wrong with it
    # what is there now may still have to be removed
    new.sockets |= policy.sockets
    new.made.update(policy.made)
    new.sealed = policy.sealed
    return new


def _close_all_but(channel: int) -> None:
    os.closerange(3, channel)
    os.closerange(channel + 1, _MAX_FD)


def _confine(policy: Policy) -> None:
    """As far as it can be; what this kernel has not is not told twice."""
    kernel_raw.set_thread_name("vhost-opener")
    kernel_raw.prctl(kernel_raw.PR_SET_NO_NEW_PRIVS, 1)
    kernel_raw.prctl(kernel_raw.PR_SET_DUMPABLE, 0)
    limited = dict(system_calls.limits(os.getpid(), system_calls.declared("OPENER_IOCTLS")))
    for name in _WHOLE:
        del limited[name]
    limited["mprotect"] = (system_calls.Limit(2, without_bits=mmap.PROT_EXEC),)
    limited["socket"] = (system_calls.Limit(0, values=(socket.AF_UNIX,)),)
    names = {*system_calls.BASE, *_CALLS, *system_calls.declared("OPENER_SYSCALLS")}
    if policy.processes is None:  # else threads close what may take long to be closed
        names -= {"clone"}
    with contextlib.suppress(Missing):
        capabilities.keep_only(policy.capabilities)
    with contextlib.suppress(Missing):
        no_new_code()
    with contextlib.suppress(Missing):
        system_calls.restrict(names, limited)
