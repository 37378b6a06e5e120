"""One vhost-user session, sans-IO: requests in, verbs of the device called, replies out.

Theory of operation
===================

`RULES` declares every message that is answered: its payload, how many descriptors it may
carry, whether it has a reply of its own, the protocol feature it belongs to, its handler.
`Session.handle` checks a request against its rule, runs the handler and encodes the answer.
A rule that is broken, here or in the device, ends in one of two ways:

    REFUSED   the front-end asked for an acknowledgement (NEED_REPLY, REPLY_ACK negotiated) and
              the request has no reply of its own: a non-zero ack says so, the session goes on
        Operations:  the front-end decides; QEMU falls back to its own virtio-net
        Caveats:     the text of the error does not travel: it is given to `report`
    CLOSED    there is no ack to carry the error, or the front-end awaits a reply of another
              form (a number that is not 0 would be taken for its content): PeerError
        Operations:  the owner of the connection closes it
        Caveats:     nothing may be sent any more

What a session remembers is only which protocol features were acknowledged.  Rings and memory
are the device's.  Front-ends agree on next to no order of messages (QEMU enables rings before
it sets features, cloud-hypervisor sends addresses before bases, User Mode Linux never stops a
ring), so no message here waits for another one; the one exception is a message that belongs to
a protocol feature, which must have been acknowledged.

Source: QEMU docs/interop/vhost-user.rst, "Front-end message types" and "VHOST_USER_PROTOCOL_F_
REPLY_ACK"; numbers of bytes in vhostnet.uapi.vhost_user.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from vhostnet.errors import HostError, PeerError
from vhostnet.protocol.verbs import VhostUserVerbs
from vhostnet.protocol.vhost_user_codec import MAX_FDS, Request, encode_reply
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.wire import Form, Layout

# Only what is wired through to the device.  Offering more breaks front-ends that use it
# (cloud-hypervisor once offered BACKEND_REQ without answering it, which broke QEMU).
OFFERED_PROTOCOL_FEATURES = (
    vu.VHOST_USER_PROTOCOL_F_MQ,
    vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
    vu.VHOST_USER_PROTOCOL_F_RARP,
    vu.VHOST_USER_PROTOCOL_F_REPLY_ACK,
    vu.VHOST_USER_PROTOCOL_F_MTU,
    vu.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
    vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    vu.VHOST_USER_PROTOCOL_F_STATUS,
)
OFFERED_PROTOCOL_FEATURES_MASK = sum(1 << bit for bit in OFFERED_PROTOCOL_FEATURES)
# With an IOMMU only: QEMU then demands it.
IOMMU_PROTOCOL_FEATURES = (vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ,)
IOMMU_PROTOCOL_FEATURES_MASK = sum(1 << bit for bit in IOMMU_PROTOCOL_FEATURES)

# A ring's index has 8 bits in SET_VRING_KICK, and a queue pair takes two.
MAX_QUEUE_NUM = 254

# As DPDK's lib/vhost does: below, IPv4 does not work; above, no length field holds it.
MIN_MTU, MAX_MTU = 68, 65535

MAC_SIZE = 6

ACK_OK, ACK_REFUSED = 0, 1


class Answer(enum.Enum):
    """What a front-end gets back when all went well."""

    ACK = "a number, 0, but only if it asked (NEED_REPLY)"
    REPLY = "the message's own reply, always, and never an ack"


@dataclass(frozen=True, slots=True)
class Rule:
    """One message: everything the document says about its form.

    Attributes:
        number: request number.
        layout: the payload's struct.
        items: structs that may follow it, any number.
        is_longer_allowed: whether the payload may go on after the struct.
        min_fds: fewest descriptors, `max_fds`: most.
        answer: ack or a reply of its own.
        feature: protocol feature bit that must have been acknowledged, or None.
        reply: the struct of a reply of its own.
        handler: called with session, payload and request; returns a REPLY's struct.
    """

    number: int
    layout: Layout[Any]
    items: Layout[Any] | None
    is_longer_allowed: bool
    min_fds: int
    max_fds: int
    answer: Answer
    feature: int | None
    reply: Layout[Any] | None
    handler: Callable[[Session, Any, Request], object]

    @property
    def form(self) -> Form:
        """What the payload's bytes are."""
        return Form(self.layout, self.items)

    @property
    def name(self) -> str:
        """The message's name as in the document."""
        return vu.REQUEST_NAMES[self.number]

    def check(self, request: Request, acked_protocol_features: int) -> None:
        """Raise PeerError unless the request has the form declared here."""
        if self.feature is not None and not acked_protocol_features & 1 << self.feature:
            feature = vu.PROTOCOL_FEATURE_NAMES[self.feature]
            raise PeerError(f"protocol feature {feature} was not negotiated")
        size, want = len(request.payload), self.layout.size
        if size < want or (size > want and not self.is_longer_allowed):
            or_more = " or more" if self.is_longer_allowed else ""
            raise PeerError(f"payload of {size} bytes, must be {want}{or_more}")
        n_fds = len(request.fds)
        if not self.min_fds <= n_fds <= self.max_fds:
            limits = f"{self.min_fds} to {self.max_fds}"
            if self.min_fds == self.max_fds:
                limits = str(self.min_fds)
            raise PeerError(f"{n_fds} file descriptors, must be {limits}")


