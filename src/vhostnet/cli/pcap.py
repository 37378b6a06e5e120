"""--pcap and its companions: what a daemon captures from its start to its end.

What imports numba is imported in functions.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vhostnet.cli.options import PCAP_OPTIONS
from vhostnet.errors import HostError, UsageError, naming

if TYPE_CHECKING:
    from vhostnet.capture.capture import Capture

_MIB = 1 << 20
READER_S = 0.1


def check_pcap(settings: Mapping[str, Any]) -> None:
    """Raise UsageError for options that go with --pcap only."""
    for option in PCAP_OPTIONS[1:]:
        if settings["pcap"] is None and settings[option.key] != option.default:
            raise UsageError(f"{option.option_string} goes with --pcap")


def start_pcap(settings: Mapping[str, Any]) -> Capture | None:
    """The capture of --pcap, if it was given; UsageError or HostError, naming the option."""
    if settings["pcap"] is None:
        return None
    from vhostnet.capture import running
    from vhostnet.capture.capture import CaptureOptions

    options = CaptureOptions(
        settings["pcap"],
        settings["pcap-filter"],
        settings["pcap-snaplen"],
        settings["pcap-count"],
        settings["pcap-rotate"] * _MIB,
    )
    with naming("--pcap"):
        while True:
            try:
                return running.start(options)
            except HostError as error:
                if error.errno != errno.ENXIO:
                    raise
                time.sleep(READER_S)  # a pipe: its reader comes after us


@contextlib.contextmanager
def ending_pcap() -> Iterator[None]:
    """At the end of the block the capture ends, whoever has started it."""
    try:
        yield
    finally:
        from vhostnet.capture import running

        running.stop()
