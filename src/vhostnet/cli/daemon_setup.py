"""What the commands that serve have in common: options, warm kernels, leaving early.

What imports numba is imported in functions.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType

from vhostnet.cli import logs
from vhostnet.cli.parser import number_within
from vhostnet.errors import EXIT_OK

logger = logging.getLogger("vhostnet")

MAX_FD = 2**31 - 1


def add_ready_option(group: argparse._ArgumentGroup, when: str) -> None:
    """Add --ready-fd; *when* ends "when ..."."""
    group.add_argument(
        "--ready-fd",
        metavar="N",
        type=number_within(0, MAX_FD),
        help=f'descriptor to write "READY=1" to, and close, when {when}',
    )


def add_log_options(group: argparse._ActionsContainer) -> None:
    """Add --log-level and --log-format."""
    group.add_argument("--log-level", choices=tuple(logs.LEVELS), default="info")
    group.add_argument("--log-format", choices=tuple(logs.FORMATS), default="text")


def octal_mode(text: str) -> int:
    """A converter for argparse: permissions such as 660."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode such as 660")
    return mode


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
