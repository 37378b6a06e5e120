"""A capture: the queues that take part in it, and the thread that writes what they give.

Theory of operation
-------------------
Control attaches queues: each direction gets a CAPTURE record with a ring (datapath/capture.py) and
becomes one interface of the file.  The thread looks at the rings every PAUSE_S and writes what they
have, oldest first; a packet waits SETTLE_NS for one of another ring that is older.  Workers and
thread share nothing else, and nobody waits: a disk, or a reader of "-", that is too slow costs
packets of the capture, which are counted, and never one of the guest's.

RUNNING  the thread writes
    Operations:  queues may be attached
ENDED    `stop` was called, the number of packets was reached, or the file cannot be written
    Operations:  `stop`, once more or not; counts may be read
    Caveats:     queues stay attached until `stop`: only control may take their records away.  They
                 see `wanted` and do nothing

A queue whose device is gone (an open file of a character device comes and goes) is let go of when
its ring is empty.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vhostnet.capture.filters import compile_filter
from vhostnet.capture.pcapng import Interface, interface_statistics, section_header
from vhostnet.capture.sink import Sink
from vhostnet.capture.texts import text_table
from vhostnet.datapath.bpf import BPF_MEMWORDS
from vhostnet.datapath.capture_code import load_capture
from vhostnet.datapath.capture_merge import capture_merge
from vhostnet.datapath.layout import CAPTURE, CAPTURE_SCRATCH_SIZE, MAX_FRAME
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import VHOST_NET_VQ_RX, VHOST_NET_VQ_TX

log = logging.getLogger("vhostnet.capture")

#: As tcpdump's default: all of any packet.
SNAPLEN = 262144
#: Of each queue and direction, bytes; touched, and so taken, only when packets come.
RING_SIZE = 8 << 20
PAUSE_S = 0.01
SETTLE_NS = 2_000_000
#: How long the end waits for a file, or a reader, that takes nothing.
STOP_S = 2.0
_OUT_SIZE = 2 * MAX_FRAME
_ALL = 1 << 62
_INBOUND, _OUTBOUND = 1, 2
_DIRECTIONS = {
    VHOST_NET_VQ_RX: ("rx", "received by the guest", _INBOUND),
    VHOST_NET_VQ_TX: ("tx", "sent by the guest", _OUTBOUND),
}


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What is captured, and how.

    Attributes:
        path: file, or "-" for the standard output.
        filter: in libpcap's language; "": all packets.
        snaplen: bytes kept of each packet.
        count: end after so many packets; 0: never.
        rotate: begin a new file after so many bytes; 0: never.
    """

    path: str
    filter: str = ""
    snaplen: int = SNAPLEN
    count: int = 0
    rotate: int = 0


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """What became of one queue's packets: seen, let through by the filter, lost by the capture."""

    name: str
    seen: int
    accepted: int
    lost: int


@dataclass(slots=True)
class _Queue:
    """One queue in one direction.

    Attributes:
        keep: memory that the record points at.
        net: its device, and which of its rings.
    """

    number: int
    name: str
    record: Any
    keep: list[Any]
    net: weakref.ref[VhostNet]
    index: int

    @property
    def is_empty(self) -> bool:
        return int(self.record[0]["blocks_head"]) == int(self.record[0]["blocks_tail"])

    def counts(self) -> QueueCounts:
        seen, accepted, lost = (int(self.record[0][n]) for n in ("seen", "accepted", "lost"))
        return QueueCounts(self.name, seen, accepted, lost)


