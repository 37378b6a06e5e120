"""private: the guest's memory that only its VMM has, beside memory that it shares.

The same driver, the same device through `vhostnet run`, the same TAP; what differs is how the
driver's memory was made.  Private memory costs copies and system calls, a batch each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import driver_under_run
from vhostnet.bench.workloads.taps import TAP
from vhostnet.demo.netns import Namespace

SHARED = "shared memory"
_SIZES = (64, 1500)


def send(run: Run, size: int, private: bool) -> Mapping[str, float]:
    """The driver sends through /dev/vhost-net into a TAP, whose host drops at its door."""
    with Namespace() as host:
        host.add_tap(TAP, "192.0.2.1/24")
        found = driver_under_run(
            run, "send", prefix=host.prefix, size=size, tap=TAP, private=private
        )
        return {"mpps": found["mpps"]}


def _cases() -> Sequence[Case]:
    metric = Metric("mpps", "packets", "million/s", "higher")
    return [
        Case(
            f"{size} B",
            {"size": size},
            (metric,),
            {
                OURS: partial(send, size=size, private=True),
                SHARED: partial(send, size=size, private=False),
            },
            quick=size == min(_SIZES),
        )
        for size in _SIZES
    ]


PRIVATE = Workload(
    "private",
    "a guest's private memory beside shared memory, through /dev/vhost-net",
    "`vhostnet run` shows /dev/vhost-net to our own compiled driver, which sends into a TAP. "
    '"vhostnet" has private memory, which is reached with process_vm_readv and writev, '
    '"shared memory" a memfd that is mapped on both sides; all else is the same. A ratio below '
    "1 is what private memory costs.",
    ("unshare", "ip", "taskset"),
    _cases,
)
