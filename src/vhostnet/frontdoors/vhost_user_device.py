"""The device behind a vhost-user session: protocol verbs onto instances of the driver.

One card is `queue_pairs` instances of VhostNet that share one memory table and one set of
features.  A pair's worker thread exists from the pair's first start to the session's end.

Not here: messages and replies (`protocol/`), sockets (`vhost_user_server`), when a ring runs
(`vhost_user_rings`), what the memory is made of (`shared_memory`), the carrier (`carrier`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Sequence

from vhostnet.backends.backend import Backend
from vhostnet.device.dirty_log import DirtyLog
from vhostnet.device.memory import MemoryTable
from vhostnet.device.port_net import PortNet, join_ports, part_ports
from vhostnet.device.ring_formats import VringAddresses
from vhostnet.device.scheduling import Scheduling
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import (
    VHOST_NET_VQ_RX,
    VHOST_NET_VQ_TX,
    VHOST_VRING_F_LOG,
)
from vhostnet.errors import HostError, PeerError
from vhostnet.protocol.verbs import MemoryRegion, VringAddr
from vhostnet.uapi.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES
from vhostnet.uapi.virtio import (
    VHOST_F_LOG_ALL,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_ANY_LAYOUT,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MTU,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VNET_HDR_LEN,
    feature_names,
    mask,
)

from .backend_channel import BackendChannel
from .carrier import CallLater, Carrier
from .rarp import rarp_frame
from .shared_memory import MAX_MEM_SLOTS, SharedMemory
from .vhost_user_rings import VhostUserRing

log = logging.getLogger("vhostnet.device")

#: Not RING_RESET: QEMU (7.2 at least) tells only a kernel back-end that a queue was reset, and the
#: guest's ring would change under us.
RING_FEATURES = mask(
    VHOST_F_LOG_ALL,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_ANY_LAYOUT,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VHOST_USER_F_PROTOCOL_FEATURES,
)


class VhostUserDevice:
    """One card, for one front-end after the other.

    Args:
        backend: its network side, ours to close.
        queue_pairs: RX/TX pairs, 1..127.
        name: what log lines call it.
        call_later: the control loop's timer.
        busy_poll_us, busy_poll_adaptive: see VhostNet.set_vring_busyloop_timeout.
        linux_abi: the version of Linux to behave as (see device/linux_abi.py): whether num_buffers
            is written for VERSION_1 without MRG_RXBUF, how long an IOTLB lives, and whether
            IN_ORDER and RING_PACKED are offered.
        worker_cpus: processors, one a worker in turns; None leaves it to the kernel.
        worker_scheduling: of all workers; None leaves it as the process's is.
        iommu: offer ACCESS_PLATFORM.  Only where a VMM stands between: a driver that talks to
            us itself would ack it and wait for a translation that nobody gives.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        queue_pairs: int,
        name: str,
        call_later: CallLater,
        busy_poll_us: int = 0,
        busy_poll_adaptive: bool = False,
        iommu: bool = False,
        linux_abi: str = "newest",
        worker_cpus: Sequence[int] | None = None,
        worker_scheduling: Scheduling | None = None,
    ) -> None:
        self.name = name
        self.backend = backend
        self.queue_pairs = queue_pairs
        self.n_rings = 2 * queue_pairs
        self.max_mem_slots = MAX_MEM_SLOTS
        kind = PortNet if backend.kind == "port" else VhostNet
        self.nets: list[VhostNet] = [
            kind(name if queue_pairs == 1 else f"{name}.{pair}", linux_abi)
            for pair in range(queue_pairs)
        ]
        for pair, net in enumerate(self.nets):
            net.card, net.pair = name, pair
        self._ports = [net for net in self.nets if isinstance(net, PortNet)]
        if self._ports:
            part_ports(self._ports)
        self.rings = [
            VhostUserRing(index, self.nets[index // 2], index % 2, backend.queues[index // 2])
            for index in range(self.n_rings)
        ]
        self.iommu = iommu
        self._backend_requests: BackendChannel | None = None
        self._busy_poll_us = busy_poll_us
        self._busy_poll_adaptive = busy_poll_adaptive
        self._worker_cpus = worker_cpus
        self._worker_scheduling = worker_scheduling
        self._carrier = Carrier(backend, call_later, self._receives)
        self._session = False
        self._owner_pid = 0
        self._memory = SharedMemory()
        self._log: DirtyLog | None = None
        self._features: int | None = None
        self._status = 0

    def join(self, other: VhostUserDevice) -> None:
        """Be the other card's network, and it ours: both have port backends, and no other card.

        Their sessions go on.
        """
        join_ports(self._ports, other._ports)

    # --- sessions ---------------------------------------------------------------------

    def open_session(self, pid: int | None) -> None:
        """A front-end is here; what the network still holds for the last one is thrown away."""
        self._session = True
        self._owner_pid = pid or 0
        self._discard_pending()

    def close_session(self) -> None:
        """The front-end is gone: free everything of it; may be called twice."""
        if not self._session:
            return
        self._session = False
        for ring in self.rings:
            ring.started = False
            ring.enabled = False
        self._log_counters()
        for net in self.nets:
            net.reset_owner()
        for ring in self.rings:
            ring.sized = False
            ring.unplaced_logged = False
        self._memory.release()
        if self._backend_requests is not None:
            self._backend_requests.close()
            self._backend_requests = None
            for net in self.nets:
                net.on_iotlb_miss = lambda _iova, _access: None
        if self._log is not None:
            self._log.release()
            self._log = None
        self._features = None
        self._status = 0
        self._carrier.down()
        for pair in range(self.queue_pairs):
            self.backend.attach_queue(pair, True)
        with contextlib.suppress(HostError):  # a TAP that was deleted has nothing to negotiate
            self.backend.negotiate(VNET_HDR_LEN, 0)
        self._discard_pending()

    def close(self) -> None:
        """End the session, leave the card that we are joined to, and give the backend back."""
        self.close_session()
        if self._ports:
            part_ports(self._ports)
        self.backend.close()

    def _discard_pending(self) -> None:
        dropped = self.backend.discard_pending()
        if dropped:
            log.info("%s: discarded %d packets meant for the last guest", self.name, dropped)

    def _log_counters(self) -> None:
        for net in self.nets:
            for direction, counters in net.counters().items():
                moved = {k: v for k, v in counters.items() if v}
                if moved:
                    text = " ".join(f"{k}={v}" for k, v in moved.items())
                    log.info("%s: %s %s", net.name, direction, text)

    # --- features and owner -----------------------------------------------------------

    def get_features(self) -> int:
        features = self.nets[0].abi.ring_features(RING_FEATURES)
        features |= self.backend.features | mask(VIRTIO_NET_F_MTU)
        if self.queue_pairs > 1:
            # Linux's driver refuses a card that has MQ without a control queue, which only a
            # VMM between us can give: offered where it was asked for.
            features |= mask(VIRTIO_NET_F_MQ)
        if self.iommu:
            features |= mask(VIRTIO_F_ACCESS_PLATFORM)
        return features

    def set_features(self, features: int) -> None:
        unknown = features & ~self.get_features()
        if unknown:
            raise PeerError(
                f"features {', '.join(feature_names(unknown))} were not offered", errno.EOPNOTSUPP
            )
        if features == self._features:
            return
        changed = features ^ (self._features or 0)
        if changed & ~mask(VHOST_F_LOG_ALL) and any(ring.runs for ring in self.rings):
            raise PeerError("features cannot change while a ring runs", errno.EBUSY)
        if self._features is not None and not changed & ~mask(VHOST_F_LOG_ALL):
            for net in self.nets:
                net.set_log_all(bool(features >> VHOST_F_LOG_ALL & 1))
            self._features = features
            return
        self._features = None  # until all of it is done
        for net in self.nets:
            net.set_features(features)
        try:
            self.backend.negotiate(int(self.nets[0].rx.vq["hdr_len"]), features)
        except HostError as e:
            raise PeerError(str(e), e.errno) from e
        self._features = features
        log.debug("%s: features %s", self.name, " ".join(feature_names(features)))
        if not features >> VHOST_USER_F_PROTOCOL_FEATURES & 1:
            for ring in self.rings:
                ring.enabled = True
        self._settle_all()

    def set_owner(self) -> None:
        """The session's start; workers are made when their pair starts."""

    def reset_owner(self) -> None:
        for ring in self.rings:
            ring.enabled = False
        self._settle_all()

    # --- memory -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _all_quiesced(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for net in self.nets:
                stack.enter_context(net.quiesced())
            yield

    def set_mem_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        self._use_memory(self._memory.with_regions(regions, fds))

    def add_mem_reg(self, region: MemoryRegion, fd: int) -> None:
        self._use_memory(self._memory.with_region(region, fd))

    def rem_mem_reg(self, region: MemoryRegion) -> None:
        self._use_memory(self._memory.without_region(region))

    def _use_memory(self, table: MemoryTable | None) -> None:
        """Let all pairs use *table*; None: nothing changes."""
        if table is None:
            return
        with self._all_quiesced():
            for ring in self.rings:
                # a running ring that the new table no longer holds stops here, not in the
                # worker; its base survives
                lost = ring.runs and ring.net.iotlb is None
                if lost and ring.net.vqs[ring.vq].place(table) is not None:
                    log.warning("%s: ring %d lost its memory", ring.net.name, ring.index)
                    ring.net.set_backend(ring.vq, None)
            for net in self.nets:
                net.set_mem_table(table)
        self._memory.take(table)
        self._settle_all()

    def check_memory(self) -> None:
        """Raise PeerError if a file that the front-end shares was cut short under us."""
        self._memory.table.check_not_lost()
        if self._log is not None:
            self._log.check_not_lost()

    # --- IOTLB ------------------------------------------------------------------------

    def set_backend_req_fd(self, fd: int) -> None:
        new = BackendChannel(self.name, fd)
        old, self._backend_requests = self._backend_requests, new
        with self._all_quiesced():
            for net in self.nets:
                net.on_iotlb_miss = new.send_iotlb_miss
        if old is not None:
            old.close()

    def iotlb_update(self, iova: int, size: int, uva: int, perm: int) -> None:
        for net in self.nets:
            net.iotlb_update(iova, size, uva, perm)
        self._settle_all()  # a ring that could not start may have waited for this

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        for net in self.nets:
            net.iotlb_invalidate(iova, size)

    # --- dirty log --------------------------------------------------------------------

    def set_log_base(self, size: int, offset: int, fd: int) -> None:
        new = DirtyLog.map(fd, size, offset)
        old, self._log = self._log, new
        for net in self.nets:
            net.set_log(new.hva, new.size)
        if old is not None:
            old.release()

    def set_log_fd(self, fd: int) -> None:
        try:
            for net in self.nets:
                net.set_log_fd(os.dup(fd))
        finally:
            os.close(fd)

    # --- rings ------------------------------------------------------------------------

    def set_vring_num(self, index: int, num: int) -> None:
        ring = self.rings[index]
        if not (ring.runs and ring.net.vqs[ring.vq].num == num):
            with self._reconfigured(ring):
                ring.net.set_vring_num(ring.vq, num)
        ring.sized = True
        self._settle(ring)

    def set_vring_addr(self, addr: VringAddr) -> None:
        ring = self.rings[addr.index]
        addresses = VringAddresses(
            desc_uva=addr.desc_user_addr,
            avail_uva=addr.avail_user_addr,
            used_uva=addr.used_user_addr,
        )
        if addr.flags & ~(1 << VHOST_VRING_F_LOG):
            raise PeerError(f"ring flags {addr.flags:#x} are unknown", errno.EOPNOTSUPP)
        log_gpa = addr.log_guest_addr if addr.flags & 1 << VHOST_VRING_F_LOG else None
        if ring.net.vqs[ring.vq].addresses != addresses:
            with self._reconfigured(ring):
                ring.net.set_vring_addr(ring.vq, addresses, log_gpa)
        else:  # a migration starts or ends: only the flag changes, the ring goes on
            ring.net.set_vring_addr(ring.vq, addresses, log_gpa)
        self._settle(ring)

    def set_vring_base(self, index: int, base: int) -> None:
        ring = self.rings[index]
        with self._reconfigured(ring):
            ring.net.set_vring_base(ring.vq, base)
        self._settle(ring)

    @contextlib.contextmanager
    def _reconfigured(self, ring: VhostUserRing) -> Iterator[None]:
        """Take a disabled ring out of use to change it (UML never stops its rings)."""
        if ring.runs and not ring.enabled:
            ring.net.set_backend(ring.vq, None)
        yield

    def get_vring_base(self, index: int) -> int:
        ring = self.rings[index]
        ring.stop()
        self._attach_queues()
        self._carrier.update()
        return ring.net.get_vring_base(ring.vq)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        ring = self.rings[index]
        try:
            self._ensure_worker(ring.net)
        except OSError as e:
            if fd is not None:
                os.close(fd)
            raise HostError(f"no worker for ring {index}: {e.strerror}", e.errno or 0) from e
        if fd is None:
            ring.net.set_vring_polled(ring.vq)
        else:
            ring.net.set_vring_kick(ring.vq, fd)
        ring.started = True
        self._settle(ring)

    def _ensure_worker(self, net: VhostNet) -> None:
        if net.worker is None:
            net.set_owner(self._owner_pid)
            self._tell_busy_poll(net)
            self._pin(net)
            self._schedule(net)

    def _pin(self, net: VhostNet) -> None:
        if self._worker_cpus and net.worker is not None:
            cpu = self._worker_cpus[self.nets.index(net) % len(self._worker_cpus)]
            try:
                net.worker.pin(cpu)
            except OSError as e:  # it may have gone offline meanwhile
                log.warning("%s: worker not on processor %d: %s", net.name, cpu, e.strerror)

    def _schedule(self, net: VhostNet) -> None:
        if self._worker_scheduling is not None and net.worker is not None:
            try:
                net.worker.schedule(self._worker_scheduling)
            except OSError as e:  # a right was dropped meanwhile
                how = f"{self._worker_scheduling}: {e.strerror}"
                log.warning("%s: worker not scheduled as %s", net.name, how)

    def _tell_busy_poll(self, net: VhostNet) -> None:
        for vq in (VHOST_NET_VQ_RX, VHOST_NET_VQ_TX):
            net.set_vring_busyloop_timeout(vq, self._busy_poll_us, self._busy_poll_adaptive)

    def set_busy_poll(self, us: int, adaptive: bool) -> None:
        """Change `busy_poll_us` and `busy_poll_adaptive`, at any time."""
        self._busy_poll_us, self._busy_poll_adaptive = us, adaptive
        for net in self.nets:
            if net.worker is not None:
                self._tell_busy_poll(net)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        ring = self.rings[index]
        ring.net.set_vring_call(ring.vq, -1 if fd is None else fd)
        if ring.runs:  # what the old descriptor said may have been lost on the way
            ring.net.vqs[ring.vq].signal()

    def set_vring_err(self, index: int, fd: int | None) -> None:
        ring = self.rings[index]
        ring.net.set_vring_err(ring.vq, -1 if fd is None else fd)

    def set_vring_enable(self, index: int, enable: bool) -> None:
        ring = self.rings[index]
        if ring.enabled != enable:
            ring.enabled = enable
            self._settle(ring)

    def _settle(self, ring: VhostUserRing) -> None:
        ring.settle()
        self._attach_queues()
        self._carrier.update()

    def _attach_queues(self) -> None:
        """Let the network choose among the pairs that receive; among all while none does."""
        receiving = [self.rings[2 * pair].runs for pair in range(self.queue_pairs)]
        for pair, receives in enumerate(receiving):
            self.backend.attach_queue(pair, receives or not any(receiving))

    def _receives(self) -> bool:
        return any(ring.runs for ring in self.rings if ring.vq == VHOST_NET_VQ_RX)

    def _settle_all(self) -> None:
        for ring in self.rings:
            self._settle(ring)

    # --- the rest ---------------------------------------------------------------------

    def set_mtu(self, mtu: int) -> None:
        log.info("%s: the guest is told MTU %d", self.name, mtu)

    def send_rarp(self, mac: bytes) -> None:
        self.backend.send_frame(rarp_frame(mac))

    def set_status(self, status: int) -> None:
        self._status = status

    def get_status(self) -> int:
        return self._status

    def reset_device(self) -> None:
        for ring in self.rings:
            ring.reset()
        self._status = 0
        self._attach_queues()
        self._carrier.update()
