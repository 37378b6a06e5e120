"""An instance of the driver whose network is another guest.

Theory of operation
-------------------
Two cards are joined, pair by pair, and a worker serves ways: from one guest's TX ring to the
other's RX ring.  It is always one worker that serves both of these rings, so nothing has to be
locked on the path of a packet.

    TOGETHER  both pairs run and have only each other: the first card's worker serves both ways,
              the other one rests, its epoll set watched by the first
    ALONE     else: each pair's worker serves what its own guest sends

Together is what two guests nearly always are.  Two workers that wake each other for every batch
cost more than they carry; on one core they would also take turns.

What control changes of one pair, the workers of all pairs of both cards may see, so it parks them
all (`quiesced`).
Whoever comes back from parking looks at everything anew (`_run`): the other guest may have gone,
come, or negotiated something else.  Control may change it back before anybody looks, so nobody
relies on having seen a change.  Work that is queued for a ring stays on the list of a worker, and
whoever serves the ring looks where it may be:

    the worker that serves both ways   on the list of the one that rests, at each return from
                                       control, and as if there were some where either worker is new
    a worker that does not rest        as if there were some, if it has rested before

A card whose other end nobody has yet, or has any more, is joined to one that no guest will ever
have: so its workers find what they find when the other guest is gone.

A guest need not use all pairs of its card.  What arrives for a pair that does not run goes to one
that does; only then a ring has several workers, which take turns by a lock.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vhostnet.datapath.codes import (
    WORKER_BACK_RX_ERROR,
    WORKER_BACK_TX_ERROR,
    WORKER_RX_ERROR,
    WORKER_TX_ERROR,
)
from vhostnet.datapath.layout import (
    EVENT_BACK,
    IOVEC,
    UIO_MAXIOV,
    WORK_BACK_KICK,
    WORK_TX_KICK,
)
from vhostnet.datapath.port_worker import port_worker
from vhostnet.datapath.work import work_queue, work_take
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
from .worker import Worker

#: What a receiver has to have acked to be given a packet of this GSO type uncut.  The type of UDP
#: does not say which IP it is, so it takes both.
_GSO_FEATURES = (
    (VIRTIO_NET_HDR_GSO_TCPV4, mask(VIRTIO_NET_F_GUEST_TSO4)),
    (VIRTIO_NET_HDR_GSO_TCPV6, mask(VIRTIO_NET_F_GUEST_TSO6)),
    (VIRTIO_NET_HDR_GSO_UDP_L4, mask(VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6)),
)

_OF_THE_WAY_BACK = {
    WORKER_BACK_RX_ERROR: WORKER_RX_ERROR,
    WORKER_BACK_TX_ERROR: WORKER_TX_ERROR,
}


class PortNet(VhostNet):
    """One queue pair of a card that is joined to another card.

    Attributes:
        peers: all pairs of the other card; none until `join_ports` or `part_ports`.
        leads: where one worker serves both ways, it is this card's.
    """

    def __init__(self, name: str, linux_abi: str = "newest") -> None:
        super().__init__(name, linux_abi)
        self.peers: Sequence[PortNet] = ()
        self.leads = False
        self._out_iov = np.zeros(2 * UIO_MAXIOV + 1, IOVEC)
        # whether another card's worker has served our TX ring since ours ran last
        self._rested = False
        # what is watched: (our worker, the other's)
        self._watching: tuple[Worker | None, Worker | None] = (None, None)
        self._rx_lock = np.zeros(1, np.int64)

    @contextlib.contextmanager
    def quiesced(self) -> Iterator[None]:
        """Keep all workers parked that may see something of this pair; may nest."""
        with _parked([self, *self._others()]):
            yield

    def _others(self) -> list[PortNet]:
        """The other card's pairs, and our own card's other ones: whom they serve may change."""
        return [net for net in (*self.peers, *self._siblings()) if net is not self]

    def _siblings(self) -> Sequence[PortNet]:
        """All pairs of our own card."""
        return self.peers[self.pair].peers if self.peers else ()

    def reset_owner(self) -> None:
        """As `VhostNet.reset_owner`; the peers go on, and find nobody here."""
        with _parked(self._others()):  # our own worker ends in it
            super().reset_owner()

    def flush(self) -> None:
        """Return when every kick of before, of either guest, has been handled."""
        for net in (self, *self.peers):
            if net.worker is not None and (net.leads or net._partner() is None):
                net.worker.flush()

    def _target(self) -> PortNet:
        """The pair that receives what this one sends."""
        usual = self.peers[self.pair]
        if not usual.rx.active:
            running = [peer for peer in self.peers if peer.rx.active]
            if running:
                return running[self.pair % len(running)]
        return usual

    def _partner(self) -> PortNet | None:
        """The other end, if the two are TOGETHER."""
        if not self.peers:
            return None
        other = self.peers[self.pair]
        ends = (self, other)
        if any(net.worker is None or net._backends[VHOST_NET_VQ_TX] is None for net in ends):
            return None
        return other if all(net.rx.active for net in (*self.peers, *self._siblings())) else None

    def _run(self) -> int | None:
        """Enter the kernel once; None if this guest sends nothing."""
        worker, queue = self.worker, self._backends[VHOST_NET_VQ_TX]
        if worker is None or queue is None or not self.peers:
            return None
        partner = self._partner()
        if partner is not None and not self.leads:
            self._rested = True
            return None
        if self._rested:
            self._rested = False
            work_queue(worker.record[0], WORK_TX_KICK)
        target = self._target()
        self._tell_link(queue.record[0], target)
        back_tx, back_queue = np.zeros(1, target.tx.record.dtype), queue
        if partner is not None:
            back_tx = partner.tx.record
            back_queue = partner._backends[VHOST_NET_VQ_TX] or queue
            partner._tell_link(back_queue.record[0], self)
            if self._take_work_of(partner):
                work_queue(worker.record[0], WORK_BACK_KICK)
        queue.record[0]["back_epfd"] = self._watch(partner)
        return port_worker(
            worker.record,
            self.rx.record,
            self.tx.record,
            self.memory.array,
            target.rx.record,
            back_tx,
            target.memory.array,
            queue.record,
            back_queue.record,
            self._iov,
            self._out_iov,
            self._heads,
        )

    def _take_work_of(self, partner: PortNet) -> bool:
        """Empty the list of the worker that rests; whether there was, or may have been, work."""
        assert partner.worker is not None
        theirs = partner.worker.record[0]
        found = self._watching != (self.worker, partner.worker)
        while theirs["n_work"]:
            work_take(theirs)
            found = True
        return found

    def _watch(self, partner: PortNet | None) -> int:
        """Let the edges of the partner's worker wake ours; returns its epoll set, or -1."""
        ours, theirs = self.worker, None if partner is None else partner.worker
        assert ours is not None
        if self._watching != (ours, theirs):
            before = self._watching[1] if self._watching[0] is ours else None
            # the set of a worker that has ended is closed, and so gone from ours
            if before is not None and any(net.worker is before for net in self.peers):
                ours.unwatch(before.epoll_fd)
            if theirs is not None:
                ours.watch(theirs.epoll_fd, select.EPOLLIN, EVENT_BACK)
            self._watching = (ours, theirs)
        return -1 if theirs is None else theirs.epoll_fd

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
        if code in _OF_THE_WAY_BACK:
            self.peers[self.pair]._on_event(_OF_THE_WAY_BACK[code])
            return
        if code != WORKER_RX_ERROR:
            super()._on_event(code)
            return
        target = self._target()
        target._on_ring_error(target.rx, "what is sent to it is dropped")


