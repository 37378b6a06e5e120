"""A dirty bitmap in memory that only its owner has (QEMU keeps it on its heap).

Theory of operation
-------------------
The data path sets bits in a bitmap of ours, the *mirror*, as it would in one that is mapped.
Every SYNC_S, and whenever a ring stops or logging ends, what the mirror has is or-ed into the
owner's bitmap and taken out of the mirror, with the worker parked for the exchange.  So a bit
reaches the owner a little later than in Linux, but always before the call returns after which
the owner takes its last look (SET_BACKEND -1).

The owner reads and clears its bitmap at any moment.  Between our reading a word and writing it
back it may be cleared: then bits come back that were taken already, and some pages are copied
once more.  What must not happen is that two devices of one owner, which share one bitmap,
overwrite each other's bits: they take one lock for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

log = logging.getLogger("vhostnet.device")
SYNC_S = 0.02
_WORD = 8
_locks_guard = threading.Lock()
#: (owner, address) -> the lock of that bitmap; few, and for the life of the process
_locks: dict[tuple[int, int], threading.Lock] = {}


class RemoteLog:
    """The bitmap of *size* bytes at the owner's *address*, for one device.

    Args:
        pid: the owner.
        mem_fd: its /proc/PID/mem; copied.
        parked: keeps the device's worker parked.

    Attributes:
        hva, size: the mirror, for the data path.
    """

    def __init__(
        self,
        pid: int,
        mem_fd: int,
        address: int,
        size: int,
        parked: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._mem_fd = os.dup(mem_fd)
        self._address = address
        self._parked = parked
        self._words = np.zeros(-(-size // _WORD), np.uint64)
        self.hva, self.size = int(self._words.ctypes.data), size
        with _locks_guard:
            self._lock = _locks.setdefault((pid, address), threading.Lock())
        self._ended = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._main, name="vhost-log", daemon=True)
        self._thread.start()

    def sync(self) -> None:
        """Return when every bit that was set before is in the owner's bitmap."""
        with self._lock:
            if not self._words.any():
                return
            with self._parked():
                at = np.flatnonzero(self._words)
                bits = self._words[at]
                self._words[at] = 0
            for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(at) != 1) + 1):
                self._push(int(at[run[0]]), bits[run])

    def _push(self, first: int, bits: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
        """Or *bits* into the owner's words from number *first* on, within its bytes."""
        begin = first * _WORD
        n = min(len(bits) * _WORD, self.size - begin)
        ours = np.frombuffer(bits.tobytes()[:n], np.uint8)
        try:
            theirs = np.frombuffer(os.pread(self._mem_fd, n, self._address + begin), np.uint8)
            os.pwrite(self._mem_fd, (ours | theirs).tobytes(), self._address + begin)
        except (OSError, ValueError):  # gone, or only a part of it is there
            if not self._failed:
                self._failed = True
                log.warning("the dirty bitmap at %#x cannot be written", self._address)

    def close(self) -> None:
        """Sync for the last time; the data path must have stopped using the mirror."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.sync()
        os.close(self._mem_fd)

    def _main(self) -> None:
        while not self._ended.wait(SYNC_S):
            with contextlib.suppress(OSError):
                self.sync()
