"""The processes of `vhostnet run`.

    ours         what the user has started: waits for the command's status, passes signals on
      keeper     takes over the listener if the supervisor dies (see keeper.py)
      supervisor answers calls; the parent of
        command  and of every process of its tree that has lost its own (a subreaper)

The supervisor is not ours itself, because it goes on for as long as anybody is left under the
filter, and we end with the command.  The command stays in our process group and session, as if
there were nothing between; supervisor and keeper have sessions of their own, where no terminal
reaches them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from vhostnet.errors import HostError, VhostnetError
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.frontdoors.foreign_process import check_descriptors

from .abi import Architecture, native
from .filter import program
from .keeper import FAREWELL, LISTENER, keep
from .listener_raw import Listener, install, new_slot
from .node import Node
from .path_calls import PathCalls

if TYPE_CHECKING:
    from .supervisor import Devices

log = logging.getLogger("vhostnet")

#: Statuses of commands that run other commands (env, timeout, nohup).
EXIT_OWN_FAILURE = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
_BY_SIGNAL = 128

#: How many open files a process may have whose every call is exact; see open_file.py.
N_RESERVED = 32
_USUAL_LIMIT = 1024

_PASSED_ON = frozenset(
    {
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCONT, signal.SIGWINCH),
    }
)
#: si_code of a signal that a terminal has sent, to all of the process group.
_SI_KERNEL = 0x80
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NAME = 15
_GO = b"go"
_MOST = 4096


class CommandError(HostError):
    """The command could not be run; `exit_status` says why as env(1) does."""

    def __init__(self, message: str, exit_status: int = EXIT_OWN_FAILURE) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True)
class _Ends:
    """What our processes share from the first fork on."""

    keeper: tuple[socket.socket, socket.socket]
    report: tuple[socket.socket, socket.socket]
    slot: mmap.mmap
    architecture: Architecture
    reserved: range
    paths: PathCalls


def run(command: Sequence[str], load: Callable[[], Devices]) -> int:
    """Run a command whose /dev/vhost-net is ours.

    Args:
        load: brings the devices; called in the supervisor.

    Returns:
        The command's exit status; 128 and the signal's number if one has ended it.

    Raises:
        CommandError: it was not run at all.
        HostError: this machine does not let us.
    """
    architecture = native()
    check_descriptors()
    ends = _Ends(
        _pair(),
        _pair(),
        new_slot(),
        architecture,
        _reserved_numbers(),
        PathCalls(Node(), architecture),
    )
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _fork(lambda: _keeper(ends))
    supervisor = _fork(lambda: _supervisor(ends, command, load))
    for pair in (ends.keeper, ends.report):
        pair[1].close()
    ends.keeper[0].close()
    return _Waiting(ends.report[0], supervisor).status()


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _reserved_numbers() -> range:
    """The last of those that a process may have, by the usual limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _USUAL_LIMIT
    stop = max(min(soft, _USUAL_LIMIT), 2 * N_RESERVED)
    return range(stop - N_RESERVED, stop)


def _prctl(*words: int) -> None:
    ctypes.CDLL(None).prctl(*(ctypes.c_ulong(word) for word in (*words, 0, 0, 0)[:5]))


def _name_process(name: bytes) -> None:
    ctypes.CDLL(None).prctl(ctypes.c_int(_PR_SET_NAME), ctypes.c_char_p(name))


