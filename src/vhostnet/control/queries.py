"""Commands that read.  Nothing here parks a worker: what one writes is read as it is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vhostnet import __version__
from vhostnet.datapath.codes import RING_ERRORS
from vhostnet.observe.statistics import device_statistics
from vhostnet.uapi.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES
from vhostnet.uapi.virtio import feature_names

from .daemon import Card, Daemon, cards_of

if TYPE_CHECKING:
    from vhostnet.device.vhost_net import VhostNet
    from vhostnet.device.vring import Vring

#: Most ranges of an IOTLB that are told; a guest can fill it with many thousands.
MAX_RANGES = 256

_DIRECTION = ("rx", "tx")
#: vhost-user's own, which virtio's names do not have.
_NAMELESS = f"bit{VHOST_USER_F_PROTOCOL_FEATURES}"


def query_version(daemon: Daemon) -> dict[str, Any]:
    """Which program this is, and what it runs on."""
    import numba

    return {
        "version": __version__,
        "command": daemon.door,
        "pid": os.getpid(),
        "python": platform.python_version(),
        "numba": numba.__version__,
        "kernel": platform.release(),
    }


def query_devices(daemon: Daemon, *, device: str | None = None) -> list[dict[str, Any]]:
    """All devices, or one: front-end, backend, negotiated features."""
    return [_device(card) for card in cards_of(daemon, device)]


def query_vrings(daemon: Daemon, *, device: str | None = None) -> list[dict[str, Any]]:
    """All rings: indices, distances, switches, the last error.

    For a split ring `last-avail` is the next avail entry to take, `avail` the newest index seen,
    `last-used` the next used entry to write; `waiting` chains were seen and not taken, and
    `unpublished` ones are done and not yet told.  Indices run freely, modulo 65536.
    """
    return [_vring(*found) for found in _rings(daemon, device)]


def query_memory(daemon: Daemon, *, device: str | None = None) -> list[dict[str, Any]]:
    """The guest's memory as each device has it, and what a virtual IOMMU allows of it."""
    return [_memory(card) for card in cards_of(daemon, device)]


def query_workers(daemon: Daemon, *, device: str | None = None) -> list[dict[str, Any]]:
    """The worker threads: what they have done, and the processor time that it took."""
    return [
        _worker(card, net)
        for card in cards_of(daemon, device)
        for net in card.nets
        if net.worker is not None
    ]


def query_stats(daemon: Daemon, *, device: str | None = None) -> list[dict[str, Any]]:
    """All that each device has counted since it was made: rings, workers, backend.

    They go on over sessions, and are those of the metrics; `clock-ns` is for rates.
    """
    return [
        {**device_statistics(card), "clock-ns": time.monotonic_ns()}
        for card in cards_of(daemon, device)
    ]


def _rings(daemon: Daemon, device: str | None) -> Iterator[tuple[Card, VhostNet, int, Vring]]:
    """(card, pair, index of the ring in the card, ring) of all rings."""
    for card in cards_of(daemon, device):
        for pair, net in enumerate(card.nets):
            for ring in net.vqs:
                yield card, net, 2 * pair + ring.index, ring


def _queue(number: int) -> str:
    return f"{_DIRECTION[number % 2]}{number // 2}"


def _device(card: Card) -> dict[str, Any]:
    features = card.nets[0].features
    return {
        "device": card.name,
        **card.facts,
        "queue-pairs": len(card.nets),
        "running": any(ring.active for net in card.nets for ring in net.vqs),
        "features": [
            name if name != _NAMELESS else "PROTOCOL_FEATURES" for name in feature_names(features)
        ],
        "features-mask": f"{features:#x}",
    }


def _vring(card: Card, net: VhostNet, number: int, ring: Vring) -> dict[str, Any]:
    vq = ring.vq
    error = int(vq["last_error"])
    return {
        "device": card.name,
        "vring": number,
        "queue": _queue(number),
        "running": net.active(ring.index),
        "format": _format(ring),
        "num": ring.num,
        **(_packed_position(vq) if ring.format.is_packed else _split_position(vq)),
        "kicks-wanted": not int(vq["used_flags"]),
        "kick": _kick(vq),
        "call": int(vq["call_fd"]) >= 0,
        "err": int(vq["err_fd"]) >= 0,
        "discards": bool(vq["discard"]),
        "event-idx": bool(vq["event_idx"]),
        "mergeable": bool(vq["mergeable"]),
        "hdr-len": int(vq["hdr_len"]),
        "busy-poll-us": int(vq["busyloop_ns"]) >> 10,
        "ring-errors": int(vq["ring_errors"]),
        "last-error": RING_ERRORS.get(error, str(error)) if error else None,
    }


def _format(ring: Vring) -> str:
    name = "packed" if ring.format.is_packed else "split"
    return f"{name}, remote" if ring.is_remote else name


def _kick(vq: Any) -> str | None:
    if vq["polled"]:
        return "polled"
    if int(vq["kick_fd"]) < 0:
        return None
    return "pipe" if vq["kick_is_pipe"] else "eventfd"


def _split_position(vq: Any) -> dict[str, int]:
    last_avail, avail = int(vq["last_avail_idx"]), int(vq["avail_idx"])
    return {
        "last-avail": last_avail,
        "avail": avail,
        "last-used": int(vq["last_used_idx"]),
        "waiting": (avail - last_avail) & 0xFFFF,
        "unpublished": int(vq["done_idx"]),
    }


def _packed_position(vq: Any) -> dict[str, int]:
    return {
        "avail-pos": int(vq["avail_pos"]),
        "avail-wrap": int(vq["avail_wrap"]),
        "used-pos": int(vq["used_pos"]),
        "used-wrap": int(vq["used_wrap"]),
        "unpublished": int(vq["done_idx"]),
    }


def _memory(card: Card) -> dict[str, Any]:
    net = card.nets[0]
    regions = [
        {
            "gpa": f"{r.gpa:#x}",
            "size": r.size,
            "uva": f"{r.uva:#x}",
            "inode": r.identity[1],
            "offset": r.identity[2],
            "lost": r.mapping.is_lost,
        }
        for r in net.memory.regions
    ]
    size = sum(region.size for region in net.memory.regions)
    found: dict[str, Any] = {"device": card.name, "size": size, "regions": regions}
    if net.iotlb is not None:
        ranges = net.iotlb.array[:MAX_RANGES]
        found["iotlb-entries"] = len(net.iotlb.array)
        found["iotlb"] = [
            {
                "iova": f"{int(e['iova']):#x}",
                "size": int(e["iova_size"]),
                "access": ("-", "r", "w", "rw")[int(e["perm"]) & 3],
            }
            for e in ranges
        ]
    return found


def _worker(card: Card, net: VhostNet) -> dict[str, Any]:
    worker = net.worker
    assert worker is not None
    return {
        "device": card.name,
        "worker": worker.name,
        "queue-pair": net.pair,
        "tid": worker.tid,
        "parked": worker.is_parked,
        "adaptive": bool(worker.record[0]["adaptive"]),
        **{name.replace("_", "-"): count for name, count in net.worker_counters().items()},
    }
