"""An instance of the driver whose network is another guest.

Theory of operation
-------------------
Two cards are joined, pair by pair.  The worker of a pair serves its own guest's TX ring and the
*other* guest's RX ring; its own RX ring is the business of the other pair's worker.  So no ring
has two workers, and nothing has to be locked on the path of a packet.

What control changes of one card, the workers of both may see, so it parks both (`quiesced`).
Whoever comes back from parking looks at everything anew (`_run`): the other guest may have gone,
come, or negotiated something else.

A guest need not use all pairs of its card.  What arrives for a pair that does not run goes to one
that does; only then a ring has several workers, which take turns by a lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vhostnet.datapath.codes import WORKER_RX_ERROR
from vhostnet.datapath.layout import IOVEC, UIO_MAXIOV
from vhostnet.datapath.port_worker import port_worker
from vhostnet.uapi.virtio import (
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
    mask,
)

from .vhost_net import VhostNet
from .vring import VHOST_NET_VQ_TX

#: What a receiver has to have acked to be given a packet of this GSO type uncut.  The type of UDP
#: does not say which IP it is, so it takes both.
_GSO_FEATURES = (
    (VIRTIO_NET_HDR_GSO_TCPV4, mask(VIRTIO_NET_F_GUEST_TSO4)),
    (VIRTIO_NET_HDR_GSO_TCPV6, mask(VIRTIO_NET_F_GUEST_TSO6)),
    (VIRTIO_NET_HDR_GSO_UDP_L4, mask(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6)),
)


class PortNet(VhostNet):
    """One queue pair of a card that is joined to another card.

    Attributes:
        peers: all pairs of the other card; none until `join`.
    """

    def __init__(self, name: str, linux_abi: str = "newest") -> None:
        super().__init__(name, linux_abi)
        self.peers: Sequence[PortNet] = ()
        self._out_iov = np.zeros(2 * UIO_MAXIOV + 1, IOVEC)
        self._rx_lock = np.zeros(1, np.int64)

    @contextlib.contextmanager
    def quiesced(self) -> Iterator[None]:
        """Keep all workers parked that may see something of this pair; may nest."""
        with contextlib.ExitStack() as stack:
            if self.worker is not None:
                stack.enter_context(self.worker.quiesced())
            stack.enter_context(self._peers_quiesced())
            yield

    @contextlib.contextmanager
    def _peers_quiesced(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for peer in self.peers:
                if peer.worker is not None:
                    stack.enter_context(peer.worker.quiesced())
            yield

    def reset_owner(self) -> None:
        """As `VhostNet.reset_owner`; the peers go on, and find nobody here."""
        with self._peers_quiesced():  # our own worker ends in it
            super().reset_owner()

    def flush(self) -> None:
        """Return when every kick of before, of either guest, has been handled."""
        for net in (self, *self.peers):
            if net.worker is not None:
                net.worker.flush()

    def _target(self) -> PortNet:
        """The pair that receives what this one sends."""
        usual = self.peers[self.pair]
        if not usual.rx.active:
            running = [peer for peer in self.peers if peer.rx.active]
            if running:
                return running[self.pair % len(running)]
        return usual

    def _run(self) -> int | None:
        """Enter the kernel once; None if this guest sends nothing."""
        worker, queue = self.worker, self._backends[VHOST_NET_VQ_TX]
        if worker is None or queue is None or not self.peers:
            return None
        target = self._target()
        self._tell_link(queue.record[0], target)
        return port_worker(
            worker.record,
            self.rx.record,
            self.tx.record,
            self.memory.array,
            target.rx.record,
            target.memory.array,
            queue.record,
            self._iov,
            self._out_iov,
            self._heads,
        )

    def _tell_link(self, link: Any, target: PortNet) -> None:
        """What the kernel has to know of the receiver."""
        acked = target.features
        has_csum = bool(acked >> VIRTIO_NET_F_GUEST_CSUM & 1)
        link["peer_csum"] = has_csum
        link["peer_gso"] = mask(
            *(kind for kind, needed in _GSO_FEATURES if has_csum and acked & needed == needed)
        )
        link["peer_ecn"] = acked >> VIRTIO_NET_F_GUEST_ECN & 1
        shared = not all(peer.rx.active for peer in self.peers)
        link["lock_hva"] = target._rx_lock.ctypes.data if shared else 0

    def _on_event(self, code: int) -> None:
        """As `VhostNet._on_event`; an RX ring that is broken is the other guest's."""
        if code != WORKER_RX_ERROR:
            super()._on_event(code)
            return
        target = self._target()
        target._on_ring_error(target.rx, "what is sent to it is dropped")


def join_ports(ours: Sequence[PortNet], theirs: Sequence[PortNet]) -> None:
    """Let two cards with equally many pairs be each other's network; neither has an owner yet."""
    for card, other in ((ours, theirs), (theirs, ours)):
        for pair, net in enumerate(card):
            net.pair, net.peers = pair, tuple(other)