def _fork(child: Callable[[], None]) -> int:
    """The new process runs *child* and ends, without a word to what its parent has set up."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = EXIT_OWN_FAILURE
        try:
            child()
            status = 0
        except BaseException:
            log.exception("bug in this program")
        finally:
            os._exit(status)
    return pid


# --- ours -----------------------------------------------------------------------------------------


class _Waiting:
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
                data, fds, _, _ = socket.recv_fds(self._reports, _MOST, 1)
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
        how = _exit_status(status)
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
            self._status = _exit_status(status)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _BY_SIGNAL - code


# --- keeper ---------------------------------------------------------------------------------------


def _keeper(ends: _Ends) -> None:
    for end in (ends.keeper[0], *ends.report):
        end.close()
    _name_process(b"vhostnet-keeper")
    keep(ends.keeper[1], ends.slot, ends.architecture, ends.paths)


# --- command --------------------------------------------------------------------------------------


def _become_command(
    channel: socket.socket, code: bytes, architecture: Architecture, command: Sequence[str]
) -> NoReturn:
    """Put on the filter, hand over its listener, run.

    From the filter on nothing may be opened before the supervisor serves, so nothing is imported.
    """
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(signum, signal.SIG_DFL)
    try:
        listener = install(code, architecture)
    except HostError as e:
        channel.send(_failure(str(e), EXIT_OWN_FAILURE))
        os._exit(EXIT_OWN_FAILURE)
    socket.send_fds(channel, [LISTENER], [listener])
    os.close(listener)
    if channel.recv(_MOST) == _GO:
        try:
            os.execvp(command[0], list(command))
        except FileNotFoundError as e:
            status, why = EXIT_NOT_FOUND, e.strerror
        except (OSError, ValueError) as e:
            status, why = EXIT_NOT_EXECUTABLE, getattr(e, "strerror", None) or str(e)
        channel.send(_failure(f"{command[0]}: {why}", status))
    os._exit(EXIT_OWN_FAILURE)


def _failure(text: str, status: int) -> bytes:
    return json.dumps({"failed": text, "status": status}).encode()


# --- supervisor -----------------------------------------------------------------------------------


def _supervisor(ends: _Ends, command: Sequence[str], load: Callable[[], Devices]) -> None:
    ends.keeper[1].close()
    ends.report[0].close()
    report = ends.report[1]
    # Assembled here, and what the command needs to say how it failed is there already.
    code = program(ends.architecture, ends.reserved)
    channel, its_channel = _pair()

    def become_command() -> None:
        for end in (channel, report, ends.keeper[0]):  # or it would not see our end
            end.close()
        _become_command(its_channel, code, ends.architecture, command)

    pid = _fork(become_command)
    its_channel.close()
    _be_out_of_reach()
    message, fds, _, _ = socket.recv_fds(channel, _MOST, 1)
    if not fds:
        report.send(message or _failure("the command's process ended at once", EXIT_OWN_FAILURE))
        return
    socket.send_fds(ends.keeper[0], [LISTENER], fds[:1])
    listener = Listener(fds[0], ends.slot)
    try:
        devices = load()
    except VhostnetError as e:
        report.send(_failure(str(e), EXIT_OWN_FAILURE))
        return  # the command waits for our word, and ends without it
    log.info("the supervisor is process %d", os.getpid())
    serving = _Serving(ends, channel, pid, listener, devices)
    pidfd = os.pidfd_open(pid)  # by us: when this is read, the number may be another's
    socket.send_fds(report, [json.dumps({"pid": pid}).encode()], [pidfd])
    os.close(pidfd)
    channel.send(_GO)
    serving.run()
    ends.keeper[0].send(FAREWELL)


def _be_out_of_reach() -> None:
    """Of terminals, and of signals that are meant for the command."""
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _name_process(b"vhostnet-run")
    _let_go_of((0, 1))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _let_go_of(streams: Sequence[int]) -> None:
    """Whoever reads what the command prints waits until nobody can write any more."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in streams:
        os.dup2(null, fd)
    os.close(null)


class _Serving:
    """The supervisor's loop: calls, children, and whether the command has begun and ended."""

    def __init__(
        self,
        ends: _Ends,
        channel: socket.socket,
        pid: int,
        listener: Listener,
        devices: Devices,
    ) -> None:
        from .supervisor import Supervisor

        self._report = ends.report[1]
        self._channel = channel
        self._pid = pid
        self._failure = b""
        self._has_ended = False
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
        self._loop.run()
        self._calls.close()
        while not self._has_ended:  # it has left the filter, so it is about to
            self._reap(0)
        self._loop.close()

    def _on_channel(self, _ready: int) -> None:
        """The command could not be run, or (end of file) it runs."""
        self._failure = self._channel.recv(_MOST)
        self._loop.unwatch(self._channel.fileno())
        self._channel.close()

    def _on_waiting_one_gone(self, _ready: int) -> None:
        """Whoever waits for the command was killed, by the one signal that cannot be passed on."""
        self._loop.unwatch(self._report.fileno())
        if not self._has_ended:
            os.kill(self._pid, signal.SIGKILL)

    def _on_child(self, _ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup[0].recv(_MOST)
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
            self._command_has_ended(_exit_status(status))
        return True

    def _command_has_ended(self, status: int) -> None:
        self._has_ended = True
        if not self._failure and self._channel.fileno() >= 0:
            self._on_channel(READABLE)
        with contextlib.suppress(OSError):
            self._report.send(self._failure or json.dumps({"exit": status}).encode())
        _let_go_of((2,))
