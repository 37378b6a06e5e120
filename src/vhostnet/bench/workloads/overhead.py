"""overhead: what it costs to be looked at, and to be confined.

Counters and histograms are always kept, so this does not compare with and without: it compares a
device that is looked at with one that is not.  What counting itself costs was measured between two
revisions, see docs/design.md.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from vhostnet.bench.model import OURS, Case, Metric, Run, Side, Workload
from vhostnet.bench.pair import our_device, our_driver
from vhostnet.bench.workloads.rings import NEEDS
from vhostnet.bench.workloads.taps import ours_g2tap
from vhostnet.control.client import ControlClient
from vhostnet.errors import HostError

UNOBSERVED, UNCONFINED = "not looked at", "--sandbox none"
SCRAPE_S = 1.0
_SIZE = 64
_PATIENCE_S = 10.0
#: Does something beside a device that runs; the options of the device, with DIR for its folder.
_Look = tuple[tuple[str, ...], Callable[[Run], AbstractContextManager[None]]]


def _nothing_else(_run: Run) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


_UNSEEN: _Look = (), _nothing_else


def g2d(run: Run, look: _Look = _UNSEEN, *, packed: bool = False) -> Mapping[str, float]:
    """Our driver sends to our null backend."""
    return _moved(run, "null", "send", look, packed)


def d2g(run: Run, look: _Look = _UNSEEN, *, packed: bool = False) -> Mapping[str, float]:
    """Our generator sends to our driver."""
    return _moved(run, f"gen:size={_SIZE}", "receive", look, packed)


def _moved(run: Run, backend: str, what: str, look: _Look, packed: bool) -> Mapping[str, float]:
    options, meanwhile = look
    places = [word.replace("DIR", str(run.folder)) for word in options]
    with our_device(run, backend, *places), meanwhile(run):
        return {"mpps": our_driver(run, what, size=_SIZE, packed=packed)["mpps"]}


@contextlib.contextmanager
def _scraping(run: Run) -> Iterator[None]:
    """Ask for the metrics once in SCRAPE_S meanwhile; HostError if there was no answer."""
    ended = threading.Event()
    failures: list[str] = []

    def ask() -> None:
        while True:
            try:
                scrape(run.folder / "metrics")
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


@contextlib.contextmanager
def _captured_before(run: Run) -> Iterator[None]:
    """A capture has begun and ended before."""
    with ControlClient(str(run.folder / "control")) as control:
        control.execute("capture-start", file=str(run.folder / "before.pcapng"))
        control.execute("capture-stop")
    yield


_SCRAPED: _Look = ("--metrics", "unix:DIR/metrics"), _scraping
_IDLE: _Look = ("--control", "DIR/control"), _captured_before
_NOTHING: _Look = ("--pcap", "/dev/null", "--pcap-filter", "tcp port 9"), _nothing_else
_RUNNING: _Look = ("--pcap", "/dev/null", "--pcap-snaplen", "64"), _nothing_else
_UNSEALED: _Look = ("--sandbox", "none"), _nothing_else


def _case(
    name: str, ours: Side, others: Mapping[str, Side], bar: float | None = None, **facts: int
) -> Case:
    bars = {} if bar is None else dict.fromkeys(others, bar)
    return Case(
        f"{name} {_SIZE} B",
        {"size": _SIZE},
        (Metric("mpps", "packets", "million/s", "higher", bars),),
        {OURS: ours, **others},
        busy_threads=facts.get("busy_threads", 2),
        quick=bool(facts.get("quick")),
    )


def _look_case(
    name: str, look: _Look, bar: float | None = None, *, packed: bool = False, **facts: int
) -> Case:
    ours = partial(g2d, look=look, packed=packed)
    others = {UNOBSERVED: partial(g2d, packed=packed)}
    return _case(f"{name}, g2d {'packed' if packed else 'split'}", ours, others, bar, **facts)


def _cases() -> Sequence[Case]:
    return [
        _look_case("scraped once a second", _SCRAPED, 0.97, quick=1),
        _look_case("scraped once a second", _SCRAPED, 0.97, packed=True),
        _look_case("a capture that has ended", _IDLE, 0.98),
        _look_case("a capture whose filter takes nothing", _NOTHING),
        _look_case("a capture that runs", _RUNNING, busy_threads=3),
        _case(
            "a capture that runs, d2g split",
            partial(d2g, look=_RUNNING),
            {UNOBSERVED: d2g},
            busy_threads=3,
        ),
        _case(
            "in the sandbox, g2d split",
            g2d,
            {UNCONFINED: partial(g2d, look=_UNSEALED)},
        ),
        _case(
            "in the sandbox, d2g split",
            d2g,
            {UNCONFINED: partial(d2g, look=_UNSEALED)},
        ),
        _case(
            "in the sandbox, g2tap split",
            partial(ours_g2tap, size=_SIZE),
            {UNCONFINED: partial(ours_g2tap, size=_SIZE, options=_UNSEALED[0])},
        ),
    ]


OVERHEAD = Workload(
    "overhead",
    "what it costs to be looked at, and to be confined",
    "Our own driver sends 64-byte packets flat out to `vhostnet serve --backend null`, or "
    "receives them from `gen`. *Scraped*: the metrics are read once a second or not at all; the "
    "daemon, which renders them, has one core with its worker (Prometheus itself asks every 15 s). "
    "*A capture*: into /dev/null, 64 bytes of each packet; its writer and the worker have one core "
    "together, and what the writer cannot keep up with is dropped from the capture, and counted. "
    "Counters and histograms are kept in all. *In the sandbox*: as by default, beside `--sandbox "
    "none`; into the TAP goes one system call a packet, from DPDK's driver.",
    (*NEEDS, "ip"),
    _cases,
)
