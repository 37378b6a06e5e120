"""g2d and d2g: the bare rings, between a driver and a device that touches every byte.

The driver is DPDK's virtio_user for both sides, and its counters are what is read for both:
the same instrument, whatever device is on the other end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

from vhostnet.bench import imix
from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import WARM_UP_S, dpdk_device, dpdk_driver, our_device
from vhostnet.bench.testpmd import PROGRAM, Testpmd

PEER = "DPDK net_vhost"
SIZES = (64, 256, 1514)
#: Modes in which what arrives is counted, not what is sent.
_RECEIVING = ("rxonly", "flowgen")
#: In place of a size: the mix (see `imix`).
IMIX = 0
NEEDS = (PROGRAM, "stdbuf", "taskset")


def virtio_options(packed: int, mrg_rxbuf: int, in_order: int) -> str:
    """Options of virtio_user."""
    return f"packed_vq={packed},mrg_rxbuf={mrg_rxbuf},in_order={in_order}"


#: What Linux guests use.
VIRTIO = virtio_options(0, 1, 0)


def measure(run: Run, driver: Testpmd, mode: str) -> float:
    """Let a driver send or receive; returns Mpps by its own counters and clock."""
    driver.start(mode)
    time.sleep(WARM_UP_S)
    driver.stats()  # from here on: rates are of the time between two looks
    time.sleep(run.seconds)
    stats = driver.stats()
    return (stats.rx_pps if mode in _RECEIVING else stats.tx_pps) / 1e6


def ours_g2d(run: Run, virtio: str, size: int, queue_pairs: int = 1) -> dict[str, float]:
    """The driver sends, our null backend copies; a worker for each queue pair."""
    options = ["--queue-pairs", str(queue_pairs)] if queue_pairs > 1 else []
    with (
        our_device(run, "null", *options),
        _sender(run, virtio, size, queue_pairs) as driver,
    ):
        return {"mpps": measure(run, driver, _mode(size))}


def peer_g2d(run: Run, virtio: str, size: int, queue_pairs: int = 1) -> dict[str, float]:
    """The driver sends, DPDK's device copies into its own buffers; one thread polls all pairs."""
    with (
        dpdk_device(run, queue_pairs=queue_pairs) as device,
        _sender(run, virtio, size, queue_pairs) as driver,
    ):
        device.start("rxonly")
        return {"mpps": measure(run, driver, _mode(size))}


def ours_d2g(run: Run, virtio: str, size: int) -> dict[str, float]:
    """Our generator sends, the driver counts."""
    with our_device(run, f"gen:size={size or 'imix'}"), dpdk_driver(run, virtio) as driver:
        return {"mpps": measure(run, driver, "rxonly")}


def peer_d2g(run: Run, virtio: str, size: int) -> dict[str, float]:
    """DPDK's device sends, the driver counts."""
    sending = [_txpkts(size)] if size != IMIX else []
    with (
        dpdk_device(run, options=sending, other_ports=_players(run, size)) as device,
        dpdk_driver(run, virtio) as driver,
    ):
        device.start(_mode(size))
        return {"mpps": measure(run, driver, "rxonly")}


def ours_loop(run: Run, virtio: str, size: int) -> dict[str, float]:
    """Our loop backend sends everything back."""
    with our_device(run, "loop"), dpdk_driver(run, virtio, options=[_txpkts(size)]) as driver:
        return {"mpps": measure(run, driver, "flowgen")}


def peer_loop(run: Run, virtio: str, size: int) -> dict[str, float]:
    """testpmd sends everything back, with the addresses swapped."""
    sending, turning = [_txpkts(size)], ["--port-topology=loop"]
    with (
        dpdk_device(run, options=turning) as device,
        dpdk_driver(run, virtio, options=sending) as driver,
    ):
        device.start("macswap")
        return {"mpps": measure(run, driver, "flowgen")}


def _txpkts(size: int) -> str:
    return f"--txpkts={size}"


