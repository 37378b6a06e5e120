"""The capture that runs: a process has at most one, since a queue has one ring of blocks.

To be used by control's thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from vhostnet.capture.capture import Capture, CaptureOptions
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import UsageError

_current: Capture | None = None
_takes_all = False


def start(options: CaptureOptions, nets: Iterable[VhostNet] | None = None) -> Capture:
    """Begin a capture; UsageError if one runs, or HostError.

    Args:
        nets: the queue pairs that take part; None: all that `joined` tells of from now on.
    """
    global _current, _takes_all
    if _current is not None and not _current.ended:
        raise UsageError(f"a capture into {_current.options.path} runs: stop it first")
    stop()
    capture = Capture(options)
    for net in nets or ():
        capture.attach(net)
    _current, _takes_all = capture, nets is None
    return capture


def joined(nets: Iterable[VhostNet]) -> None:
    """A device was made: it takes part in a capture of all."""
    if _current is not None and _takes_all and not _current.ended:
        for net in nets:
            _current.attach(net)


def current() -> Capture | None:
    """The capture that runs, or has ended by itself and was not stopped yet."""
    return _current


def stop() -> Capture | None:
    """End it; returns what it was."""
    global _current
    capture, _current = _current, None
    if capture is not None:
        capture.stop()
    return capture