def join_ports(ours: Sequence[PortNet], theirs: Sequence[PortNet]) -> None:
    """Let two cards with equally many pairs be each other's network; ours leads.

    Neither is joined to a third.  What either guest does meanwhile goes on.
    """
    with _parked([*ours, *theirs]):
        _connect(ours, theirs)


def part_ports(ours: Sequence[PortNet]) -> None:
    """Let nobody be at the other end of a card without owner, nor of the one it was joined to.

    What a guest sends there is dropped and counted, until its card is joined to another one.
    """
    theirs = ours[0].peers
    with _parked([*ours, *theirs]):
        for card in (ours, theirs):
            if card:
                _connect(card, [PortNet("nobody")] * len(card))


@contextlib.contextmanager
def _parked(nets: Iterable[PortNet]) -> Iterator[None]:
    """Keep the workers of these pairs parked."""
    with contextlib.ExitStack() as stack:
        for net in nets:
            if net.worker is not None:
                stack.enter_context(net.worker.quiesced())
        yield


def _connect(ours: Sequence[PortNet], theirs: Sequence[PortNet]) -> None:
    for card, other in ((ours, theirs), (theirs, ours)):
        for pair, net in enumerate(card):
            net.pair, net.peers, net.leads = pair, tuple(other), card is ours