@dataclass(slots=True)
class _Shared:
    """What control and the thread both touch, under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    queues: list[_Queue] = field(default_factory=list)
    interfaces: list[Interface] = field(default_factory=list)
    described: int = 0


class Capture:
    """A capture that runs until `stop`, or until it has ended by itself.

    Raises UsageError or HostError.

    Attributes:
        packets: written until now.
        ended: why it has ended by itself, or "".
    """

    def __init__(self, options: CaptureOptions, *, ring_size: int = RING_SIZE) -> None:
        self.options = options
        self.packets = 0
        self.ended = ""
        self._ring_size = ring_size
        self._filter = compile_filter(options.filter)
        self._texts = text_table()
        self._codes = load_capture()
        self._shared = _Shared()
        self._gone: list[QueueCounts] = []
        self._out = np.zeros(_OUT_SIZE, np.uint8)
        self._begin_ns = time.time_ns()
        self._stopping = threading.Event()
        self._sink = Sink(options.path, self._heading, self._statistics, options.rotate)
        self._thread = threading.Thread(target=self._main, name="vhostnet-pcap", daemon=True)
        self._thread.start()

    # --- control's side -------------------------------------------------------------------------

    def attach(self, net: VhostNet) -> None:
        """Capture both directions of a queue pair from now on; its worker is parked meanwhile."""
        for index, (direction, description, flags) in _DIRECTIONS.items():
            name = f"{net.name.replace(' ', '')}-{direction}"
            with self._shared.lock:
                number = len(self._shared.interfaces)
                self._shared.interfaces.append(
                    Interface(name, description, self.options.snaplen, self.options.filter)
                )
            record: Any = np.zeros(1, CAPTURE)
            keep = self._fill_in(record[0], number, flags)
            queue = _Queue(number, name, record, keep, weakref.ref(net), index)
            with self._shared.lock:
                self._shared.queues.append(queue)
            net.set_capture(index, int(record.ctypes.data))

    def stop(self) -> None:
        """Detach all queues, write what their rings have, and close the file."""
        for queue in self._queues():
            net = queue.net()
            if net is not None:
                net.set_capture(queue.index, 0)
        self._stopping.set()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.warning("%s: nobody reads it; the capture's end is lost", self.options.path)

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def counts(self) -> list[QueueCounts]:
        """Of all queues that ever took part."""
        return [*self._gone, *(queue.counts() for queue in self._queues())]

    @property
    def files(self) -> int:
        """How many there are by now."""
        return self._sink.files

    def _fill_in(self, capture: Any, number: int, flags: int) -> list[Any]:
        blocks = np.zeros(self._ring_size, np.uint8)
        scratch = np.zeros(CAPTURE_SCRATCH_SIZE, np.uint8)
        memory = np.zeros(BPF_MEMWORDS, np.int64)
        capture["begin_code"], capture["end_code"] = self._codes
        capture["blocks_hva"], capture["blocks_size"] = blocks.ctypes.data, self._ring_size
        capture["interface_id"], capture["packet_flags"] = number, flags
        capture["snaplen"] = self.options.snaplen
        capture["filter_hva"], capture["filter_len"] = self._filter.ctypes.data, len(self._filter)
        capture["filter_memory_hva"] = memory.ctypes.data
        capture["texts_hva"] = self._texts.ctypes.data
        capture["capture_scratch_hva"] = scratch.ctypes.data
        capture["open_len"] = -1
        capture["wanted"] = not self.ended
        return [blocks, scratch, memory, self._filter, self._texts]

    def _queues(self) -> list[_Queue]:
        with self._shared.lock:
            return list(self._shared.queues)

    # --- the thread -----------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while not self._stopping.wait(PAUSE_S) and not self.ended:
                self._drain(time.time_ns() - SETTLE_NS)
            if not self.ended:
                self._drain(_ALL)
            self._sink.close()
        except OSError as e:
            gone = e.errno == errno.EPIPE
            self._end("its reader has gone" if gone else str(e.strerror), is_failure=not gone)
        except Exception:
            self._end("bug in this program", is_failure=False)
            log.exception("%s: bug in this program: the capture ends here", self.options.path)

    def _drain(self, before_ns: int) -> None:
        """Write all that is older."""
        queues = self._queues()
        addresses = np.array([queue.record.ctypes.data for queue in queues], np.int64)
        while not self.ended:
            left = self.options.count - self.packets if self.options.count else _ALL
            size, packets = capture_merge(addresses, len(queues), before_ns, self._out, left)
            new = self._new_interfaces()
            if new:  # in the file that is open: a further one begins with all that are known
                self._sink.write(new, may_rotate=False)
            if size:
                self._sink.write(self._out[:size].data)
            self.packets += packets
            if packets == left:
                self._end(f"{self.packets} packets were captured", is_failure=False)
            if not packets:
                break
        self._let_go()

    def _new_interfaces(self) -> bytes:
        """The blocks of interfaces that came since the file's heading."""
        with self._shared.lock:
            new = self._shared.interfaces[self._shared.described :]
            self._shared.described += len(new)
        return b"".join(interface.block() for interface in new)

    def _heading(self) -> bytes:
        with self._shared.lock:
            known = self._shared.interfaces[: self._shared.described]
        return section_header() + b"".join(interface.block() for interface in known)

    def _statistics(self) -> bytes:
        now = time.time_ns()
        return b"".join(
            interface_statistics(queue.number, self._begin_ns, now, n.seen, n.accepted, n.lost)
            for queue in self._queues()
            if queue.number < self._shared.described
            for n in (queue.counts(),)
        )

    def _let_go(self) -> None:
        """Forget queues whose device is gone, when all that they had is written."""
        gone = [queue for queue in self._queues() if queue.net() is None and queue.is_empty]
        if gone:
            self._gone += [queue.counts() for queue in gone]
            with self._shared.lock:
                self._shared.queues = [q for q in self._shared.queues if q not in gone]

    def _end(self, why: str, *, is_failure: bool) -> None:
        self.ended = why
        for queue in self._queues():
            queue.record[0]["wanted"] = 0
        tell = log.warning if is_failure else log.info
        tell("%s: the capture has ended: %s", self.options.path, why)
