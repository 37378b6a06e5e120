"""One thread that runs an instance's compiled loop, and how control stops the world for it.

Theory of operation
-------------------
The thread is in one of two states:

RUNNING   inside the compiled kernel, without the GIL
    Operations:  packets move; control may only call `quiesced`
    Caveats:     rings, backend records, memory tables and descriptors belong to the kernel
PARKED    waiting on the condition, in Python
    Operations:  control changes whatever it likes
    Caveats:     whoever parked it must resume it; `quiesced` nests

`quiesced` writes the control eventfd, which the kernel's epoll set watches, and waits until
the thread is parked.  Control therefore never shares a word with a running kernel, and every
verb has Linux's flush built in: on return, nothing that ran before it is still running.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from vhostnet.datapath.codes import WORKER_STOPPED
from vhostnet.datapath.layout import (
    EPOLL_BATCH,
    EPOLL_EVENT,
    EVENT_CONTROL,
    WORKER,
    WORKER_COUNTERS,
)
from vhostnet.device.scheduling import Scheduling

#: Of the thread and of the data path, which calls libc by name (native/libc_raw.py,
#: native/libc_nowait_raw.py); what only other doors need of it is not in here.
SYSCALLS = (
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "poll", "ppoll"),
    *("read", "write", "writev", "pread64", "pwrite64", "preadv2", "pwritev2"),
    *("recvmsg", "sendmsg", "clock_gettime", "mmap", "tgkill", "sched_setaffinity"),
)

log = logging.getLogger("vhostnet.worker")
_PR_SET_NAME = 15
#: Ends a blocking system call of a worker; see `Worker._wait_shaking`.
SHAKE_SIGNAL = signal.SIGURG
SHAKE_S = 0.1
#: Faults of the thread itself: blocked, they would end the process whatever handles them.
_FAULTS = {signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL}
_libc = ctypes.CDLL(None)


class Worker:
    """The worker thread of one instance.

    Args:
        name: thread name, `vhost-<pid of the owner>` as in Linux (15 bytes are shown).
        run: calls the kernel once and returns its code; None means there is nothing to do.
        on_event: told every code that is not WORKER_STOPPED, in the worker's thread.
        before: the `counters` of the worker before it, to go on from.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], int | None],
        on_event: Callable[[int], None],
        before: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.record = np.zeros(1, WORKER)
        self._before = dict(before or {})
        for counter in WORKER_COUNTERS:
            self.record[0][counter] = self._before.get(counter, 0)
        self._busy_ns: int | None = None
        self._began_ns = time.monotonic_ns()
        self._ended_ns: int | None = None
        self._events = np.zeros(EPOLL_BATCH, EPOLL_EVENT)
        self._timespec = np.zeros(2, np.int64)
        self._run = run
        self._on_event = on_event
        self._epoll = select.epoll()
        self._control = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._state = threading.Condition()
        self._holds = 0
        self._parked = False
        self._idle = False
        self._flushes = 0
        self._flushed = 0
        self._turns = 0
        self._turns_seen = -1
        self._ending = False
        #: the data path has raised, which is a bug; until control changes something
        self.has_failed = False
        self.record[0]["epfd"] = self._epoll.fileno()
        self.record[0]["events_hva"] = self._events.ctypes.data
        self.record[0]["timespec_hva"] = self._timespec.ctypes.data
        self._register(self._control, select.EPOLLIN, EVENT_CONTROL)
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    @property
    def tid(self) -> int:
        """The thread's id, 0 before `start`."""
        return self._thread.native_id or 0

    @property
    def is_parked(self) -> bool:
        """Whether it waits for control, or for control to change something."""
        return self._parked

    @property
    def epoll_fd(self) -> int:
        """The set that the thread waits in; readable when it has an edge to take."""
        return self._epoll.fileno()

    def start(self) -> None:
        """Create the thread."""
        if threading.current_thread() is threading.main_thread():
            # a handler, so that the signal interrupts; what it does is nothing
            signal.signal(SHAKE_SIGNAL, lambda _signum, _frame: None)
        self._thread.start()

    def pin(self, cpu: int) -> None:
        """Run on this processor only, from now on; OSError if there is none of this number."""
        if self._thread.native_id is not None:
            os.sched_setaffinity(self._thread.native_id, {cpu})

    def schedule(self, scheduling: Scheduling) -> None:
        """Let the kernel schedule the thread so from now on; OSError if we may not."""
        if self._thread.native_id is not None:
            scheduling.apply(self._thread.native_id)

    def _register(self, fd: int, events: int, source: int) -> None:
        # select.epoll stores the descriptor as the event's data; ours is the work item.
        _epoll_ctl(self._epoll.fileno(), _EPOLL_CTL_ADD, fd, events, source)

    def watch(self, fd: int, events: int, source: int) -> None:
        """Start polling *fd*, edge-triggered; ready already means an event at once."""
        self._register(fd, events | select.EPOLLET, source)

    def rearm(self, fd: int, events: int, source: int) -> None:
        """Report *fd* again if it is ready now."""
        _epoll_ctl(self._epoll.fileno(), _EPOLL_CTL_MOD, fd, events | select.EPOLLET, source)

    def unwatch(self, fd: int) -> None:
        """Stop polling *fd*; it must still be open."""
        with contextlib.suppress(FileNotFoundError):
            self._epoll.unregister(fd)

    @contextlib.contextmanager
    def quiesced(self) -> Iterator[None]:
        """Keep the thread parked for the length of the block; may nest."""
        self._hold()
        try:
            yield
        finally:
            self._release()

    def _hold(self) -> None:
        with self._state:
            self._holds += 1
            if self._thread.is_alive() and not self._parked:
                os.eventfd_write(self._control, 1)
                self._wait_shaking(lambda: self._parked)

    def _release(self) -> None:
        with self._state:
            self._holds -= 1
            if self._holds == 0:
                self._idle = False  # something may have changed
                self._state.notify_all()

    def flush(self) -> None:
        """Return when everything that was ready before has been handled, up to one weight.

        Source: Linux vhost_dev_flush().  Not to be called while holding the thread.
        """
        with self._state:
            self._flushes += 1
            ticket = self._flushes
            os.eventfd_write(self._control, 1)
            self._wait_shaking(lambda: self._flushed >= ticket or (self._idle and self._parked))

    def heartbeat(self) -> bool:
        """Whether the thread came by since the last call, which asks it to; never waits long.

        It comes by where it sees what control wants; a thread that is parked waits for that.
        """
        with self._state:
            seen, self._turns_seen = self._turns_seen, self._turns
            if self._parked:
                return True
            os.eventfd_write(self._control, 1)
            return self._thread.is_alive() and seen != self._turns

    def _wait_shaking(self, condition: Callable[[], bool]) -> None:
        """Wait for the thread; shake it out of a system call that a peer has made block.

        A peer can fill a descriptor that it shares with us after any check of ours.  A signal
        ends the call with EINTR, and the thread then sees that control wants it.
        """
        while self._thread.is_alive() and not self._state.wait_for(condition, SHAKE_S):
            self._shake()

    def _shake(self) -> None:
        if self._thread.is_alive() and self._thread.ident is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._thread.ident, SHAKE_SIGNAL)

    def counters(self) -> dict[str, int]:
        """What it and those before it counted, by name; from any thread, at any time.

        With WORKER_COUNTERS come `busy_ns`, the time that the thread had a processor, and
        `idle_ns`, all other time: both by the kernel's clocks, so counting costs the data path
        nothing.
        """
        counted = {name: int(self.record[0][name]) for name in WORKER_COUNTERS}
        busy_ns = self._busy_for()
        alive_ns = (self._ended_ns or time.monotonic_ns()) - self._began_ns
        counted["busy_ns"] = self._before.get("busy_ns", 0) + busy_ns
        counted["idle_ns"] = self._before.get("idle_ns", 0) + max(0, alive_ns - busy_ns)
        return counted

    def _busy_for(self) -> int:
        tid = self._thread.native_id
        if self._busy_ns is None and tid is not None:
            with contextlib.suppress(OSError):  # it has ended this moment
                return time.clock_gettime_ns(_cpu_clock_of(tid))
        return self._busy_ns or 0

    def stop(self) -> None:
        """End the thread and close what is ours; nothing may be watched any more."""
        with self._state:
            self._ending = True
            os.eventfd_write(self._control, 1)
            self._state.notify_all()
        while self._thread.is_alive():
            self._thread.join(SHAKE_S)
            self._shake()
        self._epoll.close()
        os.close(self._control)

    def _main(self) -> None:
        others = signal.valid_signals() - {SHAKE_SIGNAL} - _FAULTS
        signal.pthread_sigmask(signal.SIG_BLOCK, others)
        _libc.prctl(_PR_SET_NAME, self.name.encode()[:15], 0, 0, 0)
        while self._wait_for_turn():
            ticket = self._flushes
            try:
                self.has_failed = False
                code = self._run()
            except Exception:
                self.has_failed = True
                log.exception("%s: the data path raised; it waits for control", self.name)
                code = None
            self._idle = code is None
            self._flushed = ticket
            if code is not None and code != WORKER_STOPPED:
                self._tell(code)
        self._ended_ns = time.monotonic_ns()
        self._busy_ns = time.thread_time_ns()

    def _tell(self, code: int) -> None:
        try:
            self._on_event(code)
        except Exception:
            log.exception("%s: telling of an event failed", self.name)

    def _wait_for_turn(self) -> bool:
        """Park while held or, if there was nothing to do, until control has changed something.

        Only this thread writes `_parked`: a hold that follows a release at once finds it
        still true and is right to.  Returns False at the end.
        """
        with self._state:
            self._turns += 1
            self._state.notify_all()
            while not self._ending and (self._holds > 0 or self._idle):
                self._parked = True
                self._state.notify_all()
                self._state.wait()
            self._parked = False
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._control)
            if self._flushed < self._flushes:  # one pass, then back
                os.eventfd_write(self._control, 1)
            return not self._ending


def _cpu_clock_of(tid: int) -> int:
    """The clock of one thread's processor time (make_thread_cpuclock of linux/posix-timers.h)."""
    per_thread, sched = 4, 2
    return ~tid << 3 | per_thread | sched


_EPOLL_CTL_ADD = 1
_EPOLL_CTL_MOD = 3


def _epoll_ctl(epfd: int, operation: int, fd: int, events: int, source: int) -> None:
    event = np.zeros(1, EPOLL_EVENT)
    event[0]["events"] = events & 0xFFFFFFFF
    event[0]["data"] = source
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.epoll_ctl(epfd, operation, fd, ctypes.c_void_p(event.ctypes.data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"epoll_ctl: {os.strerror(number)}")