def _sender(run: Run, virtio: str, size: int, queue_pairs: int) -> AbstractContextManager[Testpmd]:
    """A driver that can send; the mix comes from a port that plays a capture file."""
    options = [_txpkts(size)] if size != IMIX else []
    players = _players(run, size)
    return dpdk_driver(run, virtio, options=options, other_ports=players, queue_pairs=queue_pairs)


def _players(run: Run, size: int) -> list[str]:
    """A port that plays the mix, if it is asked for."""
    if size != IMIX:
        return []
    capture = imix.write(run.folder / "imix.pcap")
    return [f"net_pcap0,rx_pcap={capture},infinite_rx=1"]


def _mode(size: int) -> str:
    return "io" if size == IMIX else "txonly"


def _loop_cases() -> Sequence[Case]:
    return [
        Case(
            f"split mrg_rxbuf=1 in_order=0 {size} B",
            {"packed": 0, "mrg_rxbuf": 1, "in_order": 0, "size": size},
            (Metric("mpps", "packets there and back", "million/s", "higher"),),
            {
                OURS: partial(ours_loop, virtio=VIRTIO, size=size),
                PEER: partial(peer_loop, virtio=VIRTIO, size=size),
            },
        )
        for size in SIZES
    ]


def _cases(g2d: bool) -> Sequence[Case]:
    metric = Metric("mpps", "packets", "million/s", "higher", {PEER: 1.0})
    mine, peers = (ours_g2d, peer_g2d) if g2d else (ours_d2g, peer_d2g)
    return [
        Case(
            f"{'packed' if packed else 'split'} mrg_rxbuf={mrg} in_order={in_order} "
            + (f"{size} B" if size else "IMIX"),
            {"packed": packed, "mrg_rxbuf": mrg, "in_order": in_order, "size": size or "IMIX"},
            (metric,),
            {
                OURS: partial(mine, virtio=virtio, size=size),
                PEER: partial(peers, virtio=virtio, size=size),
            },
            # what Linux guests use
            quick=size == 64 and mrg == 1 and in_order == 0,
        )
        for packed in (0, 1)
        for mrg in (1, 0)
        for in_order in (0, 1)
        for size in (*SIZES, IMIX)
        for virtio in [virtio_options(packed, mrg, in_order)]
    ]


G2D = Workload(
    "g2d",
    "guest to device: a driver sends flat out, the device copies every byte",
    "DPDK's virtio_user (testpmd txonly, one core) sends to `vhostnet serve --backend null`, which "
    "copies every packet whole into memory of its own, or to testpmd rxonly with net_vhost. The "
    "number is the driver's own count of packets that the device took, by its own clock, after a "
    "warm-up. IMIX (7 of 64 B, 4 of 594, 1 of 1514) is played from a capture file by net_pcap "
    "in the driver, for both sides. That the device's copy happens is "
    "shown by tests/frontend/test_null_copies.py.",
    NEEDS,
    lambda: _cases(True),
)

D2G = Workload(
    "d2g",
    "device to guest: the device sends flat out, a driver counts",
    "`vhostnet serve --backend gen:size=N` writes every byte of each frame into the driver's "
    "buffers, or testpmd txonly with net_vhost does. DPDK's virtio_user (testpmd rxonly, one core) "
    "counts what it received, by its own clock, after a warm-up. IMIX: `gen:size=imix`; testpmd io "
    "from a net_pcap port that plays the same mix, which costs it a copy more.",
    NEEDS,
    lambda: _cases(False),
)

LOOP = Workload(
    "loop",
    "loop: both directions at once through one device",
    "DPDK's virtio_user (testpmd flowgen, one core) sends and receives; `vhostnet serve --backend "
    "loop` copies every packet into its queue and out again, testpmd macswap turns the same buffer "
    "round (one copy in, one copy out). The number is what came back, by the driver's counters.",
    NEEDS,
    _loop_cases,
)
