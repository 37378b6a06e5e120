"""g2d-own: our own driver, because DPDK's cannot send as fast as a device can take.

The peers are whole DPDK pairs, driver and device, with the options that suit them best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from vhostnet.bench.model import OURS, Case, Metric, Run, Side, Workload
from vhostnet.bench.pair import our_device, our_driver
from vhostnet.bench.workloads.rings import NEEDS, SIZES, peer_g2d, virtio_options

_SPLIT, _PACKED = "DPDK pair, split", "DPDK pair, packed"
_BARS = {_SPLIT: 1.4, _PACKED: 1.4}
# Small packets are what the driver limits; large ones are memcpy on every side.
_BAR_SIZE = 64


def ours(run: Run, size: int, packed: bool, in_order: bool) -> Mapping[str, float]:
    """Our driver sends, our null backend copies."""
    with our_device(run, "null"):
        found = our_driver(run, "send", size=size, packed=packed, in_order=in_order)
        return {"mpps": found["mpps"]}


def _cases() -> Sequence[Case]:
    cases = []
    for packed in (False, True):
        for in_order in (False, True):
            for size in SIZES:
                metric = Metric(
                    "mpps", "packets", "million/s", "higher", _BARS if size == _BAR_SIZE else {}
                )
                sides: dict[str, Side] = {
                    OURS: partial(ours, size=size, packed=packed, in_order=in_order),
                    _SPLIT: partial(peer_g2d, virtio=virtio_options(0, 0, 1), size=size),
                    _PACKED: partial(peer_g2d, virtio=virtio_options(1, 0, 1), size=size),
                }
                name = f"{'packed' if packed else 'split'} in_order={int(in_order)} {size} B"
                cases.append(
                    Case(
                        name,
                        {"packed": int(packed), "in_order": int(in_order), "size": size},
                        (metric,),
                        sides,
                        quick=size == _BAR_SIZE and not packed and not in_order,
                    )
                )
    return cases


G2D_OWN = Workload(
    "g2d-own",
    "guest to device with our own driver, beside whole DPDK pairs",
    "As g2d, but the driver is `vhostnet_frontend`'s compiled sender, which writes every byte of "
    "every packet anew and counts what came back. The peers are testpmd as driver and as device, "
    "with the options that gave them most (mrg_rxbuf=0, in_order=1), each ring format.",
    NEEDS,
    _cases,
)
