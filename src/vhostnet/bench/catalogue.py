"""All workloads, in the order in which they are run."""

from __future__ import annotations

from vhostnet.bench.model import Workload
from vhostnet.bench.workloads.cost import COST, SCALE
from vhostnet.bench.workloads.guests import GUESTS
from vhostnet.bench.workloads.latency import LATENCY
from vhostnet.bench.workloads.memory import PRIVATE
from vhostnet.bench.workloads.nested import NESTED
from vhostnet.bench.workloads.overhead import OVERHEAD
from vhostnet.bench.workloads.own import G2D_OWN
from vhostnet.bench.workloads.rings import D2G, G2D, LOOP
from vhostnet.bench.workloads.taps import G2TAP, TAP2G
from vhostnet.bench.workloads.tcp_streams import G2TAP_TCP
from vhostnet.bench.workloads.vm2vm import VM2VM
from vhostnet.errors import UsageError

WORKLOADS: tuple[Workload, ...] = (
    G2D,
    D2G,
    G2D_OWN,
    LOOP,
    VM2VM,
    G2TAP,
    G2TAP_TCP,
    TAP2G,
    PRIVATE,
    GUESTS,
    NESTED,
    LATENCY,
    COST,
    SCALE,
    OVERHEAD,
)


def chosen(names: list[str]) -> list[Workload]:
    """The workloads of these names, all of them if there are none.

    Raises:
        UsageError: there is no such workload.
    """
    known = {workload.name: workload for workload in WORKLOADS}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no workload {name!r}; there are {', '.join(known)}")
    return [workload for workload in WORKLOADS if workload.name in names or not names]
