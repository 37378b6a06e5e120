"""The kernel's view of one `VhostNet`: what the ioctls of a vhost character device come down to.

Each method is an ioctl whose argument has been copied: preconditions in Linux's order, each
refusal a PeerError with Linux's errno.  A door adds what only it can know: who calls (a caller
that is not the owner meets `check_owner` first), numbers that are no ioctl of ours, arguments
that cannot be read.

What the owner's addresses mean is asked of `OwnerMemory`, which SET_OWNER brings; a descriptor
for SET_BACKEND is resolved by `backends/client_file.py`.

Source: Linux drivers/vhost/vhost.c and net.c.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import select
from collections.abc import Callable, Sequence
from typing import Protocol

from vhostnet.backends.client_file import ClientFile, client_file
from vhostnet.errors import PeerError
from vhostnet.events import tell
from vhostnet.uapi.vhost import (
    VHOST_BACKEND_F_IOTLB_MSG_V2,
    VHOST_NET_F_VIRTIO_NET_HDR,
    VHOST_VRING_F_LOG,
    MemoryRegion,
    VringAddr,
)
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_RING_PACKED,
    mask,
)

from .iotlb_messages import IotlbMessages
from .memory import MemoryTable, Region, user_range
from .remote_log import RemoteLog
from .ring_formats import VringAddresses
from .vhost_net import VhostNet
from .vring import RemoteOwner

#: vhost.max_mem_regions
MAX_MEM_REGIONS = 64
BACKEND_FEATURES = mask(VHOST_BACKEND_F_IOTLB_MSG_V2)
#: Guest memory beyond it is not logged where the bitmap is not mapped: 32 MiB of bitmap.
MAX_LOGGED = 1 << 40
_WORD = 1 << 64
_BITS_OF_A_BYTE_OF_LOG = 8 * 4096


class OwnerMemory(Protocol):
    """The owner's address space, as far as we can reach it.

    It is mapped into ours until something is asked for that cannot be; from then on, until
    RESET_OWNER, all of it is reached with system calls, and "ours" means the owner's addresses.
    """

    @property
    def remote(self) -> RemoteOwner | None:
        """None while everything that was asked for is mapped."""

    @property
    def n_mapped(self) -> int:
        """Ranges in `space`: more of them, and it is to be asked for again."""

    def maps(self, uva: int, size: int) -> bool:
        """Whether a range is, or can be, mapped; else `remote` is something now."""

    def space(self) -> MemoryTable:
        """All that is mapped, or all there is, by uva; its gpas mean nothing."""

    def regions(self, wanted: Sequence[MemoryRegion]) -> list[Region]:
        """The parts of a memory table that are there; what is not is left out."""

    def log(self, address: int) -> tuple[int, int]:
        """(hva, bytes) from the owner's *address* on that may hold a bitmap; (0, 0): none."""

    @property
    def mem_fd(self) -> int:
        """Its /proc/PID/mem, for what is not mapped; -1: there is nothing else."""

    def stop_batching(self) -> None:
        """`remote`, if it comes to be, is not to name the owner's pid; see RemoteOwner."""

    def release(self) -> None:
        """Nobody will ask any more; the tables that were made stay valid."""


