"""Log lines about one device, at a bounded rate.

What a peer does decides how many lines there are: a thousand connections full of garbage would
be two thousand lines.  So each device may log `BURST` lines in `INTERVAL_S`; the rest are
counted and, when the interval is over, the last of them is logged with their number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

BURST = 10
INTERVAL_S = 1.0


class PeerLog:
    """A logger that writes the device's name before each line and knows when to be short.

    Args:
        logger: where lines go.
        name: of the device, for example "dev0".
        call_later: of the loop; closes an interval.
    """

    def __init__(
        self,
        logger: logging.Logger,
        name: str,
        call_later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._logger = logger
        self.name = name
        self._call_later = call_later
        self._lines = 0
        self._last: tuple[int, str] | None = None

    def info(self, text: str) -> None:
        """What happened, as expected."""
        self._write(logging.INFO, text)

    def warning(self, text: str) -> None:
        """What went wrong and is not this program's fault."""
        self._write(logging.WARNING, text)

    def bug(self, text: str) -> None:
        """A bug of this program: call it while the exception is being handled."""
        self._write(logging.ERROR, text, has_traceback=True)

    def flush(self) -> None:
        """Write what was held back and begin a new interval."""
        if self._last is not None:
            level, text = self._last
            n_more = self._lines - BURST - 1
            more = f" ({n_more} more like this)" if n_more else ""
            self._logger.log(level, "%s: %s%s", self.name, text, more)
        self._lines = 0
        self._last = None

    def _write(self, level: int, text: str, has_traceback: bool = False) -> None:
        if self._lines == 0:
            self._call_later(INTERVAL_S, self.flush)
        self._lines += 1
        if self._lines > BURST:
            self._last = (level, text)
        else:
            self._logger.log(level, "%s: %s", self.name, text, exc_info=has_traceback)
