"""A vhost-user ring's two switches, and when they make a vhost ring run.

Theory of operation
-------------------
The kernel's driver has one switch a ring: the backend.  vhost-user has two, independent of
each other, and its messages come in any order:

    started   SET_VRING_KICK came; cleared by GET_VRING_BASE, RESET_DEVICE, the session's end
    enabled   SET_VRING_ENABLE; survives a stop; on for all rings without PROTOCOL_FEATURES

A ring runs when it is started, its addresses translate, and it is enabled; a started TX ring
that is disabled runs too but throws its packets away (a guest that lowers its queue count
waits for those buffers).  Nothing waits for a first kick: a ring is looked at when it starts.

    started enabled   RX          TX
       no      any    stopped     stopped
       yes     no     stopped     discards
       yes     yes    runs        runs

`settle` brings the device to what this table says, after any message.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vhostnet.backends.backend import BackendQueue
from vhostnet.device.vhost_net import VhostNet
from vhostnet.device.vring import VHOST_NET_VQ_TX

log = logging.getLogger("vhostnet.device")


@dataclass(slots=True)
class VhostUserRing:
    """One ring of the card: which virtqueue of which instance, and its switches.

    Attributes:
        index: the protocol's ring index, 2 * pair for RX, 2 * pair + 1 for TX.
        vq: index within the instance.
    """

    index: int
    net: VhostNet
    vq: int
    queue: BackendQueue
    started: bool = False
    enabled: bool = False
    sized: bool = False
    unplaced_logged: bool = False

    @property
    def runs(self) -> bool:
        """Whether the worker touches the ring."""
        return self.net.active(self.vq)

    def settle(self) -> None:
        """Start or stop the ring, as the table above says."""
        is_tx = self.vq == VHOST_NET_VQ_TX
        wanted = self.started and self.sized and (self.enabled or is_tx)
        if is_tx:
            self.net.set_discard(self.vq, not self.enabled)
        if not wanted:
            if self.runs:
                self.net.set_backend(self.vq, None)
            return
        if self.runs or not self._place():
            return
        ring = self.net.vqs[self.vq]
        better = ring.better_base()
        if better is not None:
            # We complete in order and keep nothing back, so the guest's own memory says where
            # we were.  A front-end that lost the base (DPDK after a reconnect sends 0) would
            # otherwise make us send or fill buffers a second time.
            log.info(
                "%s: ring %d: base %#x taken from the guest's memory, not %#x",
                self.net.name,
                self.index,
                better,
                ring.get_base(),
            )
            self.net.set_vring_base(self.vq, better)
        self.net.set_backend(self.vq, self.queue)
        ring.signal()  # completions of before may not have been announced

    def _place(self) -> bool:
        ring = self.net.vqs[self.vq]
        if self.net.place_ring(self.vq):
            self.unplaced_logged = False
            return True
        # Addresses or memory may simply come later.
        is_final = self.net.iotlb is None and self.net.memory.regions
        if ring.addresses is not None and is_final and not self.unplaced_logged:
            self.unplaced_logged = True
            log.warning(
                "%s: ring %d cannot start: its addresses are in no memory region of the VMM's",
                self.net.name,
                self.index,
            )
        return False

    def stop(self) -> None:
        """GET_VRING_BASE: stop, and forget kick and call; err stays."""
        self.started = False
        self.settle()
        self.net.set_vring_kick(self.vq, -1)
        self.net.set_vring_call(self.vq, -1)

    def reset(self) -> None:
        """RESET_DEVICE: stopped, disabled, position lost; the err descriptor stays."""
        self.stop()
        self.enabled = False
        self.sized = False
        self.net.set_vring_base(self.vq, 0)
        self.net.vqs[self.vq].addresses = None
