"""The supervisor's process: its calls, its children, how the command begins and ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vhostnet.errors import VhostnetError
from vhostnet.frontdoors.event_loop import READABLE, Loop

from .command import GO, become_command
from .filter import program
from .keeper import FAREWELL, LISTENER
from .listener_raw import Listener
from .processes import (
    EXIT_OWN_FAILURE,
    MOST,
    PR_SET_CHILD_SUBREAPER,
    Ends,
    exit_status_of,
    failure,
    fork,
    name_process,
    pair_of_sockets,
    prctl,
)

if TYPE_CHECKING:
    from .supervisor import Devices

#: The null device, which takes the place of stderr in the end; the children; the command's end.
SYSCALLS = ("dup2", "dup3", "waitid", "wait4", "kill", "pidfd_open", "recvmsg", "sendmsg", "sendto")

log = logging.getLogger("vhostnet")


def supervise(
    ends: Ends, command: Sequence[str], guard: Callable[[], None], load: Callable[[], Devices]
) -> None:
    """Be the supervisor: start the command, and answer until nobody of its tree is left.

    Args:
        guard, load: as `tree.run`.
    """
    guard()
    ends.keeper[1].close()
    ends.report[0].close()
    report = ends.report[1]
    # Assembled here, and what the command needs to say how it failed is there already.
    code = program(ends.architecture, ends.reserved)
    channel, its_channel = pair_of_sockets()

    def command_begins() -> None:
        for end in (channel, report, ends.keeper[0]):  # or it would not see our end
            end.close()
        become_command(its_channel, code, ends.architecture, command)

    pid = fork(command_begins)
    its_channel.close()
    _be_out_of_reach()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    _let_go_of((0, 1), null)
    message, fds, _, _ = socket.recv_fds(channel, MOST, 1)
    if not fds:
        report.send(message or failure("the command's process ended at once", EXIT_OWN_FAILURE))
        return
    socket.send_fds(ends.keeper[0], [LISTENER], fds[:1])
    os.set_inheritable(fds[0], False)  # as recv_fds does not; or it would be closed as a stray
    listener = Listener(fds[0], ends.slot)
    try:
        devices = load()
    except VhostnetError as e:
        report.send(failure(str(e), EXIT_OWN_FAILURE))
        return  # the command waits for our word, and ends without it
    log.info("the supervisor is process %d", os.getpid())
    serving = _Serving(ends, channel, pid, listener, devices, null)
    pidfd = os.pidfd_open(pid)  # by us: when this is read, the number may be another's
    socket.send_fds(report, [json.dumps({"pid": pid}).encode()], [pidfd])
    os.close(pidfd)
    channel.send(GO)
    serving.run()
    ends.keeper[0].send(FAREWELL)


def _be_out_of_reach() -> None:
    """Of terminals, and of signals that are meant for the command."""
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    name_process(b"vhostnet-run")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _let_go_of(streams: Sequence[int], null: int) -> None:
    """Whoever reads what the command prints waits until nobody can write any more."""
    for fd in streams:
        os.dup2(null, fd)


class _Serving:
    """The supervisor's loop: calls, children, and whether the command has begun and ended."""

    def __init__(
        self,
        ends: Ends,
        channel: socket.socket,
        pid: int,
        listener: Listener,
        devices: Devices,
        null: int,
    ) -> None:
        from .supervisor import Supervisor

        self._report = ends.report[1]
        self._channel = channel
        self._pid = pid
        self._null = null
        self._failure = b""
        self._has_ended = False
        self._serving = devices.serving
        self._loop = Loop()
        self._calls = Supervisor(
            self._loop,
            listener,
            ends.architecture,
            ends.reserved,
            ends.paths,
            devices,
            self._loop.stop,
        )
        self._loop.watch(channel.fileno(), READABLE, self._on_channel)
        self._loop.watch(self._report.fileno(), READABLE, self._on_waiting_one_gone)
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        reader.setblocking(False)
        self._wakeup = (reader, writer)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._loop.watch(reader.fileno(), READABLE, self._on_child)

    def run(self) -> None:
        """Until nobody is left."""
        with self._serving(self._loop, self._calls):
            self._loop.run()
            self._calls.close()
        while not self._has_ended:  # it has left the filter, so it is about to
            self._reap(0)
        self._loop.close()

    def _on_channel(self, _ready: int) -> None:
        """The command could not be run, or (end of file) it runs."""
        self._failure = self._channel.recv(MOST)
        self._loop.unwatch(self._channel.fileno())
        self._channel.close()

    def _on_waiting_one_gone(self, _ready: int) -> None:
        """Whoever waits for the command was killed, by the one signal that cannot be passed on."""
        self._loop.unwatch(self._report.fileno())
        if not self._has_ended:
            os.kill(self._pid, signal.SIGKILL)

    def _on_child(self, _ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup[0].recv(MOST)
        while self._reap(os.WNOHANG):
            pass

    def _reap(self, wait: int) -> bool:
        """One child that has ended; its devices end before its number is free."""
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | wait)
        except ChildProcessError:
            self._has_ended = True
            return False
        if info is None:
            return False
        self._calls.process_is_gone(info.si_pid)
        _, status = os.waitpid(info.si_pid, 0)
        if info.si_pid == self._pid:
            self._command_has_ended(exit_status_of(status))
        return True

    def _command_has_ended(self, status: int) -> None:
        self._has_ended = True
        if not self._failure and self._channel.fileno() >= 0:
            self._on_channel(READABLE)
        with contextlib.suppress(OSError):
            self._report.send(self._failure or json.dumps({"exit": status}).encode())
        _let_go_of((2,), self._null)
