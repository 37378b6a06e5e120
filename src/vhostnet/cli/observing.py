"""What the commands that serve have in common to be looked at: the metrics' door, the watchdog.

What imports numba or prometheus_client is imported in functions.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from vhostnet.errors import naming
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.metrics_server import MetricsAddress, MetricsServer, listen, log

if TYPE_CHECKING:
    from vhostnet.observe.statistics import Observed


class MetricsDoor:
    """The door, listening from the start and answering once there are devices to tell of.

    Args:
        address: None: there is no door.

    Raises:
        HostError: naming the option.
    """

    def __init__(self, address: MetricsAddress | None) -> None:
        self._address = address
        self._listening: tuple[socket.socket, Callable[[], None]] | None = None
        if address is not None:
            with naming("--metrics"):
                self._listening = listen(address)

    def close(self) -> None:
        """Stop listening.  Harmless the second time."""
        if self._listening is not None:
            self._listening[1]()

    @contextlib.contextmanager
    def answering(self, loop: Loop, devices: Callable[[], Iterable[Observed]]) -> Iterator[None]:
        """Answer for the length of the block, then stop listening.

        Args:
            devices: all there are, now.
        """
        if self._listening is None:
            yield
            return
        from vhostnet.observe.exposition import CONTENT_TYPE, render

        sock, close = self._listening
        server = MetricsServer(loop, sock, close, lambda: render(devices()), CONTENT_TYPE)
        log.info("metrics at %s", _where(self._address, sock))
        try:
            yield
        finally:
            server.close()


@contextlib.contextmanager
def observed(
    loop: Loop, devices: Callable[[], Iterable[Observed]], metrics: MetricsDoor
) -> Iterator[None]:
    """All that looks at the devices, for the length of the block.

    Args:
        devices: all there are, now.
    """
    from vhostnet.observe.watchdog import Watchdog

    end = Watchdog(devices).run(loop.call_later)
    try:
        with metrics.answering(loop, devices):
            yield
    finally:
        end()


def _where(address: MetricsAddress | None, sock: socket.socket) -> str:
    """The address, with the port that the kernel chose."""
    if address is None or address.path:
        return str(address)
    return str(MetricsAddress(address.host, sock.getsockname()[1]))
