"""One virtqueue as control sees it: addresses, descriptors, position.

The record is what kernels see.  Methods here only change it; that the worker is parked
meanwhile is the caller's duty (`vhost_net.VhostNet`).

States of a ring:

STOPPED   no backend
    Operations:  num, base, addresses, descriptors may be set in any order
    Caveats:     its memory is not touched, whatever is in its addresses
ACTIVE    has a backend
    Operations:  kick, call and err descriptors may be swapped; base may be read
    Caveats:     num and base are refused (EBUSY); its memory must stay mapped
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vhostnet.datapath.codes import RING_ERROR_RULES
from vhostnet.datapath.layout import (
    BATCH_BUCKETS,
    BATCH_SHIFT,
    COUNTERS,
    IOVEC,
    KNOWN_DESCS,
    LATENCY_BUCKETS,
    LATENCY_SHIFT,
    PIECE,
    STAGE_IOVECS,
    STAGE_PIECES,
    STAGE_SIZE,
    VHOST_ACCESS_RO,
)
from vhostnet.datapath.ring_access import forget_ring
from vhostnet.errors import PeerError
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX,
    VNET_HDR_LEN,
    VNET_HDR_MRG_LEN,
    VRING_DESC_SIZE,
)

from .memory import MemoryTable
from .ring_formats import (
    PACKED,
    REMOTE_PACKED,
    REMOTE_SPLIT,
    SPLIT,
    RingFormat,
    VringAddresses,
)

SYSCALLS = ("poll", "ppoll")

VHOST_NET_VQ_RX = 0
VHOST_NET_VQ_TX = 1


#: Before and behind the copy of a part: a word is fetched and pushed as eight bytes.
SHADOW_SLACK = 8
#: VHOST_SET_VRING_ADDR flag: log our writes to the used ring.
VHOST_VRING_F_LOG = 0


class AddressSpace(Protocol):
    """What a ring's addresses mean: the front-end's own, or I/O virtual ones."""

    def lookup(self, address: int, size: int, access: int) -> tuple[int | None, int]:
        """(hva, 0) if the range is there in one piece, else (None, first missing address)."""


@dataclass(slots=True)
class RemoteOwner:
    """The process whose memory is reached with system calls (owner_memory_raw.py).

    Attributes:
        pid: thread group.
        mem_fd: its /proc/PID/mem, for reading and writing; whoever made this closes it.
        batched: the pid is certainly this process for as long as this is true, so a call may
            name it.
    """

    pid: int
    mem_fd: int
    batched: bool


class _Stage:
    """What the data path needs to work on a ring that is not in our memory."""

    def __init__(self, owner: RemoteOwner) -> None:
        self.owner = owner
        self.bytes = np.zeros(STAGE_SIZE, np.uint8)
        self.pieces = np.zeros(STAGE_PIECES, PIECE)
        self.local = np.zeros(STAGE_IOVECS, IOVEC)
        self.remote = np.zeros(STAGE_IOVECS, IOVEC)
        self.look = np.zeros(KNOWN_DESCS * VRING_DESC_SIZE, np.uint8)
        self.shadows: dict[str, Any] = {}

    def fill_in(self, vq: Any) -> None:
        """Tell the record of a ring."""
        vq["owner_pid"], vq["owner_mem_fd"] = self.owner.pid, self.owner.mem_fd
        vq["owner_batched"] = self.owner.batched
        vq["stage_hva"] = self.bytes.ctypes.data
        vq["pieces_hva"] = self.pieces.ctypes.data
        vq["local_hva"] = self.local.ctypes.data
        vq["remote_hva"] = self.remote.ctypes.data
        if "look_hva" in vq.dtype.names:
            vq["look_hva"] = self.look.ctypes.data

    def shadow(self, field: str, size: int) -> int:
        """Our address of the copy of one part; words are fetched with their neighbours."""
        whole = SHADOW_SLACK + size + SHADOW_SLACK
        if field not in self.shadows or len(self.shadows[field]) < whole:
            self.shadows[field] = np.zeros(whole, np.uint8)
        return int(self.shadows[field].ctypes.data) + SHADOW_SLACK


@dataclass(frozen=True, slots=True)
class HistogramReading:
    """What a histogram has at a moment.

    Attributes:
        counts: (bound, values up to it and above the bound before); the last bound is None: all
            that was larger.
        total: the sum of all values.
    """

    counts: tuple[tuple[int | None, int], ...]
    total: int


class Histogram:
    """Memory for one histogram of datapath/counting.py."""

    def __init__(self, shift: int, n_buckets: int) -> None:
        self._bounds = (*(1 << (shift + k) for k in range(n_buckets)), None)
        self._words = np.zeros(2 + n_buckets, np.int64)

    @property
    def hva(self) -> int:
        return int(self._words.ctypes.data)

    def read(self) -> HistogramReading:
        """From any thread, at any time."""
        total, *counts = self._words.tolist()
        return HistogramReading(tuple(zip(self._bounds, counts, strict=True)), total)


class Vring:
    """A virtqueue of one instance; `index` is 0 for RX (to the guest), 1 for TX."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.format = SPLIT
        self.record: Any = np.zeros(1, SPLIT.dtype)
        self._at_reset: dict[str, int] = {}
        self._one = np.ones(1, np.uint64)
        self._desc_copy = np.zeros(VRING_DESC_SIZE, np.uint8)
        self._timespec = np.zeros(2, np.int64)
        self._errors = np.zeros(len(RING_ERROR_RULES), np.int64)
        self._batches = Histogram(BATCH_SHIFT, BATCH_BUCKETS)
        self._latencies = Histogram(LATENCY_SHIFT, LATENCY_BUCKETS)
        self._capture_hva = 0
        self.addresses: VringAddresses | None = None
        self._stage: _Stage | None = None
        self.reset()

    @property
    def vq(self) -> Any:
        """The one record, for reading and writing fields."""
        return self.record[0]

    @property
    def num(self) -> int:
        return int(self.vq[self.format.num_field])

    @property
    def active(self) -> bool:
        return bool(self.vq["active"])

    def reset(self) -> None:
        """Linux vhost_vq_reset(): as after open.  Descriptors must have been taken out.

        What was counted stays: a counter that falls would be taken for a restart of ours.
        """
        totals = self.totals()
        self.format = SPLIT
        record: Any = np.zeros(1, SPLIT.dtype)
        for name, count in totals.items():
            record[name] = count
        self.record = record
        self._at_reset = totals
        self._stage = None
        vq = self.vq
        vq[self.format.num_field] = 1
        vq["kick_fd"] = vq["call_fd"] = vq["err_fd"] = vq["log_fd"] = -1
        vq["one_hva"] = self._one.ctypes.data
        vq["desc_copy_hva"] = self._desc_copy.ctypes.data
        vq["timespec_hva"] = self._timespec.ctypes.data
        vq["capture_hva"] = self._capture_hva
        vq["errors_hva"] = self._errors.ctypes.data
        vq["batch_hva"] = self._batches.hva
        vq["latency_hva"] = self._latencies.hva
        self.addresses = None

    def set_features(self, features: int, *, num_buffers_for_version_1: bool = True) -> None:
        """Derive what the data path needs from the acked features (see linux_abi.py)."""
        self._set_format(self._format_of(bool(features >> VIRTIO_F_RING_PACKED & 1)))
        vq = self.vq
        if self._stage is not None:
            self._stage.fill_in(vq)
        mergeable = bool(features >> VIRTIO_NET_F_MRG_RXBUF & 1)
        modern = bool(features >> VIRTIO_F_VERSION_1 & 1)
        vq["hdr_len"] = VNET_HDR_MRG_LEN if mergeable or modern else VNET_HDR_LEN
        vq["mergeable"] = mergeable
        vq["set_num_buffers"] = mergeable or (modern and num_buffers_for_version_1)
        vq["event_idx"] = features >> VIRTIO_RING_F_EVENT_IDX & 1
        vq["notify_on_empty"] = features >> VIRTIO_F_NOTIFY_ON_EMPTY & 1
        vq["log_all"] = features >> VHOST_F_LOG_ALL & 1
        in_order = bool(features >> VIRTIO_F_IN_ORDER & 1)
        # a packed receive ring completes one by one, which IN_ORDER allows
        vq["in_order"] = in_order and not self.format.is_packed
        vq["one_used_a_batch"] = in_order and self.index == VHOST_NET_VQ_TX

    def _format_of(self, is_packed: bool) -> RingFormat:
        if self._stage is None:
            return PACKED if is_packed else SPLIT
        return REMOTE_PACKED if is_packed else REMOTE_SPLIT

    def _set_format(self, new: RingFormat) -> None:
        """Change the ring's format; what both formats have is kept."""
        if new is self.format:
            return
        old_record, base, num = self.record, self.format.get_base(self.vq), self.num
        old, self.format = self.format, new
        record: Any = np.zeros(1, new.dtype)
        for name in set(old_record.dtype.names) & set(new.dtype.names or ()):
            record[name] = old_record[name]
        self.record = record
        self.vq[new.num_field] = num
        if new.is_packed != old.is_packed:  # two ways to count positions; such a ring does not run
            new.set_base(self.vq, base if new.is_base(base) else 0)

    @property
    def is_remote(self) -> bool:
        """Whether `set_remote` was called."""
        return self._stage is not None

    def set_remote(self, owner: RemoteOwner) -> None:
        """Reach the ring and its buffers with system calls from now on; place it anew."""
        self._stage = _Stage(owner)
        self._set_format(self._format_of(self.format.is_packed))
        self._stage.fill_in(self.vq)

    def stop_batching(self) -> None:
        """The owner's pid may soon be another program: /proc/PID/mem only."""
        if self._stage is not None:
            self._stage.owner.batched = False
            self._stage.fill_in(self.vq)

    def set_num(self, num: int) -> None:
        """Entries; raises PeerError EBUSY while active, EINVAL for a bad size."""
        if self.active:
            raise PeerError(f"ring {self.index}: its size cannot change while it runs", errno.EBUSY)
        if not self.format.is_size(num):
            what = "from 1 to" if self.format.is_packed else "a power of two up to"
            raise PeerError(f"ring {self.index}: size {num} is not {what} 32768")
        self.vq[self.format.num_field] = num

    def set_base(self, base: int) -> None:
        """Next avail entry to take; raises PeerError EBUSY while active, EINVAL above 0xffff."""
        if self.active:
            raise PeerError(f"ring {self.index}: its base cannot change while it runs", errno.EBUSY)
        if not self.format.is_base(base):
            raise PeerError(f"ring {self.index}: base {base:#x} is beyond 0xffff")
        self.format.set_base(self.vq, base)

    def get_base(self) -> int:
        """Where to go on; see the format for what the bits mean."""
        return self.format.get_base(self.vq)

    def check_base(self) -> None:
        """Raise PeerError EINVAL if the ring cannot start where it is: beyond its size."""
        if not self.format.is_within(self.vq):
            raise PeerError(
                f"ring {self.index}: base {self.get_base():#x} is beyond its {self.num} entries"
            )

    def better_base(self) -> int | None:
        """What the guest's memory says of the position, if it contradicts the base; placed."""
        return self.format.better_base(self.vq)

    def set_addresses(self, addresses: VringAddresses) -> None:
        """Remember where the parts lie; raises PeerError EINVAL for a bad alignment."""
        if addresses.avail_uva % 2 or addresses.used_uva % 4:
            raise PeerError(
                f"ring {self.index}: avail {addresses.avail_uva:#x} must be 2-aligned, "
                f"used {addresses.used_uva:#x} 4-aligned"
            )
        self.addresses = addresses

    def set_log_used(self, gpa: int | None) -> None:
        """Log our writes to the used ring, which the guest has at *gpa*; None: do not.

        Raises PeerError EINVAL for a bad alignment.
        """
        if gpa is not None and (gpa % 4 or gpa >= 1 << 63):
            raise PeerError(f"ring {self.index}: log address {gpa:#x} must be 4-aligned")
        self.vq["log_used"] = gpa is not None
        if not self.format.is_packed:
            self.vq["log_used_gpa"] = gpa or 0

    def set_log(self, hva: int, size: int) -> None:
        """Where the dirty bitmap is; size 0: there is none, nothing is logged."""
        self.vq["log_hva"], self.vq["log_size"] = hva, size

    def place(self, space: AddressSpace) -> tuple[int, int] | None:
        """Find the three parts in our address space.

        Returns:
            None when they are found; else (address, access) of the first byte that is
            missing, or that does not follow its neighbours in our memory.

        Source: Linux vq_meta_prefetch() for the order and the access.
        """
        if self.addresses is None:
            return 0, VHOST_ACCESS_RO
        found = {}
        for part in self.format.parts(self.addresses, self.num):
            hva, missing = space.lookup(part.address, part.size, part.access)
            if hva is None or hva % part.align:  # a region may start at an odd place
                return missing, part.access
            found[part.field] = (hva, part.size)
        for name, (hva, size) in found.items():
            self.put_part(name, hva, size)
        self.vq["last_region"] = 0
        forget_ring(self.vq)  # what was fetched may have been elsewhere
        return None

    def put_part(self, field: str, hva: int, size: int) -> None:
        """A part of *size* bytes lies at *hva*: ours, or the owner's."""
        if self._stage is None:
            self.vq[field] = hva
        else:
            self.vq[field] = self._stage.shadow(field, size)
            self.vq[_owners(field)] = hva

    def part(self, field: str) -> int:
        """Where `put_part` was told that it lies."""
        return int(self.vq[field if self._stage is None else _owners(field)])

    def find_log_addresses(self, memory: MemoryTable, virtual: bool) -> None:
        """Where the dirty log has what we write, if SET_VRING_ADDR does not say it; placed.

        Behind an IOMMU its log address is I/O virtual; for packed rings front-ends disagree
        which of the three parts it names.
        """
        vq = self.vq
        if self.format.is_packed:
            vq["log_used_gpa"] = memory.hva_to_gpa(self.part("ring_hva"))
            vq["log_event_gpa"] = memory.hva_to_gpa(self.part("device_hva"))
        elif virtual:
            vq["log_used_gpa"] = memory.hva_to_gpa(self.part("used_hva"))

    def set_capture(self, hva: int) -> None:
        """Capture packets with the CAPTURE record there, whatever becomes of the ring; 0: stop."""
        self._capture_hva = hva
        self.vq["capture_hva"] = hva

    def init_access(self) -> None:
        """Start with what memory says; must be placed."""
        vq = self.vq
        vq["used_flags"] = 0
        vq["done_idx"] = 0
        vq["signal_due"] = 0
        vq["wants_kick"] = 0
        vq["signalled_used_valid"] = 0
        vq["last_error"] = 0
        self.format.init_access(vq)
        vq["active"] = 1

    def look(self) -> tuple[int, bool]:
        """What the driver has made available, of a ring that is active; in the control thread.

        Returns:
            (chains that no handler has taken: in a packed ring 1 stands for any number; whether
            some of them were not even seen).
        """
        return self.format.look(self.vq)

    @property
    def direction(self) -> str:
        """ "rx" or "tx", as the guest sees it."""
        return "rx" if self.index == VHOST_NET_VQ_RX else "tx"

    def signal(self) -> None:
        """Write the call descriptor once, whatever the driver asked for."""
        fd = int(self.vq["call_fd"])
        if fd >= 0 and _has_room(fd):  # full means signalled
            with contextlib.suppress(OSError):
                os.write(fd, self._one.tobytes())

    def take_fd(self, name: str) -> int:
        """Remove one of kick_fd, call_fd, err_fd from the ring and return it (-1 = none)."""
        fd = int(self.vq[name])
        self.vq[name] = -1
        return fd

    def errors(self) -> dict[str, int]:
        """How often each rule of the ring was broken, since the ring was made."""
        return dict(zip(RING_ERROR_RULES, self._errors.tolist(), strict=True))

    def batch_sizes(self) -> HistogramReading:
        """Packets moved in one run of a handler."""
        return self._batches.read()

    def latencies(self) -> HistogramReading:
        """Nanoseconds from a kick's arrival to the first used entry that it brings."""
        return self._latencies.read()

    def counters(self) -> dict[str, int]:
        """What was counted since the last `reset`, by name."""
        return {name: count - self._at_reset[name] for name, count in self.totals().items()}

    def totals(self) -> dict[str, int]:
        """What was counted since the ring was made, by name; from any thread, at any time."""
        vq = self.vq
        return {name: int(vq[name]) for name in COUNTERS}


def _owners(field: str) -> str:
    """The field that has the owner's address of a part."""
    return field.replace("_hva", "_uva")


def _has_room(fd: int) -> bool:
    poll = select.poll()  # not select(): descriptors may be above 1023
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
