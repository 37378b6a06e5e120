"""`Instance` without a thread: the worker runs when the test says so, from wake-up to sleep.

The worker's kernel, its epoll set and its eventfds are the real ones; the calling thread takes
the place of the worker's.  So the number of runs, and with it of signals, is known.
"""

from __future__ import annotations

import os
import socket
from typing import Any
from unittest import mock

from instance import Instance
from vhostnet.datapath.codes import WORKER_STOPPED
from vhostnet.device.worker import Worker

#: Of one wake-up: each ring error and each backend that has gone ends the kernel once.
MOST_RETURNS = 64
WIRE_ROOM = 4 << 20


class SteppedInstance(Instance):
    """A queue pair that moves only within `flush`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with mock.patch.object(Worker, "start"):
            super().__init__(*args, **kwargs)
        self._device_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WIRE_ROOM)

    def kick_only(self, index: int) -> None:
        """A kick, and no wake-up yet."""
        os.eventfd_write(self.kicks[index], 1)

    def flush(self) -> None:
        """One wake-up: all that is ready is handled, then the worker would sleep."""
        worker = self.net.worker
        assert worker is not None
        os.eventfd_write(worker._control, 1)
        for _ in range(MOST_RETURNS):
            code = self.net._run()
            if code is None or code == WORKER_STOPPED:
                break
            self.net._on_event(code)
        else:
            raise AssertionError("the worker does not come to rest")
        os.eventfd_read(worker._control)