class Session:
    """What one front-end has negotiated, and the device it talks to.

    Args:
        device: called for everything that is more than form.
        report: told, in one line, why a request was refused by an ack.
    """

    def __init__(
        self, device: VhostUserVerbs, report: Callable[[str], None] = lambda _text: None
    ) -> None:
        self._device = device
        self._report = report
        self.acked_protocol_features = 0

    def handle(self, request: Request) -> bytes:
        """Answer one request.

        Whatever the outcome, `request.fds` afterwards lists the descriptors that the caller
        must close: nobody has taken them.

        Returns:
            The bytes to send, possibly none.

        Raises:
            PeerError: a rule is broken and no ack can say so: close the connection.
            HostError: the same, but it was this host that refused.
        """
        rule = RULES.get(request.number)
        try:
            if rule is None:
                raise PeerError("this back-end does not offer it")
            rule.check(request, self.acked_protocol_features)
            reply = rule.handler(self, rule.layout.unpack(request.payload), request)
        except (PeerError, HostError) as error:
            text = f"{request.name}: {error}"
            has_own_reply = rule is not None and rule.answer is Answer.REPLY
            if has_own_reply or not self._may_ack(request):
                raise type(error)(text, error.errno) from error
            self._report(text)
            return _number_reply(request, ACK_REFUSED)
        if rule.reply is not None:
            return encode_reply(request.number, rule.reply.pack(reply))
        # Asked after the handler: SET_PROTOCOL_FEATURES may itself carry NEED_REPLY, and User
        # Mode Linux then waits for the ack of the message that negotiates acks.
        return _number_reply(request, ACK_OK) if self._may_ack(request) else b""

    def _may_ack(self, request: Request) -> bool:
        is_negotiated = self.acked_protocol_features & 1 << vu.VHOST_USER_PROTOCOL_F_REPLY_ACK
        return request.needs_reply and bool(is_negotiated)

    def _check_index(self, index: int) -> None:
        """An index is compared as it was sent, never shortened first (CVE-2020-10723)."""
        n_rings = self._device.n_rings
        if index >= n_rings:
            raise PeerError(
                f"ring {index} of a device with {n_rings} rings ({n_rings // 2} queue pairs)"
            )

    # --- Features ------------------------------------------------------------------------------

    def get_features(self, _nothing: vu.Nothing, _request: Request) -> vu.Features:
        return vu.Features(self._device.get_features())

    def set_features(self, number: vu.Features, _request: Request) -> None:
        unknown = number.u64 & ~self._device.get_features()
        if unknown:
            raise PeerError(f"features {number.u64:#x} have bits never offered: {unknown:#x}")
        self._device.set_features(number.u64)
        if not number.u64 & 1 << vu.VHOST_USER_F_PROTOCOL_FEATURES:
            # Section "Ring states": such a front-end knows no SET_VRING_ENABLE.
            for index in range(self._device.n_rings):
                self._device.set_vring_enable(index, True)

    @property
    def _offered_protocol_features(self) -> int:
        iommu = IOMMU_PROTOCOL_FEATURES_MASK if self._device.iommu else 0
        return OFFERED_PROTOCOL_FEATURES_MASK | iommu

    def get_protocol_features(self, _nothing: vu.Nothing, _request: Request) -> vu.ProtocolFeatures:
        return vu.ProtocolFeatures(self._offered_protocol_features)

    def set_protocol_features(self, number: vu.ProtocolFeatures, _request: Request) -> None:
        unknown = number.u64 & ~self._offered_protocol_features
        if unknown:
            raise PeerError(f"features {number.u64:#x} have bits never offered: {unknown:#x}")
        self.acked_protocol_features = number.u64

    def get_queue_num(self, _nothing: vu.Nothing, _request: Request) -> vu.Number:
        # QEMU and DPDK take the answer for queue pairs, cloud-hypervisor for rings and wants at
        # least its own number.  The larger answer serves both; a QEMU that then asks for more
        # pairs than there are is told so by `_check_index`.
        return vu.Number(min(self._device.n_rings, MAX_QUEUE_NUM))

    # --- Owner, status, reset ------------------------------------------------------------------

    def set_owner(self, _nothing: vu.Nothing, _request: Request) -> None:
        self._device.set_owner()

    def reset_owner(self, _nothing: vu.Nothing, _request: Request) -> None:
        self._device.reset_owner()

    def reset_device(self, _nothing: vu.Nothing, _request: Request) -> None:
        self._device.reset_device()

    def set_status(self, number: vu.Status, _request: Request) -> None:
        if number.u64 > 0xFF:
            raise PeerError(f"status {number.u64:#x} is more than a byte")
        self._device.set_status(number.u64)

    def get_status(self, _nothing: vu.Nothing, _request: Request) -> vu.Status:
        return vu.Status(self._device.get_status())

    # --- Memory --------------------------------------------------------------------------------

    def set_mem_table(self, head: vu.MemoryTableHead, request: Request) -> None:
        n = head.nregions
        end = vu.MEMORY_TABLE_HEAD.size + n * vu.MEMORY_REGION.size
        # User Mode Linux always sends room for two regions, whatever nregions is.
        if end > len(request.payload):
            raise PeerError(f"payload of {len(request.payload)} bytes for {n} regions ({end})")
        if n != len(request.fds):
            raise PeerError(
                f"{n} regions with {len(request.fds)} file descriptors; all of the guest's memory "
                f"must be shared (QEMU: memory-backend-memfd with share=on)"
            )
        regions = [
            vu.MEMORY_REGION.unpack(request.payload, offset)
            for offset in range(vu.MEMORY_TABLE_HEAD.size, end, vu.MEMORY_REGION.size)
        ]
        self._device.set_mem_table(regions, request.fds)

    def get_max_mem_slots(self, _nothing: vu.Nothing, _request: Request) -> vu.Number:
        return vu.Number(self._device.max_mem_slots)

    def add_mem_reg(self, message: vu.SingleRegion, request: Request) -> None:
        self._device.add_mem_reg(message.region, request.fds[0])

    def rem_mem_reg(self, message: vu.SingleRegion, _request: Request) -> None:
        # Some front-ends send the region's descriptor along; it stays in the request, unused.
        self._device.rem_mem_reg(message.region)

    def set_backend_req_fd(self, _nothing: vu.Nothing, request: Request) -> None:
        self._device.set_backend_req_fd(request.fds.pop())

    def iotlb_msg(self, message: vu.Iotlb, _request: Request) -> None:
        if message.type == vu.VHOST_IOTLB_UPDATE:
            self._device.iotlb_update(message.iova, message.size, message.uaddr, message.perm)
        elif message.type == vu.VHOST_IOTLB_INVALIDATE:
            self._device.iotlb_invalidate(message.iova, message.size)
        else:
            raise PeerError(f"IOTLB message type {message.type} is neither update nor invalidate")

    def set_log_base(self, log: vu.Log, request: Request) -> vu.Number:
        self._device.set_log_base(log.mmap_size, log.mmap_offset, request.fds[0])
        # With LOG_SHMFD there is always a reply; nobody looks at its content.
        return vu.Number(0)

    def set_log_fd(self, _nothing: vu.Nothing, request: Request) -> None:
        self._device.set_log_fd(request.fds.pop())

    # --- Rings ---------------------------------------------------------------------------------

    def set_vring_num(self, state: vu.VringState, _request: Request) -> None:
        self._check_index(state.index)
        self._device.set_vring_num(state.index, state.num)

    def set_vring_addr(self, addr: vu.VringAddr, _request: Request) -> None:
        self._check_index(addr.index)
        self._device.set_vring_addr(addr)

    def set_vring_base(self, state: vu.VringState, _request: Request) -> None:
        self._check_index(state.index)
        self._device.set_vring_base(state.index, state.num)

    def get_vring_base(self, state: vu.VringState, _request: Request) -> vu.VringState:
        # state.num means nothing here; DPDK leaves garbage in it.
        self._check_index(state.index)
        base = self._device.get_vring_base(state.index)
        return vu.VringState(state.index, base)

    def set_vring_enable(self, state: vu.VringState, _request: Request) -> None:
        self._check_index(state.index)
        if state.num not in (0, 1):
            raise PeerError(f"ring {state.index}: {state.num} is neither 0 nor 1")
        self._device.set_vring_enable(state.index, bool(state.num))

    def set_vring_kick(self, number: vu.VringFile, request: Request) -> None:
        self._device.set_vring_kick(*self._take_vring_fd(number, request))

    def set_vring_call(self, number: vu.VringFile, request: Request) -> None:
        self._device.set_vring_call(*self._take_vring_fd(number, request))

    def set_vring_err(self, number: vu.VringFile, request: Request) -> None:
        self._device.set_vring_err(*self._take_vring_fd(number, request))

    def _take_vring_fd(self, number: vu.VringFile, request: Request) -> tuple[int, int | None]:
        """The ring's index and the descriptor, which leaves the request for the device."""
        unknown = number.u64 & ~(vu.VHOST_USER_VRING_IDX_MASK | vu.VHOST_USER_VRING_NOFD_MASK)
        if unknown:
            raise PeerError(f"{number.u64:#x} has bits above 8, which mean nothing")
        index = number.u64 & vu.VHOST_USER_VRING_IDX_MASK
        self._check_index(index)
        if number.u64 & vu.VHOST_USER_VRING_NOFD_MASK:
            if request.fds:
                raise PeerError(f"ring {index}: says it has no file descriptor, but one came")
            return index, None
        if not request.fds:
            raise PeerError(f"ring {index}: the file descriptor is missing")
        return index, request.fds.pop()

    # --- Network -------------------------------------------------------------------------------

    def send_rarp(self, _number: vu.Number, request: Request) -> None:
        self._device.send_rarp(request.payload[:MAC_SIZE])

    def set_mtu(self, number: vu.Number, _request: Request) -> None:
        if not MIN_MTU <= number.u64 <= MAX_MTU:
            raise PeerError(f"MTU {number.u64} is not within {MIN_MTU} to {MAX_MTU}")
        self._device.set_mtu(number.u64)


