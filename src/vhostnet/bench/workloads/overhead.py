"""overhead: what it costs to be looked at.

Counters and histograms are always kept, so this does not compare with and without: it compares a
device that is looked at with one that is not.  What counting itself costs was measured between two
revisions, see docs/design.md.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from vhostnet.bench.model import OURS, Case, Metric, Run, Workload
from vhostnet.bench.pair import our_device, our_driver
from vhostnet.errors import HostError

UNOBSERVED = "not looked at"
SCRAPE_S = 1.0
_SIZE = 64
_PATIENCE_S = 10.0


def unobserved(run: Run, packed: bool) -> Mapping[str, float]:
    """Our driver sends to our null backend."""
    with our_device(run, "null"):
        return _sent(run, packed)


def scraped(run: Run, packed: bool) -> Mapping[str, float]:
    """The same, and Prometheus asks for the metrics all the while."""
    path = run.folder / "metrics"
    with our_device(run, "null", "--metrics", f"unix:{path}"), _scraping(path):
        return _sent(run, packed)


def _sent(run: Run, packed: bool) -> Mapping[str, float]:
    return {"mpps": our_driver(run, "send", size=_SIZE, packed=packed)["mpps"]}


@contextlib.contextmanager
def _scraping(path: Path) -> Iterator[None]:
    """Ask once in SCRAPE_S for the length of the block; HostError if there was no answer."""
    ended = threading.Event()
    failures: list[str] = []

    def ask() -> None:
        while True:
            try:
                scrape(path)
            except OSError as error:
                failures.append(str(error))
            if ended.wait(SCRAPE_S):
                return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise HostError(f"the metrics are not to be had: {failures[0]}")


def scrape(path: Path) -> bytes:
    """The metrics' text; OSError."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_PATIENCE_S)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")
        data = b""
        while piece := client.recv(1 << 20):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise OSError(head.split(b"\r\n")[0].decode(errors="replace") or "no answer")
    return body


def _cases() -> Sequence[Case]:
    return [
        Case(
            f"scraped once a second, {'packed' if packed else 'split'} {_SIZE} B",
            {"packed": int(packed), "size": _SIZE},
            (Metric("mpps", "packets", "million/s", "higher", {UNOBSERVED: 0.97}),),
            {
                OURS: partial(scraped, packed=packed),
                UNOBSERVED: partial(unobserved, packed=packed),
            },
            quick=not packed,
        )
        for packed in (False, True)
    ]


OVERHEAD = Workload(
    "overhead",
    "what it costs to be looked at",
    "Our own driver sends 64-byte packets flat out to `vhostnet serve --backend null`, whose "
    "metrics are read once a second or not at all; the daemon, which renders them, has one core "
    "with its worker. Prometheus itself asks every 15 s. Counters and histograms are kept in both.",
    ("taskset",),
    _cases,
)