class KernelVerbs:
    """One open file of the character device.

    Args:
        net: the device, ours from now on.
        memory_of: pid of a process (its thread group) -> its memory; PeerError.
        packed_rings: offer VIRTIO_F_RING_PACKED, which Linux's driver does not.

    Attributes:
        owner_pid: thread group of the owner, 0: none.
        messages: what is written to the file, and read from it.
        on_readable: told that there is something to read, in the worker's or the control thread.
    """

    def __init__(
        self,
        net: VhostNet,
        memory_of: Callable[[int], OwnerMemory],
        *,
        packed_rings: bool = False,
    ) -> None:
        self.net = net
        self._offered = net.abi.features
        if packed_rings:
            self._offered |= net.abi.ring_features(mask(VIRTIO_F_RING_PACKED))
        self.owner_pid = 0
        self.on_readable: Callable[[], None] = lambda: None
        self._memory_of = memory_of
        self._memory: OwnerMemory | None = None
        self._held: tuple[str, bytes] = ("", b"")
        self.messages = IotlbMessages(net, self._reach, lambda: self.on_readable())
        self._forget()

    @property
    def _owner_memory(self) -> OwnerMemory:
        if self._memory is None:
            raise PeerError(f"{self.net.name}: has no owner", errno.EPERM)
        return self._memory

    def _forget(self) -> None:
        self._wanted: list[MemoryRegion] | None = None
        self._table = MemoryTable()
        self._queues: list[ClientFile | None] = [None, None]
        self._busyloop = [0, 0]
        self._addresses = [VringAddr(index, 0, 0, 0, 0, 0) for index in (0, 1)]
        self._log_address = 0
        self._log: RemoteLog | None = None
        self.messages.forget()
        self.messages.version_2 = False

    def check_owner(self) -> None:
        """EPERM unless somebody owns the device."""
        if self.net.worker is None:
            raise PeerError(f"{self.net.name}: has no owner", errno.EPERM)

    def _check_ring(self, index: int) -> None:
        """What every ring ioctl checks first."""
        self.check_owner()
        if not 0 <= index < len(self.net.vqs):
            raise PeerError(f"{self.net.name}: there is no ring {index}", errno.ENOBUFS)

    # --- features -----------------------------------------------------------------------

    def get_features(self) -> int:
        """VHOST_GET_FEATURES."""
        return self._offered

    def set_features(self, features: int) -> None:
        """VHOST_SET_FEATURES: EOPNOTSUPP for a bit that is not offered, EFAULT see below.

        LOG_ALL needs, for every active ring, a table that can be logged.
        """
        if features & ~self._offered:
            raise PeerError(f"{self.net.name}: features {features:#x}", errno.EOPNOTSUPP)
        if features >> VHOST_F_LOG_ALL & 1 and any(map(self.net.active, (0, 1))):
            self._check_table(True)
        with self.net.quiesced():
            self.net.set_features(features)
            self._set_headers()
        self.sync_log()

    def _set_headers(self) -> None:
        made = self.net.features >> VHOST_NET_F_VIRTIO_NET_HDR & 1
        hdr_len = int(self.net.rx.vq["hdr_len"])
        for queue in self._queues:
            if queue is not None:
                queue.set_header(hdr_len if made else 0, 0 if made else hdr_len)

    def get_features_array(self, count: int) -> list[int]:
        """VHOST_GET_FEATURES_ARRAY: *count* words; ENOTTY (or ENOBUFS) before Linux 6.17.

        The tail is zero (Linux zeroes from the first word on, which is a bug).
        """
        self._check_features_array(count)
        return ([self._offered] + [0] * count)[:count]

    def set_features_array(self, words: Sequence[int]) -> None:
        """VHOST_SET_FEATURES_ARRAY."""
        self._check_features_array(len(words))
        if any(words[1:]):
            raise PeerError(f"{self.net.name}: features beyond bit 63", errno.EOPNOTSUPP)
        self.set_features(words[0] if words else 0)

    def _check_features_array(self, count: int) -> None:
        if not self.net.abi.features_array:  # taken for a ring ioctl, the count for an index
            self._check_ring(count)
            raise PeerError(f"{self.net.name}: no features array", errno.ENOTTY)

    def get_backend_features(self) -> int:
        """VHOST_GET_BACKEND_FEATURES."""
        return BACKEND_FEATURES

    def set_backend_features(self, features: int) -> None:
        """VHOST_SET_BACKEND_FEATURES; EOPNOTSUPP."""
        if features & ~BACKEND_FEATURES:
            raise PeerError(f"{self.net.name}: backend features {features:#x}", errno.EOPNOTSUPP)
        self.messages.version_2 = bool(features >> VHOST_BACKEND_F_IOTLB_MSG_V2 & 1)

    # --- owner ----------------------------------------------------------------------------

    def set_owner(self, pid: int) -> None:
        """VHOST_SET_OWNER by a thread of process *pid*; EBUSY."""
        if self.net.worker is not None:
            raise PeerError(f"{self.net.name}: has an owner already", errno.EBUSY)
        memory = self._memory_of(pid)
        try:
            self.net.set_owner(pid)
        except BaseException:
            memory.release()
            raise
        self._memory, self.owner_pid = memory, pid
        tell("DEVICE_CONNECTED", device=self.net.card, pid=pid)
        self.net.user_space = memory.space()

    def reset_owner(self) -> None:
        """VHOST_RESET_OWNER: EPERM without an owner; all is as after open, with an empty table."""
        self.check_owner()
        self.close()
        self._wanted = []

    def close(self) -> None:
        """The last reference to the file is gone."""
        queues, self._queues = self._queues, [None, None]
        self.net.reset_owner()
        self._close_queues(queues)
        self._table.release()
        if self._log is not None:
            self._log.close()
        self.net.user_space = None
        if self._memory is not None:
            self._memory.release()
            self._memory, self.owner_pid = None, 0
            tell("DEVICE_DISCONNECTED", device=self.net.card, reason="it has no owner any more")
        for ring in self.net.vqs:
            ring.vq["hdr_len"] = 0
        self._held = ("", b"")
        self._forget()

    # --- memory and log ---------------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[MemoryRegion], padding: int = 0) -> None:
        """VHOST_SET_MEM_TABLE: EOPNOTSUPP for padding, E2BIG, EFAULT for a bad region."""
        self.check_owner()
        self._flush()
        if padding:
            raise PeerError(f"{self.net.name}: padding {padding:#x}", errno.EOPNOTSUPP)
        if len(regions) > MAX_MEM_REGIONS:
            raise PeerError(f"{self.net.name}: {len(regions)} regions", errno.E2BIG)
        for r in regions:
            if (r.guest_phys_addr + r.memory_size - 1) % _WORD < r.guest_phys_addr:
                raise PeerError(f"{self.net.name}: a region wraps", errno.EFAULT)
        old_wanted, self._wanted = self._wanted, list(regions)
        try:
            if any(map(self.net.active, (0, 1))):
                self._check_table(bool(self.net.features >> VHOST_F_LOG_ALL & 1))
            self._use_memory()
        except BaseException:
            self._wanted = old_wanted
            raise

    def _use_memory(self) -> None:
        """Make tables of what the owner's memory is now, and give them to the device."""
        memory = self._owner_memory
        table = MemoryTable(without_overlaps(memory.regions(self._wanted or ())))
        old, self._table = self._table, table
        with self.net.quiesced():
            if memory.remote is not None and not self.net.rx.is_remote:
                self.net.set_remote(memory.remote, table, memory.space())
            else:
                self.net.user_space = memory.space()
                self.net.set_mem_table(table)
        old.release()
        if self._log is not None:  # which may be too short now
            self._open_log()

    def _reach(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Rings and translations may lie beside the table, where nothing of it is mapped."""
        memory = self._owner_memory
        if memory.remote is not None:
            return
        before = memory.n_mapped
        if not all(memory.maps(uva, size) for uva, size in ranges):
            self._use_memory()
        elif memory.n_mapped != before:
            self.net.set_user_space(memory.space())

    def stop_batching(self) -> None:
        """The owner is about to become another program (exec), or to end; see RemoteOwner."""
        if self._memory is not None:
            self._memory.stop_batching()
        self.net.stop_batching()

    def _check_table(self, log_all: bool) -> None:
        """Linux vq_memory_access_ok(): a table, all of it user space, all of it logged."""
        if self._wanted is None:
            raise PeerError(f"{self.net.name}: no memory table", errno.EFAULT)
        for r in self._wanted:
            bitmap = (r.guest_phys_addr + r.memory_size) // _BITS_OF_A_BYTE_OF_LOG + 1
            if (
                not r.memory_size > 0
                or not user_range(r.userspace_addr, r.memory_size)
                or (log_all and not user_range(self._log_address, bitmap))
            ):
                raise PeerError(f"{self.net.name}: a region is no user range", errno.EFAULT)

    def set_log_base(self, address: int) -> None:
        """VHOST_SET_LOG_BASE: the owner's address of the bitmap.

        Linux knows no end of it; we log what of it is mapped where it begins.
        """
        self.check_owner()
        self._flush()
        old, self._log_address = self._log_address, address
        if self.net.features >> VHOST_F_LOG_ALL & 1 and any(map(self.net.active, (0, 1))):
            try:
                self._check_table(True)
            except PeerError:
                self._log_address = old
                raise
        self._open_log()

    def _open_log(self) -> None:
        """Log where the owner said, for as much guest memory as there is now."""
        hva, size = self._owner_memory.log(self._log_address)
        old, self._log = self._log, None
        mem_fd = self._owner_memory.mem_fd
        if size == 0 and self._log_address and mem_fd >= 0:
            end = max((r.guest_phys_addr + r.memory_size for r in self._wanted or ()), default=0)
            size = min(end, MAX_LOGGED) // _BITS_OF_A_BYTE_OF_LOG + 1
            self._log = RemoteLog(
                self.owner_pid, mem_fd, self._log_address, size, self.net.quiesced
            )
            hva = self._log.hva
        self.net.set_log(hva, size)
        if old is not None:
            old.close()

    def _flush(self) -> None:
        """As VhostNet.flush, and what it logged is in the owner's bitmap."""
        self.net.flush()
        self.sync_log()

    def sync_log(self) -> None:
        """Return when the owner's bitmap has every page that was written."""
        if self._log is not None:
            self._log.sync()

    def set_log_fd(self, fd: int) -> None:
        """VHOST_SET_LOG_FD: EBADF, EINVAL.  As all that take one: *fd* stays the caller's."""
        self.check_owner()
        self._flush()
        self.net.set_log_fd(eventfd_copy(fd))

    # --- rings --------------------------------------------------------------------------------

    def set_vring_num(self, index: int, num: int) -> None:
        """VHOST_SET_VRING_NUM: EBUSY, EINVAL."""
        self._check_ring(index)
        self._check_stopped(index)
        self.net.set_vring_num(index, num)

    def set_vring_base(self, index: int, base: int) -> None:
        """VHOST_SET_VRING_BASE: EBUSY, EINVAL.

        A packed ring's base is of 32 bits: position and wrap counter (bit 15) of what to take
        next, and in the upper half of what to use next, as Linux has it for vDPA.
        """
        self._check_ring(index)
        self._check_stopped(index)
        self.net.set_vring_base(index, base)

    def _check_stopped(self, index: int) -> None:
        """EBUSY while the ring has a backend."""
        if self.net.active(index):
            raise PeerError(f"ring {index}: it runs", errno.EBUSY)

    def get_vring_base(self, index: int) -> int:
        """VHOST_GET_VRING_BASE; see `set_vring_base`."""
        self._check_ring(index)
        return self.net.get_vring_base(index)

    def set_vring_addr(self, addr: VringAddr) -> None:
        """VHOST_SET_VRING_ADDR: EOPNOTSUPP, EINVAL.

        Of a packed ring, desc is the ring, avail the driver's and used the device's event area.
        """
        self._check_ring(addr.index)
        if addr.flags & ~mask(VHOST_VRING_F_LOG):
            raise PeerError(f"ring {addr.index}: flags {addr.flags:#x}", errno.EOPNOTSUPP)
        if addr.avail_user_addr % 2 or addr.used_user_addr % 4 or addr.log_guest_addr % 4:
            raise PeerError(f"ring {addr.index}: alignment")
        if self.net.active(addr.index) and not self._ring_is_user_range(addr):
            raise PeerError(f"ring {addr.index}: no user range")
        if self.net.active(addr.index):
            self._reach(self._ring_ranges(addr))
        log = addr.log_guest_addr if addr.flags >> VHOST_VRING_F_LOG & 1 else None
        self.net.set_vring_addr(addr.index, _addresses_of(addr), log)
        self._addresses[addr.index] = addr

    def _ring_is_user_range(self, addr: VringAddr) -> bool:
        return all(user_range(uva, size) for uva, size in self._ring_ranges(addr))

    def _ring_ranges(self, addr: VringAddr) -> list[tuple[int, int]]:
        """(uva, bytes) of the three parts; none if they are I/O virtual."""
        if self.net.iotlb is not None:
            return []
        ring = self.net.vqs[addr.index]
        parts = ring.format.parts(_addresses_of(addr), ring.num)
        return [(part.address, part.size) for part in parts]

    def set_vring_kick(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_KICK: EBADF, EINVAL (also for an eventfd that has overflowed)."""
        self._check_ring(index)
        copy = eventfd_copy(fd)
        if copy >= 0 and _overflowed(copy):
            os.close(copy)
            raise PeerError(f"ring {index}: the kick is at its maximum")
        self.net.set_vring_kick(index, copy)
        self.net.flush()

    def set_vring_call(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_CALL: EBADF, EINVAL."""
        self._check_ring(index)
        self.net.set_vring_call(index, eventfd_copy(fd))

    def set_vring_err(self, index: int, fd: int) -> None:
        """VHOST_SET_VRING_ERR: EBADF, EINVAL."""
        self._check_ring(index)
        self.net.set_vring_err(index, eventfd_copy(fd))

    def set_vring_busyloop_timeout(self, index: int, timeout_us: int) -> None:
        """VHOST_SET_VRING_BUSYLOOP_TIMEOUT."""
        self._check_ring(index)
        self._busyloop[index] = timeout_us
        self.net.set_vring_busyloop_timeout(index, timeout_us)

    def get_vring_busyloop_timeout(self, index: int) -> int:
        """VHOST_GET_VRING_BUSYLOOP_TIMEOUT."""
        self._check_ring(index)
        return self._busyloop[index]

    # --- backend ------------------------------------------------------------------------------

    def set_backend(self, index: int, fd: int) -> None:
        """VHOST_NET_SET_BACKEND: EPERM, ENOBUFS, EFAULT, ENOTSOCK, EINVAL, in this order.

        Source: Linux vhost_net_set_backend().
        """
        self._check_ring(index)
        if fd == -1:
            self.messages.forget()
        self._check_table(bool(self.net.features >> VHOST_F_LOG_ALL & 1))
        if not self._ring_is_user_range(self._addresses[index]):
            raise PeerError(f"ring {index}: no user range", errno.EFAULT)
        queue = None if fd == -1 else self._queue_of(fd)
        if queue is not None:
            self._reach(self._ring_ranges(self._addresses[index]))
        old = self._queues[index]
        if queue is old:
            return
        self._queues[index] = queue
        try:
            self._set_headers()
            self.net.set_backend(index, queue)
        except BaseException:
            self._queues[index] = old
            self._close_queues([queue])
            raise
        self._close_queues([old])
        self._flush()

    def _queue_of(self, fd: int) -> ClientFile:
        """The queue that *fd* is, known or new."""
        for known in self._queues:
            if known is not None and fd >= 0 and known.is_file(fd):
                return known
        made = client_file(fd)
        source, packet = self._held
        if packet and source == made.source:
            made.hold(packet)
            self._held = ("", b"")
        return made

    def _close_queues(self, queues: Sequence[ClientFile | None]) -> None:
        """Close those that no ring uses; the packet that one holds is for its next user."""
        for queue in queues:
            if queue is not None and queue not in self._queues and queue.poll_fd >= 0:
                packet = queue.held()
                if packet:
                    self._held = (queue.source, packet)
                queue.close()


def without_overlaps(regions: Sequence[Region]) -> list[Region]:
    """Cut regions so that each address is in the one with the lowest start."""
    kept, covered = [], 0
    for r in sorted(regions, key=lambda r: r.gpa):
        cut = max(covered - r.gpa, 0)
        if cut < r.size:
            kept.append(
                dataclasses.replace(
                    r, gpa=r.gpa + cut, size=r.size - cut, uva=r.uva + cut, hva=r.hva + cut
                )
            )
            covered = r.gpa + r.size
    return kept


def _addresses_of(addr: VringAddr) -> VringAddresses:
    return VringAddresses(addr.desc_user_addr, addr.avail_user_addr, addr.used_user_addr)


def eventfd_copy(fd: int) -> int:
    """A descriptor of our own for the caller's eventfd; -1 stays -1.  EBADF, EINVAL."""
    if fd == -1:
        return -1
    try:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0) if fd >= 0 else -1
    except OSError:
        copy = -1
    if copy < 0:
        raise PeerError(f"descriptor {fd} is not open", errno.EBADF)
    try:
        is_eventfd = os.readlink(f"/proc/self/fd/{copy}") == "anon_inode:[eventfd]"
    except OSError:
        is_eventfd = True  # without /proc there is no telling
    if not is_eventfd:
        os.close(copy)
        raise PeerError(f"descriptor {fd} is not an eventfd")
    return copy


def _overflowed(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
