"""TUN/TAP devices: opened or created by name, or handed over as descriptors.

The offloads that a TAP's kernel knows decide what the device can offer; those that the
driver acked are switched on (TUNSETOFFLOAD), the header's size likewise (TUNSETVNETHDRSZ).
The carrier says whether a driver is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import struct
from typing import Any

import numpy as np

from vhostnet.datapath.layout import (
    COALESCE_PIECES,
    COALESCE_ROOM,
    COALESCE_SEGMENTS,
    COALESCE_SLOTS,
    COALESCING_TAP,
    FLOW,
    HOLD_SIZE,
    IOVEC,
    SEGMENT,
    STASH_SIZE,
    TAP,
    TAP_HDR_SIZE,
    UIO_MAXIOV,
)
from vhostnet.errors import HostError, UsageError
from vhostnet.uapi.tun import (
    IFF_ATTACH_QUEUE,
    IFF_DETACH_QUEUE,
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_TAP,
    IFF_VNET_HDR,
    IFNAMSIZ,
    IFREQ_SIZE,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_TSO_ECN,
    TUN_F_USO4,
    TUN_F_USO6,
    TUNGETIFF,
    TUNSETCARRIER,
    TUNSETOFFLOAD,
    TUNSETQUEUE,
    TUNSETVNETHDRSZ,
)
from vhostnet.uapi.virtio import (
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MRG_RXBUF,
    VNET_HDR_LEN,
    VNET_HDR_MRG_LEN,
    mask,
)

from .backend import Backend, BackendQueue
from .interface_drops import InterfaceDrops
from .tap_queue import open_tap_queue

log = logging.getLogger("vhostnet.tap")

IOCTLS = (TUNGETIFF, TUNSETCARRIER, TUNSETOFFLOAD, TUNSETQUEUE, TUNSETVNETHDRSZ)
_IFREQ = struct.Struct(f"={IFNAMSIZ}sH")
#: A TAP's queue is as long as its txqueuelen; this bounds what is thrown away at a time.
_DISCARD_MAX = 65536

_USO = TUN_F_USO4 | TUN_F_USO6
_GUEST_OFFLOADS = (
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
)
BASE_FEATURES = mask(
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
)
USO_FEATURES = mask(VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6)


def tap_queue(fd: int, fill_checksums: bool, coalesce: bool = False) -> BackendQueue:
    """A descriptor of a TAP as a backend queue, which the caller closes."""
    record: Any = np.zeros(1, COALESCING_TAP if coalesce else TAP)
    hold = np.zeros(HOLD_SIZE, np.uint8)
    bounce = np.zeros(HOLD_SIZE, np.uint8)
    header = np.zeros(TAP_HDR_SIZE, np.uint8)
    tap = record[0]
    tap["tap_fd"] = fd
    tap["fill_checksums"] = fill_checksums
    tap["hold_hva"] = hold.ctypes.data
    tap["bounce_hva"] = bounce.ctypes.data
    tap["hdr_hva"] = header.ctypes.data
    tap["tap_hdr_len"] = VNET_HDR_LEN
    queue = BackendQueue(record, fd, [hold, bounce, header])
    if coalesce:
        _give_room(queue)
    return queue


def _give_room(queue: BackendQueue) -> None:
    """Allocate what a COALESCING_TAP works with; pages that are never used cost nothing."""
    for field, array in (
        ("flows_hva", np.zeros(COALESCE_SLOTS, FLOW)),
        ("flow_order_hva", np.zeros(COALESCE_SEGMENTS, np.int64)),
        ("segments_hva", np.zeros(COALESCE_SEGMENTS, SEGMENT)),
        ("held_hdr_hva", np.zeros(COALESCE_SEGMENTS * COALESCE_ROOM, np.uint8)),
        ("held_pieces_hva", np.zeros(COALESCE_SEGMENTS * COALESCE_PIECES, IOVEC)),
        ("merged_hdr_hva", np.zeros(COALESCE_ROOM, np.uint8)),
        ("out_hva", np.zeros(UIO_MAXIOV + 1, IOVEC)),
        ("stash_hva", np.zeros(STASH_SIZE, np.uint8)),
    ):
        queue.record[0][field] = array.ctypes.data
        queue.keep.append(array)


class TapBackend(Backend):
    """A TAP with one queue a queue pair.

    Args:
        name: the interface.
        fds: its queues' descriptors, ours from now on.
        multi_queue: queues can be detached (IFF_MULTI_QUEUE).
        fill_checksums: towards guests, complete partial checksums in software.
        coalesce: merge consecutive TCP segments of a guest before they are written.
    """

    kind = "tap"

    def __init__(
        self,
        name: str,
        fds: list[int],
        multi_queue: bool,
        fill_checksums: bool,
        coalesce: bool = False,
    ) -> None:
        super().__init__([tap_queue(fd, fill_checksums, coalesce) for fd in fds])
        self.name = name
        self._multi_queue = multi_queue
        self._attached = [True] * len(fds)
        self._link: bool | None = None
        self._negotiated: tuple[int, int] | None = None
        self._drops: InterfaceDrops | None = None
        self.features = BASE_FEATURES
        if self._try_offloads(TUN_F_CSUM | _USO):
            self.features |= USO_FEATURES
        self._try_offloads(0)
        self._set_hdr_len(VNET_HDR_LEN)
        self.set_link(False)

    @classmethod
    def open(
        cls, name: str, queue_pairs: int, fill_checksums: bool, coalesce: bool = False
    ) -> TapBackend:
        """Open the interface *name*, or create it for as long as we live; HostError."""
        fds: list[int] = []
        multi_queue = queue_pairs > 1
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
        try:
            for _ in range(queue_pairs):
                fds += open_tap_queue(name, flags)[1]
            made = cls(name, fds, multi_queue, fill_checksums, coalesce)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        # not of one that was handed over: it may be in another network namespace
        made._drops = InterfaceDrops(name)
        return made

    @classmethod
    def adopt(
        cls, fds: list[int], queue_pairs: int, fill_checksums: bool, coalesce: bool = False
    ) -> TapBackend:
        """Take descriptors that someone else has opened and attached; UsageError."""
        if len(fds) != queue_pairs:
            raise UsageError(
                f"tap-fd: {len(fds)} descriptors for {queue_pairs} queue pairs; give one each"
            )
        name, multi_queue = "", False
        for fd in fds:
            try:
                answer = fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ_SIZE))
            except OSError as e:
                raise UsageError(f"tap-fd:{fd}: is not an attached TAP ({e.strerror})") from e
            raw_name, flags = _IFREQ.unpack_from(answer)
            name = raw_name.rstrip(b"\0").decode(errors="replace")
            if not flags & IFF_TAP or not flags & IFF_NO_PI or not flags & IFF_VNET_HDR:
                raise UsageError(
                    f"tap-fd:{fd}: {name} must be opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
                )
            multi_queue = bool(flags & IFF_MULTI_QUEUE)
            os.set_blocking(fd, False)  # it was handed to us: it is ours to set
            os.set_inheritable(fd, False)
        return cls(name, fds, multi_queue, fill_checksums, coalesce)

    # --- Backend ----------------------------------------------------------------------

    def negotiate(self, hdr_len: int, features: int) -> None:
        self._set_hdr_len(hdr_len)
        offloads = 0
        before = self._negotiated
        for bit, flag in _GUEST_OFFLOADS:
            if features >> bit & 1:
                offloads |= flag
        if not offloads & TUN_F_CSUM:
            offloads = 0  # everything else stands on it
        elif features & mask(VIRTIO_NET_F_GUEST_USO4) and features & mask(VIRTIO_NET_F_GUEST_USO6):
            offloads |= _USO
        if not self._try_offloads(offloads):
            raise HostError(f"TAP {self.name}: refuses the offloads {offloads:#x}")
        for queue in self.queues:
            queue.record[0]["guest_csum"] = bool(offloads & TUN_F_CSUM)
        self._negotiated = (hdr_len, offloads)
        if before is not None and before != self._negotiated:
            # another driver: what was read, or cut to size, for the last one is not for it
            dropped = self.discard_pending()
            if dropped:
                log.info("TAP %s: discarded %d packets for another driver", self.name, dropped)

    def set_link(self, up: bool) -> None:
        if up == self._link:
            return
        self._link = up
        with contextlib.suppress(OSError):  # before Linux 4.20 there is no such call
            fcntl.ioctl(self.queues[0].poll_fd, TUNSETCARRIER, struct.pack("=i", up))
            log.info("TAP %s: carrier %s", self.name, "on" if up else "off")

    def attach_queue(self, index: int, attach: bool) -> None:
        # queue 0 stays: the interface's own ioctls need an attached descriptor
        if index == 0 or not self._multi_queue or self._attached[index] == attach:
            return
        flag = IFF_ATTACH_QUEUE if attach else IFF_DETACH_QUEUE
        request = _IFREQ.pack(b"", flag).ljust(IFREQ_SIZE, b"\0")
        try:
            fcntl.ioctl(self.queues[index].poll_fd, TUNSETQUEUE, request)
        except OSError as e:
            log.warning(
                "TAP %s: queue %d cannot be %s: %s",
                self.name,
                index,
                "attached" if attach else "detached",
                e.strerror,
            )
            return
        self._attached[index] = attach

    def discard_pending(self) -> int:
        """Empty held packets and the kernel's queues; the carrier should be off."""
        dropped = 0
        for queue in self.queues:
            if int(queue.record[0]["hold_len"]) > 0:
                queue.record[0]["hold_len"] = 0
                dropped += 1
            if "stash_end" in queue.record.dtype.names:
                queue.record[0]["stash_at"] = queue.record[0]["stash_end"] = 0
            for _ in range(_DISCARD_MAX):
                try:
                    if not os.read(queue.poll_fd, HOLD_SIZE):
                        break
                except OSError:  # EAGAIN: empty; EBADFD: detached or gone
                    break
                dropped += 1
            queue.record[0]["readable"] = 0
        return dropped

    def send_frame(self, frame: bytes) -> None:
        header = bytes(int(self.queues[0].record[0]["tap_hdr_len"]))
        with contextlib.suppress(OSError):
            os.write(self.queues[0].poll_fd, header + frame)

    def interface_drops(self) -> dict[str, int]:
        return {} if self._drops is None else self._drops.read()

    def close(self) -> None:
        self.set_link(False)
        if self._drops is not None:
            self._drops.close()
        for queue in self.queues:
            os.close(queue.poll_fd)
        self.queues = []

    # --- ioctls -----------------------------------------------------------------------

    def _try_offloads(self, offloads: int) -> bool:
        try:
            fcntl.ioctl(self.queues[0].poll_fd, TUNSETOFFLOAD, offloads)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise HostError(
                    f"TAP {self.name}: TUNSETOFFLOAD: {e.strerror}", e.errno or 0
                ) from e
            return False
        return True

    def _set_hdr_len(self, hdr_len: int) -> None:
        assert hdr_len in (VNET_HDR_LEN, VNET_HDR_MRG_LEN)
        try:
            fcntl.ioctl(self.queues[0].poll_fd, TUNSETVNETHDRSZ, struct.pack("=i", hdr_len))
        except OSError as e:
            raise HostError(f"TAP {self.name}: TUNSETVNETHDRSZ: {e.strerror}", e.errno or 0) from e
        for queue in self.queues:  # one size for the whole interface
            queue.record[0]["tap_hdr_len"] = hdr_len