def _number_reply(request: Request, number: int) -> bytes:
    return encode_reply(request.number, vu.NUMBER.pack(vu.Number(number)))


P = TypeVar("P")
R = TypeVar("R")


def _ack(
    number: int,
    layout: Layout[P],
    handler: Callable[[Session, P, Request], None],
    *,
    items: Layout[Any] | None = None,
    fds: tuple[int, int] = (0, 0),
    feature: int | None = None,
    is_longer_allowed: bool = False,
) -> Rule:
    """Declare a message that is acknowledged, if at all."""
    return Rule(number, layout, items, is_longer_allowed, *fds, Answer.ACK, feature, None, handler)


def _reply(
    number: int,
    layout: Layout[P],
    reply: Layout[R],
    handler: Callable[[Session, P, Request], R],
    *,
    fds: tuple[int, int] = (0, 0),
    feature: int | None = None,
) -> Rule:
    """Declare a message with a reply of its own."""
    return Rule(number, layout, None, False, *fds, Answer.REPLY, feature, reply, handler)


_BACKEND_REQ = vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ
_LOG = vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD
_MQ = vu.VHOST_USER_PROTOCOL_F_MQ
_SLOTS = vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
_STATUS = vu.VHOST_USER_PROTOCOL_F_STATUS

RULES: dict[int, Rule] = {
    rule.number: rule
    for rule in (
        _reply(vu.VHOST_USER_GET_FEATURES, vu.NOTHING, vu.FEATURES, Session.get_features),
        _ack(vu.VHOST_USER_SET_FEATURES, vu.FEATURES, Session.set_features),
        _ack(vu.VHOST_USER_SET_OWNER, vu.NOTHING, Session.set_owner),
        _ack(vu.VHOST_USER_RESET_OWNER, vu.NOTHING, Session.reset_owner),
        _ack(
            vu.VHOST_USER_SET_MEM_TABLE,
            vu.MEMORY_TABLE_HEAD,
            Session.set_mem_table,
            items=vu.MEMORY_REGION,
            fds=(0, MAX_FDS),
            is_longer_allowed=True,
        ),
        _reply(
            vu.VHOST_USER_SET_LOG_BASE,
            vu.LOG,
            vu.NUMBER,
            Session.set_log_base,
            fds=(1, 1),
            feature=_LOG,
        ),
        _ack(vu.VHOST_USER_SET_LOG_FD, vu.NOTHING, Session.set_log_fd, fds=(1, 1), feature=_LOG),
        _ack(vu.VHOST_USER_SET_VRING_NUM, vu.VRING_STATE, Session.set_vring_num),
        _ack(vu.VHOST_USER_SET_VRING_ADDR, vu.VRING_ADDR, Session.set_vring_addr),
        _ack(vu.VHOST_USER_SET_VRING_BASE, vu.VRING_STATE, Session.set_vring_base),
        _reply(
            vu.VHOST_USER_GET_VRING_BASE, vu.VRING_STATE, vu.VRING_STATE, Session.get_vring_base
        ),
        _ack(vu.VHOST_USER_SET_VRING_KICK, vu.VRING_FILE, Session.set_vring_kick, fds=(0, 1)),
        _ack(vu.VHOST_USER_SET_VRING_CALL, vu.VRING_FILE, Session.set_vring_call, fds=(0, 1)),
        _ack(vu.VHOST_USER_SET_VRING_ERR, vu.VRING_FILE, Session.set_vring_err, fds=(0, 1)),
        _reply(
            vu.VHOST_USER_GET_PROTOCOL_FEATURES,
            vu.NOTHING,
            vu.PROTOCOL_FEATURES,
            Session.get_protocol_features,
        ),
        _ack(
            vu.VHOST_USER_SET_PROTOCOL_FEATURES, vu.PROTOCOL_FEATURES, Session.set_protocol_features
        ),
        _reply(
            vu.VHOST_USER_GET_QUEUE_NUM, vu.NOTHING, vu.NUMBER, Session.get_queue_num, feature=_MQ
        ),
        _ack(vu.VHOST_USER_SET_VRING_ENABLE, vu.VRING_STATE, Session.set_vring_enable),
        _ack(
            vu.VHOST_USER_SEND_RARP,
            vu.NUMBER,
            Session.send_rarp,
            feature=vu.VHOST_USER_PROTOCOL_F_RARP,
        ),
        _ack(
            vu.VHOST_USER_NET_SET_MTU,
            vu.NUMBER,
            Session.set_mtu,
            feature=vu.VHOST_USER_PROTOCOL_F_MTU,
        ),
        _ack(
            vu.VHOST_USER_SET_BACKEND_REQ_FD,
            vu.NOTHING,
            Session.set_backend_req_fd,
            fds=(1, 1),
            feature=_BACKEND_REQ,
        ),
        _ack(vu.VHOST_USER_IOTLB_MSG, vu.IOTLB, Session.iotlb_msg, feature=_BACKEND_REQ),
        _ack(
            vu.VHOST_USER_RESET_DEVICE,
            vu.NOTHING,
            Session.reset_device,
            feature=vu.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
        ),
        _reply(
            vu.VHOST_USER_GET_MAX_MEM_SLOTS,
            vu.NOTHING,
            vu.NUMBER,
            Session.get_max_mem_slots,
            feature=_SLOTS,
        ),
        _ack(
            vu.VHOST_USER_ADD_MEM_REG,
            vu.SINGLE_REGION,
            Session.add_mem_reg,
            fds=(1, 1),
            feature=_SLOTS,
        ),
        _ack(
            vu.VHOST_USER_REM_MEM_REG,
            vu.SINGLE_REGION,
            Session.rem_mem_reg,
            fds=(0, 1),
            feature=_SLOTS,
        ),
        _ack(vu.VHOST_USER_SET_STATUS, vu.STATUS, Session.set_status, feature=_STATUS),
        _reply(
            vu.VHOST_USER_GET_STATUS, vu.NOTHING, vu.STATUS, Session.get_status, feature=_STATUS
        ),
    )
}
"""Every message that is answered, by number."""
