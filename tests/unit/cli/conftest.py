"""What a command that is run in the tests' own process changes, and leaves as it was."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

from vhostnet.cli.logs import AREAS


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    logger = logging.getLogger("vhostnet")
    areas = [logger.getChild(area) for area in AREAS]
    handlers, levels = logger.handlers[:], [one.level for one in (logger, *areas)]
    yield
    logger.handlers[:] = handlers
    for one, level in zip((logger, *areas), levels, strict=True):
        one.setLevel(level)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
