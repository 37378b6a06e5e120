"""One thread, one selector: sockets, timers and signals for any number of devices.

Everything in the front doors runs here; nothing is locked because nothing else calls it.  The
data path has threads of its own and never enters this loop.

A callback that raises is a bug of this program, not a reason to stop the other devices: the
traceback is logged and, if it was watching a descriptor, that descriptor is watched no more
(it would be ready again at once, for ever).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from types import FrameType

SYSCALLS = (
    *("epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait"),
    *("socketpair", "recvfrom", "sendto"),  # signals
)

READABLE = selectors.EVENT_READ
WRITABLE = selectors.EVENT_WRITE

# Signals that arrive between two turns are read in pieces of this many; more stay in the socket.
SIGNALS_A_READ = 64

log = logging.getLogger(__name__)


class Timer:
    """A call that is due once; see `Loop.call_later`."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[], None]) -> None:
        self.fn: Callable[[], None] | None = fn

    def cancel(self) -> None:
        """Never call it.  Harmless when it has been called or cancelled before."""
        self.fn = None


class Loop:
    """Selector, timers and signals.  To be used from the thread that runs it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        # Of two timers due at the same instant the older one goes first.
        self._serial = itertools.count()
        self._running = False
        self._signals: tuple[socket.socket, socket.socket] | None = None
        self._signal_calls: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, events: int, fn: Callable[[int], None]) -> None:
        """Call `fn(ready)` while `fd` is ready for any of `events`; replaces an earlier watch."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, fn)
        else:
            self._selector.register(fd, events, fn)

    def unwatch(self, fd: int) -> None:
        """Stop watching; harmless if `fd` is not watched.  Call it before closing `fd`."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_later(self, seconds: float, fn: Callable[[], None]) -> Timer:
        """Call `fn()` once, `seconds` from now, from the loop."""
        timer = Timer(fn)
        due = time.monotonic() + seconds
        heapq.heappush(self._timers, (due, next(self._serial), timer))
        return timer

    def on_signals(self, signals: Iterable[signal.Signals], fn: Callable[[], None]) -> None:
        """Call `fn()` from the loop at the first of `signals`; a second one kills the process.

        The second one must work however badly the first one's clean-up hangs, so the default
        action is restored by the handler itself, which Python runs between any two bytecodes,
        and not by the loop.  Main thread only.
        """
        handled = frozenset(signals)

        def restore_default(_signum: int, _frame: FrameType | None) -> None:
            for signum in handled:
                signal.signal(signum, signal.SIG_DFL)

        for signum in handled:
            self._signal_calls[signum] = fn
            signal.signal(signum, restore_default)
        self._watch_signals()

    def on_each_signal(self, signum: signal.Signals, fn: Callable[[], None]) -> None:
        """Call `fn()` from the loop whenever the signal comes; several at once may be one call."""
        self._signal_calls[signum] = fn
        # A handler, so that it is not the default action; the wake-up descriptor tells of it.
        signal.signal(signum, lambda _signum, _frame: None)
        self._watch_signals()

    def _watch_signals(self) -> None:
        if self._signals is not None:
            return
        reader, writer = self._signals = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)

        def read_signals(_ready: int) -> None:
            for signum in sorted(set(reader.recv(SIGNALS_A_READ))):
                if signum in self._signal_calls:
                    self._signal_calls[signum]()

        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.watch(reader.fileno(), READABLE, read_signals)

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        while self._running:
            self.run_once()

    def stop(self) -> None:
        """Make `run` return after the callback that is running now."""
        self._running = False

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for something to do, at most `timeout` seconds, and do it."""
        for key, ready in self._selector.select(self._patience(timeout)):
            # An earlier callback of this turn may have closed this descriptor, and a new
            # socket may have taken its number: that one's key is another object.
            if self._selector.get_map().get(key.fd) is key:
                self._call_watcher(key, ready)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            fn, timer.fn = timer.fn, None
            if fn is not None:
                self._call_timer(fn)

    def close(self) -> None:
        """Free the selector; watched descriptors stay open, signal handlers stay as they are."""
        if self._signals is not None:
            signal.set_wakeup_fd(-1)
            for end in self._signals:
                end.close()
            self._signals = None
        self._timers.clear()
        self._selector.close()

    def _patience(self, timeout: float | None) -> float | None:
        """Seconds until the first timer or `timeout`, whichever is less; None is for ever."""
        while self._timers and self._timers[0][2].fn is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return timeout
        until_due = max(0.0, self._timers[0][0] - time.monotonic())
        return until_due if timeout is None else min(until_due, timeout)

    def _call_watcher(self, key: selectors.SelectorKey, ready: int) -> None:
        try:
            key.data(ready)
        except Exception:
            log.exception("bug in this program: descriptor %d is watched no more", key.fd)
            self.unwatch(key.fd)

    def _call_timer(self, fn: Callable[[], None]) -> None:
        try:
            fn()
        except Exception:
            log.exception("bug in this program: a timer's call failed")
