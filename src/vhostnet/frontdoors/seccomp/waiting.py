"""What the user has started: waits for the command, passes signals on, ends as it does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from typing import Any

from .processes import MOST, CommandError, exit_status_of

_PASSED_ON = frozenset(
    {
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT, signal.SIGWINCH),
    }
)
#: si_code of a signal that a terminal has sent, to all of the process group.
_SI_KERNEL = 0x80


class Waiting:
    """Until the command has ended: pass signals on, and hear how it ended."""

    def __init__(self, reports: socket.socket, supervisor: int) -> None:
        self._reports = reports
        self._supervisor = supervisor
        self._pid = 0
        self._pidfd = -1
        self._status: int | None = None
        self._left_alone = False

    def status(self) -> int:
        """The command's.  Raises CommandError."""
        awaited = {*_PASSED_ON, signal.SIGIO, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        fd = self._reports.fileno()
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        while True:
            self._hear()
            if self._status is None and self._left_alone:
                self._wait_for_orphan()
            if self._status is not None:
                return self._status
            info = signal.sigwaitinfo(awaited)
            if info.si_signo in _PASSED_ON and info.si_code != _SI_KERNEL and self._pidfd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._pidfd, info.si_signo)

    def _hear(self) -> None:
        while not self._left_alone and self._status is None:
            fds: list[int] = []
            try:
                data, fds, _, _ = socket.recv_fds(self._reports, MOST, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._supervisor_has_died()
                return
            said: dict[str, Any] = json.loads(data)
            if "failed" in said:
                raise CommandError(said["failed"], said["status"])
            if "pid" in said:
                self._pid, self._pidfd = said["pid"], fds[0]
            if "exit" in said:
                self._status = said["exit"]

    def _supervisor_has_died(self) -> None:
        _, status = os.waitpid(self._supervisor, 0)
        how = exit_status_of(status)
        if not self._pid:
            raise CommandError(f"the supervisor ended with status {how}, before the command ran")
        print(
            f"vhostnet: the supervisor ended with status {how}: "
            "/dev/vhost-net is gone, the command goes on",
            file=sys.stderr,
            flush=True,
        )
        self._left_alone = True

    def _wait_for_orphan(self) -> None:
        """The command is our child now, because we are a subreaper too."""
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            raise CommandError("how the command ended cannot be known") from None
        if pid:
            self._status = exit_status_of(status)
