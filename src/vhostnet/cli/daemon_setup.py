"""What the commands that serve have in common: warm kernels, leaving early.

What imports numba is imported in functions.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from vhostnet.backends import backend_kind
from vhostnet.confinement import seal
from vhostnet.errors import EXIT_OK
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

if TYPE_CHECKING:
    from vhostnet.datapath.catalogue import KernelSpec

logger = logging.getLogger("vhostnet")

#: Kernels that this process has.
_loaded: set[str] = set()


def kernels_of(devices: Iterable[DeviceOptions]) -> set[str]:
    """The names of the kernels that devices need."""
    from vhostnet.datapath import catalogue

    wanted = {(backend_kind(device.backend, device.coalesce), device.iommu) for device in devices}
    return {name for kind, iommu in wanted for name in catalogue.kernels_for(kind, iommu=iommu)}


def warm(names: set[str], what_for: str) -> None:
    """Load the machine code of these kernels, compiling what is not there yet.

    Args:
        what_for: for the line that says that it takes some seconds.
    """
    from vhostnet.datapath import catalogue

    if not catalogue.is_warm(names):
        logger.info("compiling the data path for %s (once; some seconds)", what_for)
    report = catalogue.warm(names, lambda _name, _seconds: None)
    _loaded.update(names)
    logger.info(
        "data path ready: %d kernels compiled, %d loaded, %.1f s",
        report.compiled,
        report.loaded,
        report.seconds,
    )


def load_for_later() -> None:
    """Load all that devices which are added later can need, as far as it is compiled already."""
    from vhostnet.datapath import catalogue

    wanted = {
        name
        for kind in ("tap", "coalescing-tap", "null", "loop", "gen", "port")
        for name in catalogue.kernels_for(kind, iommu=True)
    }
    there = wanted - missing(wanted)
    catalogue.warm(there - _loaded)
    _loaded.update(there)


def missing(names: set[str]) -> set[str]:
    """Those of these kernels that this process has not, and that only the compiler can give it."""
    from vhostnet.datapath import catalogue

    return {
        spec.name
        for spec in catalogue.list_kernels()
        if spec.name in names - _loaded and not _is_in_cache(spec)
    }


def _is_in_cache(spec: KernelSpec) -> bool:
    """Whether loading it takes no compiler; Numba itself does not tell (0.68)."""
    from vhostnet.native._jit import JIT_ENABLED

    if not JIT_ENABLED:
        return True
    dispatcher = spec.dispatcher
    cache = dispatcher._cache
    key = cache._index_key(spec.signature, dispatcher.targetctx.codegen())
    try:
        return cache._cache_file.load(key) is not None
    except Exception:
        return False


def load(names: set[str]) -> bool:
    """Have these kernels now, if that takes no compiler; whether it does not."""
    from vhostnet.datapath import catalogue

    if not names <= _loaded:
        if seal.is_sealed() or missing(names):
            return False
        catalogue.warm(names - _loaded)
        _loaded.update(names)
    return True


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Until the loop handles them, SIGTERM and SIGINT end the daemon where it is, status 0.

    There is no session yet, and compiling may take half a minute.
    """

    def leave(_signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(EXIT_OK)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    yield
