"""A guest that sends all the while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from vhostnet_frontend import NetDriver


@contextlib.contextmanager
def flooding(driver: NetDriver, frame: bytes, *, to_the_end: bool = True) -> Iterator[None]:
    """Let a guest send one frame without pause for the length of the block.

    Args:
        to_the_end: its card is there all the time, so all its buffers come back.
    """
    driver.flush()
    sender = driver.sender(frame)
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            sender.run(seconds=0.02)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not to_the_end or sender.finish()
