"""A dirty bitmap that only its owner has: every bit arrives, and nobody's bits are lost."""

from __future__ import annotations

import contextlib
import os
import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostnet.device.remote_log import RemoteLog
from vhostnet.native.ordering import atomic_or_u8

BYTES = 4000
MARGIN = 64


class Bitmap:
    """The owner's, which is this process; with bytes around it that are not to be touched."""

    def __init__(self) -> None:
        self.bytes = np.zeros(BYTES + 2 * MARGIN, np.uint8)
        self.address = int(self.bytes.ctypes.data) + MARGIN
        self.mem_fd = os.open("/proc/self/mem", os.O_RDWR)

    def log(self, worker: threading.RLock | None = None) -> RemoteLog:
        """A log whose device's worker marks pages only with the lock *worker*."""
        parked = worker or threading.RLock()
        return RemoteLog(os.getpid(), self.mem_fd, self.address, BYTES, lambda: parked)

    def pages(self) -> set[int]:
        assert not self.bytes[:MARGIN].any()
        assert not self.bytes[MARGIN + BYTES :].any()
        bits = np.unpackbits(self.bytes[MARGIN : MARGIN + BYTES], bitorder="little")
        return set(np.flatnonzero(bits).tolist())

    def close(self) -> None:
        os.close(self.mem_fd)


def mark(log: RemoteLog, page: int) -> None:
    atomic_or_u8(log.hva + page // 8, 1 << page % 8)


PAGES = st.sets(st.integers(0, 8 * BYTES - 1), max_size=40)


@settings(max_examples=40, deadline=None)
@given(st.lists(PAGES, min_size=1, max_size=4))
def test_every_page_is_in_the_owners_bitmap_after_a_sync(batches: list[set[int]]) -> None:
    bitmap = Bitmap()
    worker = threading.RLock()
    log = bitmap.log(worker)
    seen: set[int] = set()
    for batch in batches:
        with worker:
            for page in batch:
                mark(log, page)
        log.sync()
        seen |= batch
        assert bitmap.pages() == seen
    log.close()
    bitmap.close()


def test_what_was_marked_last_arrives_with_the_close() -> None:
    bitmap = Bitmap()
    log = bitmap.log()
    mark(log, 8 * BYTES - 1)
    log.close()
    assert bitmap.pages() == {8 * BYTES - 1}
    bitmap.close()


def test_two_devices_with_one_bitmap_lose_nothing() -> None:
    bitmap = Bitmap()
    workers = [threading.RLock(), threading.RLock()]
    logs = [bitmap.log(worker) for worker in workers]

    def work(log: RemoteLog, first: int) -> None:
        for page in range(first, 8 * BYTES, 2):  # the two share every byte
            with workers[first]:
                mark(log, page)
            if page % 97 == 0:
                log.sync()

    threads = [threading.Thread(target=work, args=(log, k)) for k, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    assert len(bitmap.pages()) == 8 * BYTES
    bitmap.close()


def test_a_bitmap_that_is_gone_is_no_end(caplog) -> None:
    bitmap = Bitmap()
    fd = os.open("/proc/self/mem", os.O_RDWR)
    log = RemoteLog(os.getpid(), fd, 4096, BYTES, lambda: contextlib.nullcontext())
    os.close(fd)
    mark(log, 1)
    log.sync()
    mark(log, 2)
    log.close()
    assert [r.message for r in caplog.records] == ["the dirty bitmap at 0x1000 cannot be written"]
    bitmap.close()
