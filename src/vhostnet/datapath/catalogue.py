"""The finite list of kernels: every machine code that any configuration can need.

Two entry kernels: `vhost_worker`, specialised by ring format × meaning of addresses × backend,
and `port_worker`, by the ring formats of sender and receiver.  A remote ring is one in memory that
only its owner has.
`vhostnet warm` compiles all of it; a daemon loads what its backends need before it says that
it is ready, and compiles nothing afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from vhostnet.native._jit import CACHE_DIR, JIT_ENABLED
from vhostnet.native.lost_memory_raw import handler_hva

from .capture_code import load_capture
from .layout import (
    COALESCING_TAP,
    GEN,
    IOTLB_ENTRY,
    IOVEC,
    LOOP,
    MAPPED_REGION,
    NULL,
    PACKED_VRING,
    PORT,
    REMOTE_PACKED_VRING,
    REMOTE_VRING,
    RX_HEAD,
    SPLIT_VRING,
    TAP,
    WORKER,
)
from .port_worker import port_worker
from .worker_loop import vhost_worker

_RINGS = {
    "split": SPLIT_VRING,
    "packed": PACKED_VRING,
    "remote": REMOTE_VRING,
    "remote-packed": REMOTE_PACKED_VRING,
}
_REMOTE = ("remote", "remote-packed")
_MEMORIES = {"mapped": MAPPED_REGION, "iotlb": IOTLB_ENTRY}
_BACKENDS = {"tap": TAP, "coalescing-tap": COALESCING_TAP, "null": NULL, "gen": GEN, "loop": LOOP}


@dataclass(frozen=True)
class KernelSpec:
    """One specialisation: a name for humans and the Numba signature.

    Attributes:
        dispatcher: the kernel's function.
        rings: ring formats that it is for, the first one that of the guest that sends.
        memory: what addresses mean.
        backend: the kind of backend.
    """

    name: str
    dispatcher: Any
    rings: tuple[str, ...]
    memory: str
    backend: str
    signature: tuple[Any, ...]

    @property
    def signature_text(self) -> str:
        function = self.name.split("/")[0]
        rings = " to ".join(self.rings)
        return f"{function}({rings} ring, {self.memory} memory, {self.backend} backend)"


@dataclass(frozen=True)
class WarmReport:
    """What `warm` did: kernels compiled, kernels loaded from disk, seconds in all."""

    compiled: int
    loaded: int
    seconds: float


def _vector(dtype: np.dtype[Any]) -> Any:
    return types.Array(numba.from_dtype(dtype), 1, "C")


def list_kernels() -> list[KernelSpec]:
    """Every kernel, in a fixed order."""
    return [*_device_kernels(), *_port_kernels()]


def _device_kernels() -> list[KernelSpec]:
    return [
        KernelSpec(
            f"vhost_worker/{ring}/{memory}/{backend}",
            vhost_worker,
            (ring,),
            memory,
            backend,
            (
                _vector(WORKER),
                _vector(ring_dtype),
                _vector(ring_dtype),
                _vector(memory_dtype),
                _vector(MAPPED_REGION),
                _vector(backend_dtype),
                _vector(backend_dtype),
                _vector(IOVEC),
                _vector(RX_HEAD),
            ),
        )
        for ring, ring_dtype in _RINGS.items()
        for memory, memory_dtype in _MEMORIES.items()
        for backend, backend_dtype in _BACKENDS.items()
        # memory that only its owner has comes with the character device, which has a TAP
        if ring not in _REMOTE or backend == "tap"
    ]


def _port_kernels() -> list[KernelSpec]:
    return [
        KernelSpec(
            f"port_worker/{ring}-{out}/mapped/port",
            port_worker,
            (ring, out),
            "mapped",
            "port",
            (
                _vector(WORKER),
                _vector(_RINGS[ring]),
                _vector(_RINGS[ring]),
                _vector(MAPPED_REGION),
                _vector(_RINGS[out]),
                _vector(_RINGS[out]),
                _vector(MAPPED_REGION),
                _vector(PORT),
                _vector(PORT),
                _vector(IOVEC),
                _vector(IOVEC),
                _vector(RX_HEAD),
            ),
        )
        for ring in ("split", "packed")
        for out in ("split", "packed")
    ]


def kernels_for(backend_kind: str, *, iommu: bool = False) -> list[str]:
    """Names of the kernels that a vhost-user device with this backend can need.

    Args:
        iommu: the device offers ACCESS_PLATFORM.
    """
    memories = ("mapped", "iotlb") if iommu else ("mapped",)
    return [
        k.name
        for k in list_kernels()
        if k.rings[0] not in _REMOTE and k.memory in memories and k.backend == backend_kind
    ]


def kernels_for_character_device(*, packed_rings: bool = False) -> list[str]:
    """Names of the kernels that an open file of the character device can need."""
    rings = tuple(_RINGS) if packed_rings else ("split", "remote")
    return [k.name for k in list_kernels() if k.rings[0] in rings and k.backend == "tap"]


def _marker(name: str) -> Path:
    return CACHE_DIR / (name.replace("/", "-") + ".warm")


def is_warm(names: Iterable[str]) -> bool:
    """Whether all of these were compiled by these very sources before (a hint for humans)."""
    return not JIT_ENABLED or all(_marker(name).exists() for name in names)


def warm(
    names: Iterable[str] | None,
    progress: Callable[[str, float | None], None] = lambda _name, _seconds: None,
) -> WarmReport:
    """Load or compile kernels, all of them if *names* is None, and the SIGBUS handler.

    Args:
        progress: called with (name, None) before each and (name, seconds) after it.
    """
    handler_hva()
    load_capture()
    if not JIT_ENABLED:
        return WarmReport(0, 0, 0.0)
    wanted = None if names is None else set(names)
    compiled = loaded = 0
    begin = time.monotonic()
    for spec in list_kernels():
        if wanted is not None and spec.name not in wanted:
            continue
        started = time.monotonic()
        progress(spec.name, None)
        dispatcher = spec.dispatcher
        hits = sum(dispatcher.stats.cache_hits.values())
        dispatcher.compile(spec.signature)
        if sum(dispatcher.stats.cache_hits.values()) > hits:
            loaded += 1
        else:
            compiled += 1
            marker = _marker(spec.name)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        progress(spec.name, time.monotonic() - started)
    return WarmReport(compiled, loaded, time.monotonic() - begin)
