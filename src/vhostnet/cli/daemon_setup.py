"""What the commands that serve have in common: warm kernels, leaving early.

What imports numba is imported in functions.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterable, Iterator
from types import FrameType

from vhostnet.backends import backend_kind
from vhostnet.errors import EXIT_OK
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

logger = logging.getLogger("vhostnet")


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
    logger.info(
        "data path ready: %d kernels compiled, %d loaded, %.1f s",
        report.compiled,
        report.loaded,
        report.seconds,
    )


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
