"""Commands of captures (docs/observe-packets.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhostnet.protocol.qmp_session import QmpError

from .daemon import Daemon, cards_of

if TYPE_CHECKING:
    from vhostnet.capture.capture import Capture


def capture_start(
    daemon: Daemon,
    *,
    file: str,
    device: str | None = None,
    filter: str = "",
    snaplen: int = 262144,
    count: int = 0,
    rotate_mib: int = 0,
) -> dict[str, Any]:
    """Write the packets of a device, or of all there are, into a pcapng file from now on.

    The other options are those of --pcap: filter, bytes kept of each packet, number of packets,
    MiB after which a new file begins.  A process has one capture at a time.
    """
    from vhostnet.capture import running
    from vhostnet.capture.capture import CaptureOptions

    if file == "-":
        raise QmpError("capture-start: '-' is for --pcap: the daemon's standard output")
    if not 0 < snaplen <= 262144 or count < 0 or rotate_mib < 0:
        raise QmpError("capture-start: snaplen is 1 to 262144, count and rotate-mib at least 0")
    nets = [net for card in cards_of(daemon, device) for net in card.nets]
    options = CaptureOptions(file, filter, snaplen, count, rotate_mib << 20)
    return _facts(running.start(options, nets))


def capture_stop(daemon: Daemon) -> dict[str, Any]:  # noqa: ARG001
    """End the capture; returns what it has."""
    from vhostnet.capture import running

    capture = running.stop()
    if capture is None:
        raise QmpError("capture-stop: there is no capture")
    return _facts(capture)


def query_capture(daemon: Daemon) -> dict[str, Any]:  # noqa: ARG001
    """The capture that runs: packets written, and of each queue those seen, accepted and lost."""
    from vhostnet.capture import running

    capture = running.current()
    return {"running": False} if capture is None else _facts(capture)


def _facts(capture: Capture) -> dict[str, Any]:
    return {
        "running": not capture.is_stopped and not capture.ended,
        "file": capture.options.path,
        "filter": capture.options.filter,
        "files": capture.files,
        "packets": capture.packets,
        **({"ended": capture.ended} if capture.ended else {}),
        "queues": [
            {"queue": n.name, "seen": n.seen, "accepted": n.accepted, "lost": n.lost}
            for n in capture.counts()
        ],
    }
