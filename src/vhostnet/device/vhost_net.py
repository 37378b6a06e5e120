"""One open instance of the driver: two virtqueues, one backend queue each, one worker.

Its methods are the driver's verbs, with Linux's preconditions; a door maps its messages or
ioctls to them and turns PeerError into its own answer.  Every verb that changes what the
worker can see parks it first, so on return nothing of before is still running.

Where the parts of Linux's driver are:
    the two virtqueues                      `rx`, `tx` (vring.py)
    handle_rx_kick, handle_tx_kick,
    handle_rx_net, handle_tx_net            work items of datapath/worker_loop.py
    vhost_poll, vhost_work, worker thread   worker.py, datapath/work.py
    owner, SET_OWNER                        `set_owner`
    the socket of SET_BACKEND               backends/
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vhostnet.backends.backend import BackendQueue
from vhostnet.datapath.codes import (
    RING_ERRORS,
    WORKER_BACKEND_GONE,
    WORKER_RX_ERROR,
    WORKER_RX_MISS,
    WORKER_TX_ERROR,
    WORKER_TX_MISS,
)
from vhostnet.datapath.layout import (
    EVENT_BACKEND,
    IOVEC,
    RX_HEAD,
    UIO_MAXIOV,
    VHOST_ACCESS_RO,
    VHOST_ACCESS_WO,
    WORK_RX_KICK,
    WORK_RX_NET,
    WORK_TX_KICK,
    WORK_TX_NET,
)
from vhostnet.datapath.ring_access import fetch_used
from vhostnet.datapath.vring_ops import signal_used
from vhostnet.datapath.work import work_queue
from vhostnet.datapath.worker_loop import vhost_worker
from vhostnet.errors import PeerError
from vhostnet.events import tell
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_ACCESS_PLATFORM,
    VRING_USED_RING,
)

from .iotlb import Iotlb
from .linux_abi import linux_abi as abi_of
from .memory import MemoryTable
from .ring_formats import VringAddresses
from .vring import VHOST_NET_VQ_RX, VHOST_NET_VQ_TX, AddressSpace, RemoteOwner, Vring
from .worker import Worker

SYSCALLS = ("readlink", "readlinkat")  # of /proc/self/fd

log = logging.getLogger("vhostnet.device")

_KICK_WORK = (WORK_RX_KICK, WORK_TX_KICK)
_NET_WORK = (WORK_RX_NET, WORK_TX_NET)
_DIRECTION = ("rx", "tx")


class VhostNet:
    """One queue pair of a card, and its worker.

    Args:
        name: what log lines call it.
        linux_abi: the version of Linux to behave as (see linux_abi.py).

    Attributes:
        card, pair: the device that it is a pair of, for events; of itself alone at first.
        user_space: where the owner's addresses are, if not all of them are in the memory table:
            a character device's rings and I/O translations may lie anywhere in its process.
    """

    def __init__(self, name: str, linux_abi: str = "newest") -> None:
        self.name = name
        self.card, self.pair = name, 0
        self.abi = abi_of(linux_abi)
        self.user_space: MemoryTable | None = None
        self.rx = Vring(VHOST_NET_VQ_RX)
        self.tx = Vring(VHOST_NET_VQ_TX)
        self.vqs = (self.rx, self.tx)
        self.features = 0
        self.memory = MemoryTable()
        self.iotlb: Iotlb | None = None
        #: told (iova, access) of every IOTLB miss, in the worker's or the control thread
        self.on_iotlb_miss: Callable[[int, int], None] = lambda _iova, _access: None
        #: ring index -> the I/O virtual address that it waits for
        self._misses: dict[int, int] = {}
        self.worker: Worker | None = None
        #: the worker, or the last one that was: who has the counters
        self._counted: Worker | None = None
        self._backends: list[BackendQueue | None] = [None, None]
        self._iov = np.zeros(2 * UIO_MAXIOV + 1, IOVEC)
        self._heads = np.zeros(UIO_MAXIOV, RX_HEAD)
        self._gone_logged = False

    # --- owner ------------------------------------------------------------------------

    def set_owner(self, pid: int) -> None:
        """Take an owner and create the worker `vhost-<pid>`; PeerError EBUSY if there is one."""
        if self.worker is not None:
            raise PeerError(f"{self.name}: has an owner already", errno.EBUSY)
        before = None if self._counted is None else self._counted.counters()
        self.worker = Worker(f"vhost-{pid}", self._run, self._on_event, before)
        self.worker.start()
        self._counted = self.worker

    def reset_owner(self) -> None:
        """Stop both rings, drop every descriptor and the memory, end the worker."""
        if self.worker is not None:
            for index in (VHOST_NET_VQ_RX, VHOST_NET_VQ_TX):
                self.set_backend(index, None)
                self.set_vring_kick(index, -1)
                self.set_vring_call(index, -1)
                self.set_vring_err(index, -1)
            self.set_log_fd(-1)
            self.worker.stop()
            self.worker = None
        for ring in self.vqs:
            for name in ("kick_fd", "call_fd", "err_fd", "log_fd"):
                _close(ring.take_fd(name))
            ring.reset()
        self.features = 0
        self.memory = MemoryTable()
        self.iotlb = None
        self._misses.clear()
        self._gone_logged = False

    def quiesced(self) -> contextlib.AbstractContextManager[None]:
        """Keep the worker parked for the length of a `with` block."""
        return contextlib.nullcontext() if self.worker is None else self.worker.quiesced()

    def flush(self) -> None:
        """Return when every kick and packet of before has been handled."""
        if self.worker is not None:
            self.worker.flush()

    # --- what the rings are made of ---------------------------------------------------

    def set_features(self, features: int) -> None:
        """Store the acked set; header lengths change at once, as in Linux."""
        with self.quiesced():
            self.features = features
            for ring in self.vqs:
                ring.set_features(
                    features, num_buffers_for_version_1=self.abi.num_buffers_for_version_1
                )
            if features >> VIRTIO_F_ACCESS_PLATFORM & 1:
                self.iotlb = Iotlb(self._user_memory)
                self._misses.clear()
            elif self.iotlb is not None and self.abi.iotlb_goes_with_its_feature:
                self.iotlb = None
                self._misses.clear()
                for index, ring in enumerate(self.vqs):
                    ring.vq["active"] = self.active(index) and self.place_ring(index)

    def set_log_all(self, enabled: bool) -> None:
        """Switch VHOST_F_LOG_ALL and nothing else (a migration starts or ends)."""
        with self.quiesced():
            bit = 1 << VHOST_F_LOG_ALL
            self.features = self.features | bit if enabled else self.features & ~bit
            for ring in self.vqs:
                ring.vq["log_all"] = enabled

    @property
    def _user_memory(self) -> MemoryTable:
        """Where the front-end's own addresses are."""
        return self.memory if self.user_space is None else self.user_space

    @property
    def space(self) -> AddressSpace:
        """What the addresses of rings mean."""
        return self._user_memory if self.iotlb is None else self.iotlb

    def place_ring(self, index: int) -> bool:
        """Find a ring in our memory; False, and the front-end is asked, if it is not there."""
        ring = self.vqs[index]
        missing = ring.place(self.space)
        if missing is None:
            ring.find_log_addresses(self.memory, self.iotlb is not None)
            return True
        if self.iotlb is not None and ring.addresses is not None:
            self._miss(index, *missing)
        return False

    def _place_used_ring(self, index: int) -> bool:
        """As `place_ring`, of what a start touches: the used ring's flags and index, or a packed
        ring's device event area.

        The front-end is asked for reading first, as Linux does; but Linux then writes to
        what may only be read, and we do not.
        """
        ring = self.vqs[index]
        if ring.addresses is None:
            return False
        used = ring.format.parts(ring.addresses, ring.num)[-1]
        # words of a remote one are pushed with their neighbours
        size = used.size if ring.is_remote else min(used.size, VRING_USED_RING)
        for access in (VHOST_ACCESS_RO, VHOST_ACCESS_WO):
            hva, missing = self.space.lookup(used.address, size, access)
            if hva is None or hva % used.align:  # a mapping may start at an odd place
                self._miss(index, missing, access)
                return False
            ring.put_part(used.field, hva, used.size)
        ring.find_log_addresses(self.memory, True)
        return True

    # --- IOTLB ------------------------------------------------------------------------

    def _miss(self, index: int, iova: int, access: int) -> None:
        self._misses[index] = iova
        self.on_iotlb_miss(iova, access)

    def iotlb_update(self, iova: int, size: int, uva: int, perm: int) -> None:
        """Let the rings use [iova, iova + size); those that waited for it go on.

        Raises PeerError EFAULT without an IOTLB, or for a range that cannot be.
        """
        if self.iotlb is None:
            raise PeerError(f"{self.name}: ACCESS_PLATFORM was not acked", errno.EFAULT)
        with self.quiesced():
            self.iotlb.update(iova, size, uva, perm)
            waiting = {i for i, at in self._misses.items() if iova <= at < iova + size}
            for index in waiting:
                del self._misses[index]
            self._resume(waiting)

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        """Take entries away; a running ring that lay there waits until it is told anew."""
        if self.iotlb is None:
            raise PeerError(f"{self.name}: ACCESS_PLATFORM was not acked", errno.EFAULT)
        with self.quiesced():
            self.iotlb.invalidate(iova, size)
            self._resume(set())

    def _resume(self, waiting: set[int]) -> None:
        """Place all running rings in the new table and run those that waited."""
        for index, ring in enumerate(self.vqs):
            if self._backends[index] is None:
                continue
            was_active = ring.active
            if was_active or index in waiting:
                ring.vq["active"] = self.place_ring(index)
            if ring.active and self.worker is not None and (index in waiting or not was_active):
                work_queue(self.worker.record[0], _KICK_WORK[index])

    # --- memory and rings ---------------------------------------------------------------

    def set_mem_table(self, memory: MemoryTable) -> None:
        """Use *memory* from now on; active rings must lie in it (PeerError EFAULT)."""
        with self.quiesced():
            if (
                self.iotlb is None
                and self.user_space is None
                and any(ring.active and ring.place(memory) is not None for ring in self.vqs)
            ):
                for ring in self.vqs:
                    ring.place(self.memory)
                raise PeerError(
                    f"{self.name}: the new memory table does not hold the running rings",
                    errno.EFAULT,
                )
            self.memory = memory
            for ring in self.vqs:
                ring.vq["last_region"] = 0
            if self.iotlb is not None:
                self.iotlb.set_memory(self._user_memory)
                self._resume(set())

    def set_user_space(self, user_space: MemoryTable) -> None:
        """More of the owner's memory is mapped than the memory table says."""
        with self.quiesced():
            self.user_space = user_space
            if self.iotlb is not None:
                self.iotlb.set_memory(user_space)

    def set_remote(self, owner: RemoteOwner, memory: MemoryTable, user_space: MemoryTable) -> None:
        """Reach all of the owner's memory with system calls from now on, until it is reset.

        Args:
            memory, user_space: tables of the owner's own addresses.
        """
        with self.quiesced():
            self.memory, self.user_space = memory, user_space
            for index, ring in enumerate(self.vqs):
                ring.set_remote(owner)
                if ring.active:
                    found = self.place_ring(index) and fetch_used(ring.vq) == 0
                    ring.vq["active"] = found
            if self.iotlb is not None:
                self.iotlb.set_memory(self._user_memory)
                self._resume(set())

    def stop_batching(self) -> None:
        """The owner's pid may soon be another program; see RemoteOwner."""
        with self.quiesced():
            for ring in self.vqs:
                ring.stop_batching()

    def set_log(self, hva: int, size: int) -> None:
        """Use the dirty bitmap of *size* bytes at *hva*; size 0: none."""
        with self.quiesced():
            for ring in self.vqs:
                ring.set_log(hva, size)

    def set_vring_num(self, index: int, num: int) -> None:
        """Ring size in entries; see Vring.set_num."""
        self.vqs[index].set_num(num)

    def set_vring_base(self, index: int, base: int) -> None:
        """Next avail index; see Vring.set_base."""
        self.vqs[index].set_base(base)

    def get_vring_base(self, index: int) -> int:
        """Next avail index; legal while running, final once the backend is detached."""
        with self.quiesced():
            return self.vqs[index].get_base()

    def set_vring_addr(
        self, index: int, addresses: VringAddresses, log_gpa: int | None = None
    ) -> None:
        """Where the ring lies (uva); on an active ring it must translate (PeerError EINVAL).

        Args:
            log_gpa: with VHOST_VRING_F_LOG, the used ring's address for the dirty log.
        """
        with self.quiesced():
            ring = self.vqs[index]
            ring.set_log_used(log_gpa)
            old = ring.addresses
            ring.set_addresses(addresses)
            if ring.active and not self.place_ring(index):
                ring.addresses = old
                ring.place(self.space)
                raise PeerError(f"ring {index}: the new addresses are in no region")

    # --- descriptors: all of these own *fd* from the call on --------------------------

    def set_vring_kick(self, index: int, fd: int) -> None:
        """Poll *fd* (-1: none) from now on; already signalled means handled at once."""
        with self.quiesced():
            ring = self.vqs[index]
            if fd >= 0:
                self._watch_kick(index, fd)
            old = ring.take_fd("kick_fd")
            if old >= 0 and self.worker is not None:
                self.worker.unwatch(old)
            _close(old)
            ring.vq["polled"] = 0
            ring.vq["kick_fd"] = fd
            ring.vq["kick_is_pipe"] = fd >= 0 and not _is_eventfd(fd)

    def _watch_kick(self, index: int, fd: int) -> None:
        """Poll a new kick; if that fails the old one stays, and *fd* is closed."""
        try:
            if self.worker is None:
                raise PeerError(f"{self.name}: has no owner", errno.EPERM)
            try:
                self.worker.watch(fd, select.EPOLLIN, _KICK_WORK[index])
            except OSError as e:
                raise PeerError(f"ring {index}: the kick cannot be polled: {e.strerror}") from e
            if not _is_eventfd(fd):
                _never_wait(fd)  # its bytes are read, and somebody else may be quicker
        except PeerError:
            _close(fd)
            raise

    def set_vring_polled(self, index: int) -> None:
        """The driver has no kick to give: look at the ring at short intervals instead."""
        self.set_vring_kick(index, -1)
        with self.quiesced():
            self.vqs[index].vq["polled"] = 1

    def set_vring_call(self, index: int, fd: int) -> None:
        """Signal *fd* (-1: none) from now on."""
        with self.quiesced():
            self._swap_fd(index, "call_fd", fd)
            if self.vqs[index].format.is_packed:
                # without a call nothing was tested: how far back that was is not known
                self.vqs[index].vq["signalled_used_valid"] = 0

    def set_vring_err(self, index: int, fd: int) -> None:
        """Report ring errors on *fd* (-1: none) from now on."""
        self._swap_fd(index, "err_fd", fd)

    def set_log_fd(self, fd: int) -> None:
        """Signal *fd* (-1: none) after each write to the dirty log."""
        try:
            for index in (VHOST_NET_VQ_RX, VHOST_NET_VQ_TX):
                self._swap_fd(index, "log_fd", os.dup(fd) if fd >= 0 else -1)
        except OSError as e:
            raise PeerError(f"log descriptor: {e.strerror}", e.errno or errno.EINVAL) from e
        finally:
            _close(fd)

    def _swap_fd(self, index: int, name: str, fd: int) -> None:
        _never_wait(fd)
        with self.quiesced():
            ring = self.vqs[index]
            old = ring.take_fd(name)
            ring.vq[name] = fd
        _close(old)

    def set_vring_busyloop_timeout(
        self, index: int, timeout_us: int, adaptive: bool = False
    ) -> None:
        """Look at the ring for so long before sleeping; units of 1024 ns, as in Linux.

        Args:
            adaptive: beyond Linux, for the whole instance: spin up to so long, as it proves
                worth it.
        """
        with self.quiesced():
            self.vqs[index].vq["busyloop_ns"] = timeout_us << 10
            if self.worker is not None:
                self.worker.record[0]["adaptive"] = adaptive

    # --- backend: what makes a ring run -----------------------------------------------

    def set_backend(self, index: int, queue: BackendQueue | None) -> None:
        """Attach a ring to a backend queue and start it, or stop it with None.

        Starting: the ring must translate (PeerError EFAULT) and its base lie in it (PeerError
        EINVAL); its handler runs once without a kick.  Stopping: on return every buffer taken
        is published, and nothing touches the ring any more.  A packet that was read and not
        delivered stays with the queue.

        Source: Linux vhost_net_set_backend().
        """
        ring = self.vqs[index]
        old = self._backends[index]
        if queue is None:
            if old is None:
                return
            with self.quiesced():
                if ring.active:  # while its memory is still there
                    signal_used(ring.vq)
                ring.vq["active"] = 0
                self._backends[index] = None
                if self.worker is not None and old.poll_fd >= 0 and old not in self._backends:
                    self.worker.unwatch(old.poll_fd)
                self.tell("VRING_STOPPED", ring, base=ring.get_base())
            return
        if self.worker is None:
            raise PeerError(f"{self.name}: has no owner", errno.EPERM)
        with self.quiesced():
            other = self._backends[1 - index]
            if other is not None and other.record.dtype != queue.record.dtype:
                raise PeerError(f"{self.name}: both rings need backends of one kind")
            # Behind an IOMMU a start needs what it touches only; the rest may come later.
            in_parts = self.iotlb is not None
            if not (self._place_used_ring(index) if in_parts else self.place_ring(index)):
                raise PeerError(
                    f"{self.name}: the {_DIRECTION[index]} ring is not in the guest's memory",
                    errno.EFAULT,
                )
            ring.check_base()
            if old is not None and old is not queue:
                self.set_backend(index, None)
            ring.init_access()
            self._backends[index] = queue
            if in_parts:
                ring.vq["active"] = self.place_ring(index)
            if queue.poll_fd >= 0:
                events = select.EPOLLIN | select.EPOLLOUT
                arm = self.worker.rearm if other is queue or old is queue else self.worker.watch
                arm(queue.poll_fd, events, EVENT_BACKEND)
            # A backend that is polled says itself, at once, that it can be read or written.
            if queue.poll_fd < 0 or (index == VHOST_NET_VQ_RX and queue.holds_packet()):
                work_queue(self.worker.record[0], _NET_WORK[index])
            if old is not queue:
                self.tell("VRING_STARTED", ring, num=ring.num, base=ring.get_base())

    def set_capture(self, index: int, hva: int) -> None:
        """Capture the ring's packets with the CAPTURE record there; 0: on return nobody uses it."""
        with self.quiesced():
            self.vqs[index].set_capture(hva)

    def set_discard(self, index: int, discard: bool) -> None:
        """A ring that must move but may not send: its packets are taken and thrown away."""
        with self.quiesced():
            self.vqs[index].vq["discard"] = discard

    def active(self, index: int) -> bool:
        """Whether the ring has a backend."""
        return self._backends[index] is not None

    # --- the worker's side ------------------------------------------------------------

    def _run(self) -> int | None:
        """Enter the kernel once; None if no ring is active."""
        worker = self.worker
        rx_queue, tx_queue = self._backends
        if rx_queue is None:
            rx_queue = tx_queue
        if tx_queue is None:
            tx_queue = rx_queue
        if worker is None or rx_queue is None or tx_queue is None:
            return None
        return vhost_worker(
            worker.record,
            self.rx.record,
            self.tx.record,
            self.memory.array if self.iotlb is None else self.iotlb.array,
            self.memory.array,
            rx_queue.record,
            tx_queue.record,
            self._iov,
            self._heads,
        )

    def _on_event(self, code: int) -> None:
        """Say what the kernel came back for; in the worker's thread."""
        if code in (WORKER_RX_ERROR, WORKER_TX_ERROR):
            self._on_ring_error(
                self.rx if code == WORKER_RX_ERROR else self.tx,
                "it is looked at again at the next kick",
            )
        elif code in (WORKER_RX_MISS, WORKER_TX_MISS):
            ring = self.rx if code == WORKER_RX_MISS else self.tx
            self._miss(ring.index, int(ring.vq["miss_iova"]), int(ring.vq["miss_perm"]))
        elif code == WORKER_BACKEND_GONE:
            if not self._gone_logged:
                self._gone_logged = True
                log.error("%s: the TAP was deleted; packets are dropped", self.name)
        else:
            log.error("%s: epoll_wait: %s", self.name, os.strerror(-code))

    def _on_ring_error(self, ring: Vring, consequence: str) -> None:
        """Say that a ring of this instance was found broken, and what comes of it."""
        error = int(ring.vq["last_error"])
        reason = RING_ERRORS.get(error, str(error))
        log.warning(
            "%s: %s ring is broken at avail index %d: %s; %s",
            self.name,
            _DIRECTION[ring.index],
            ring.get_base(),
            reason,
            consequence,
        )
        self.tell("VRING_ERROR", ring, error=error, reason=reason)

    def tell(self, event: str, ring: Vring, **data: Any) -> None:
        """Tell an event (events.py) of one of its rings."""
        queue = f"{_DIRECTION[ring.index]}{self.pair}"
        tell(event, device=self.card, vring=2 * self.pair + ring.index, queue=queue, **data)

    @property
    def backend_queue(self) -> BackendQueue | None:
        """What its rings are attached to, if any is."""
        rx_queue, tx_queue = self._backends
        return rx_queue or tx_queue

    @property
    def misses(self) -> Mapping[int, int]:
        """Ring index -> the I/O virtual address that it waits for."""
        return self._misses

    @property
    def worker_state(self) -> str:
        """ "none" so far; "gone"; "failed"; "working", with handlers to run; or "waiting"."""
        if self.worker is None:
            return "none" if self._counted is None else "gone"
        if self.worker.has_failed:
            return "failed"
        return "working" if int(self.worker.record[0]["n_work"]) else "waiting"

    def worker_counters(self) -> dict[str, int]:
        """Counters of all its workers so far (see Worker.counters); {} before the first owner."""
        return {} if self._counted is None else self._counted.counters()

    def counters(self) -> dict[str, dict[str, int]]:
        """Counters of both rings, since the owner came."""
        return {"rx": self.rx.counters(), "tx": self.tx.counters()}


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _never_wait(fd: int) -> None:
    """Make a descriptor that we signal non-blocking: a full one would hold a worker for ever.

    The flag is also the peer's, who made the descriptor and shares it with us.  QEMU, DPDK and
    cloud-hypervisor set it themselves; Linux's eventfd_signal() never waits either.
    """
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.set_blocking(fd, False)


def _is_eventfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return False
