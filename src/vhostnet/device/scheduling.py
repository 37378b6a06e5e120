"""How the kernel schedules a worker thread: sched(7)'s policies, and niceness."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import HostError

OPENER_SYSCALLS = ("sched_setscheduler", "setpriority")

#: Policy -> its number, and what its number ranges over: niceness or priority.
POLICIES = {
    "other": (os.SCHED_OTHER, range(-20, 20)),
    "batch": (os.SCHED_BATCH, range(-20, 20)),
    "fifo": (os.SCHED_FIFO, range(1, 100)),
    "rr": (os.SCHED_RR, range(1, 100)),
}


@dataclass(frozen=True, slots=True)
class Scheduling:
    """A policy of `POLICIES`, and its number.

    Attributes:
        number: the real-time priority of fifo and rr, the niceness of the others.
    """

    policy: str
    number: int = 0

    @property
    def is_real_time(self) -> bool:
        """Whether the thread comes before all others for as long as it runs."""
        return self.policy in ("fifo", "rr")

    def apply(self, tid: int) -> None:
        """Schedule a thread of ours so; OSError if we may not."""
        schedule_thread(tid, self.policy, self.number)

    def check(self) -> None:
        """Try it on a thread that ends at once; HostError says what is lacking."""
        refused: list[OSError] = []

        def attempt() -> None:
            try:
                self.apply(threading.get_native_id())
            except OSError as error:
                refused.append(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        for error in refused:
            limit = f"RTPRIO of {self.number}" if self.is_real_time else f"NICE of {self.number}"
            lacking = f": it takes CAP_SYS_NICE, or a limit {limit}" * (error.errno == errno.EPERM)
            raise HostError(f"{self}: {error.strerror}{lacking}", error.errno or 0)

    def __str__(self) -> str:
        return f"{self.policy}:{self.number}"


@act(Policy.may_schedule)
def schedule_thread(tid: int, policy: str, number: int) -> tuple[None, list[int]]:
    """Schedule a thread of the daemon's; OSError if we may not."""
    kind, numbers = POLICIES[policy]
    is_real_time = min(numbers) > 0
    os.sched_setscheduler(tid, kind, os.sched_param(number if is_real_time else 0))
    if not is_real_time:
        os.setpriority(os.PRIO_PROCESS, tid, number)
    return None, []
