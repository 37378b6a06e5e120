"""A vhost-user socket: each verb is one message, or a few.

Theory of operation
-------------------
vhost-user took the kernel's ioctls for its messages, with three differences that this file
hides so that one program fits both:

* Errors.  A message has no result unless REPLY_ACK is negotiated.  Then every message asks
  for an ack and a refusal is a VerbError (EREMOTEIO: the reason does not travel).  Without it
  the connection is the only answer: a back-end that refuses closes it (ECONNRESET), and
  `barrier` waits until it had the chance to.
* Starting.  There is no SET_BACKEND: a ring runs once it is *started* (it got its kick) and
  *enabled*; one that is started but not enabled throws away what the driver sends.  So the
  kick is kept here, `set_backend(index, fd)` enables the ring and then sends the kick.
  With STATUS negotiated, the first ring's start says DRIVER_OK before.
* Stopping.  GET_VRING_BASE stops a ring, and the back-end forgets kick and call.
  `set_backend(index, None)` sends it and remembers the base, `get_vring_base` then tells it,
  and the next start sends base, call and kick again.

    STOPPED   before the first `set_backend`, after `set_backend(index, None)`
        Operations:  kick, call, err and base are remembered; call, err and base are sent too
    RUNNING   after `set_backend(index, fd)`
        Operations:  a new kick or call is sent at once
        Caveats:     `get_vring_base` stops the ring: there is no other way to ask

For messages that no honest front-end sends there are `send` and `receive`.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vhostnet.protocol.vhost_user_codec import MAX_FDS, Codec, Request, encode_message
from vhostnet.uapi import vhost
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.vhost import IotlbMsg, VringAddr

from .guest_memory import DirtyLog, Region
from .transport import NoSuchVerb, VerbError

#: What this front-end can use.  BACKEND_REQ opens the back-end's channel (IOTLB misses).
PROTOCOL_FEATURES = sum(
    1 << bit
    for bit in (
        vu.VHOST_USER_PROTOCOL_F_MQ,
        vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD,
        vu.VHOST_USER_PROTOCOL_F_RARP,
        vu.VHOST_USER_PROTOCOL_F_REPLY_ACK,
        vu.VHOST_USER_PROTOCOL_F_MTU,
        vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ,
        vu.VHOST_USER_PROTOCOL_F_RESET_DEVICE,
        vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
        vu.VHOST_USER_PROTOCOL_F_STATUS,
    )
)
#: ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK
_DRIVER_OK = 15
_BIT_30 = 1 << vu.VHOST_USER_F_PROTOCOL_FEATURES
#: On the back-end's channel, where requests have numbers of their own.
_BACKEND_IOTLB_MSG = 1


@dataclass(slots=True)
class _Ring:
    """What has been said about a ring; descriptors are duplicates of ours."""

    kick_fd: int | None = None
    has_kick: bool = False
    call_fd: int | None = None
    has_call: bool = False
    base: int | None = None
    running: bool = False
    lost: bool = False  # the back-end forgot kick and call


class VhostUserTransport:
    """The front-end's end of a vhost-user connection.

    Args:
        sock: a connected stream socket, ours from now on.
        protocol_features: those to acknowledge if they are offered.
        timeout: seconds to wait for an answer.

    Attributes:
        protocol_features: what was negotiated.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        protocol_features: int = PROTOCOL_FEATURES,
        timeout: float = 10.0,
        name: str = "vhost-user socket",
    ) -> None:
        self.name = name
        self.sock = sock
        self.protocol_features = 0
        self.n_rings = 2
        self._wanted = protocol_features
        self._timeout = timeout
        self._codec = Codec()
        self._rings: dict[int, _Ring] = {}
        self._backend_channel: socket.socket | None = None
        self._offered: int | None = None
        sock.settimeout(timeout)

    @classmethod
    def connect(cls, path: str, *, wait: float = 0.0, **options: object) -> VhostUserTransport:
        """Connect to the socket that a back-end listens on.

        Args:
            wait: seconds to try again while nobody listens there.
        """
        deadline = time.monotonic() + wait
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(path)
            except OSError as e:
                sock.close()
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                raise VerbError(e.errno or errno.EIO, f"{path}: {e.strerror}") from e
            return cls._negotiated(sock, path, options)

    @classmethod
    def listen(cls, path: str, *, wait: float = 10.0, **options: object) -> VhostUserTransport:
        """Listen for a back-end that connects, and take the first."""
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as door:
            door.bind(path)
            try:
                door.listen(1)
                door.settimeout(wait)
                sock, _ = door.accept()
            except TimeoutError as e:
                raise VerbError(errno.ETIMEDOUT, f"{path}: no back-end came") from e
            finally:
                os.unlink(path)
        return cls._negotiated(sock, path, options)

    @classmethod
    def _negotiated(
        cls, sock: socket.socket, path: str, options: dict[str, object]
    ) -> VhostUserTransport:
        made = cls(sock, name=path, **options)  # type: ignore[arg-type]
        try:
            made.negotiate()
        except BaseException:
            made.close()
            raise
        return made

    def negotiate(self) -> None:
        """Agree on protocol features and open the back-end's channel, if there is one.

        `connect` and `listen` have done it.
        """
        if not self._features() & _BIT_30:
            return
        offered = self._get_number(vu.VHOST_USER_GET_PROTOCOL_FEATURES)
        chosen = offered & self._wanted
        self._set(vu.VHOST_USER_SET_PROTOCOL_FEATURES, _number(chosen))
        self.protocol_features = chosen
        if self.has(vu.VHOST_USER_PROTOCOL_F_MQ):
            # Some back-ends answer pairs, some rings; at least one pair there is.
            self.n_rings = max(2, self._get_number(vu.VHOST_USER_GET_QUEUE_NUM) & ~1)
        if self.has(vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self._backend_channel = ours
            with theirs:
                self._set(vu.VHOST_USER_SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    def has(self, protocol_feature: int) -> bool:
        """Whether this protocol feature (bit number) was negotiated."""
        return bool(self.protocol_features >> protocol_feature & 1)

    def _require(self, protocol_feature: int, what: str) -> None:
        if not self.has(protocol_feature):
            name = vu.PROTOCOL_FEATURE_NAMES[protocol_feature]
            raise NoSuchVerb(f"{what}: protocol feature {name} is not negotiated")

    # --- the raw door ---------------------------------------------------------------------------

    def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        """Send a message, well-formed or not; nothing is received."""
        flags = vu.VHOST_USER_VERSION | (vu.VHOST_USER_NEED_REPLY_MASK if need_reply else 0)
        self.send_bytes(encode_message(request, flags, payload), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, the descriptors with the first of them."""
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            sent = self.sock.sendmsg([data], ancillary)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except OSError as e:
            raise self._lost(e) from e

    def receive(self) -> Request:
        """The back-end's next message; its descriptors are the caller's."""
        while True:
            try:
                data, fds, flags, _ = socket.recv_fds(self.sock, self._codec.wanted, MAX_FDS)
            except OSError as e:
                raise self._lost(e) from e
            if not data:
                raise VerbError(errno.ECONNRESET, f"{self.name}: the back-end closed")
            for fd in fds:
                os.set_inheritable(fd, False)
            messages = self._codec.feed(data, fds)
            if self._codec.error is not None or flags & socket.MSG_CTRUNC:
                raise VerbError(errno.EPROTO, f"{self.name}: {self._codec.error or 'lost fds'}")
            if messages:
                return messages[0]

    def _lost(self, error: OSError) -> VerbError:
        if isinstance(error, TimeoutError):
            return VerbError(errno.ETIMEDOUT, f"{self.name}: no answer in {self._timeout:g} s")
        if isinstance(error, BrokenPipeError):
            return VerbError(errno.ECONNRESET, f"{self.name}: the back-end closed")
        return VerbError(error.errno or errno.EIO, f"{self.name}: {error.strerror}")

    def call(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a request that has a reply of its own; returns the reply's payload."""
        self.send(request, payload, fds)
        return self._reply_to(request)

    def _reply_to(self, request: int) -> bytes:
        reply = self.receive()
        for fd in reply.fds:
            os.close(fd)
        wanted = vu.VHOST_USER_VERSION | vu.VHOST_USER_REPLY_MASK
        if reply.number != request or reply.flags != wanted:
            asked = vu.REQUEST_NAMES.get(request, str(request))
            raise VerbError(
                errno.EPROTO,
                f"{asked} was answered by {reply.name} with flags {reply.flags:#x}",
            )
        return reply.payload

    def _set(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request without a reply of its own; with REPLY_ACK, wait for the ack."""
        acked = self.has(vu.VHOST_USER_PROTOCOL_F_REPLY_ACK)
        self.send(request, payload, fds, need_reply=acked)
        if not acked:
            return
        reply = self._reply_to(request)
        if len(reply) != vu.NUMBER.size or vu.NUMBER.unpack(reply).u64 != 0:
            name = vu.REQUEST_NAMES.get(request, str(request))
            raise VerbError(errno.EREMOTEIO, f"{name}: the back-end refused")

    def _get_number(self, request: int) -> int:
        reply = self.call(request)
        if len(reply) != vu.NUMBER.size:
            name = vu.REQUEST_NAMES.get(request, str(request))
            raise VerbError(errno.EPROTO, f"{name}: a reply of {len(reply)} bytes")
        return vu.NUMBER.unpack(reply).u64

    def barrier(self) -> None:
        """Return when the back-end has handled all messages so far."""
        self._get_number(vu.VHOST_USER_GET_FEATURES)

    # --- features and owner ---------------------------------------------------------------------

    def _features(self) -> int:
        self._offered = self._get_number(vu.VHOST_USER_GET_FEATURES)
        return self._offered

    def get_features(self) -> int:
        """The virtio features; the bit of vhost-user's own is kept to ourselves."""
        return self._features() & ~_BIT_30

    def set_features(self, features: int) -> None:
        """Acknowledge; bit 30 is added if it was offered."""
        offered = self._features() if self._offered is None else self._offered
        self._set(vu.VHOST_USER_SET_FEATURES, _number(features | offered & _BIT_30))

    def get_features_array(self, count: int) -> list[int]:
        raise NoSuchVerb(f"vhost-user has no features array ({count} words)")

    def set_features_array(self, words: Sequence[int]) -> None:
        raise NoSuchVerb(f"vhost-user has no features array ({len(words)} words)")

    def get_backend_features(self) -> int:
        raise NoSuchVerb("vhost-user has protocol features in place of backend features")

    def set_backend_features(self, features: int) -> None:
        raise NoSuchVerb(
            f"vhost-user has protocol features in place of backend features ({features:#x})"
        )

    def set_owner(self) -> None:
        self._set(vu.VHOST_USER_SET_OWNER)

    def reset_owner(self) -> None:
        """Stop the rings and reset the device (RESET_DEVICE, where it is negotiated)."""
        for index, ring in self._rings.items():
            if ring.running:
                self._stop(index)
        if self.has(vu.VHOST_USER_PROTOCOL_F_RESET_DEVICE):
            self._set(vu.VHOST_USER_RESET_DEVICE)
        else:
            self._set(vu.VHOST_USER_RESET_OWNER)
        self._forget_rings()

    # --- memory ---------------------------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[Region]) -> None:
        body = vu.MEMORY_TABLE_HEAD.pack(vu.MemoryTableHead(len(regions), 0))
        for region in regions:
            body += vu.MEMORY_REGION.pack(_wire(region))
        self._set(vu.VHOST_USER_SET_MEM_TABLE, body, [_file(region) for region in regions])

    def get_max_mem_slots(self) -> int:
        """How many regions may be added one by one."""
        self._require(vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS, "GET_MAX_MEM_SLOTS")
        return self._get_number(vu.VHOST_USER_GET_MAX_MEM_SLOTS)

    def add_mem_reg(self, region: Region) -> None:
        """Add one region to the table."""
        self._require(vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS, "ADD_MEM_REG")
        message = vu.SINGLE_REGION.pack(vu.SingleRegion(0, _wire(region)))
        self._set(vu.VHOST_USER_ADD_MEM_REG, message, [_file(region)])

    def rem_mem_reg(self, region: Region) -> None:
        """Take one region out of the table."""
        self._require(vu.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS, "REM_MEM_REG")
        message = vu.SINGLE_REGION.pack(vu.SingleRegion(0, _wire(region)))
        self._set(vu.VHOST_USER_REM_MEM_REG, message)

    # --- rings ----------------------------------------------------------------------------------

    def _ring(self, index: int) -> _Ring:
        return self._rings.setdefault(index, _Ring())

    def set_vring_num(self, index: int, num: int) -> None:
        self._set(vu.VHOST_USER_SET_VRING_NUM, _state(index, num))

    def set_vring_base(self, index: int, base: int) -> None:
        self._set(vu.VHOST_USER_SET_VRING_BASE, _state(index, base))
        self._ring(index).base = base

    def get_vring_base(self, index: int) -> int:
        """The base of a stopped ring as it is remembered; a running ring is stopped by it."""
        ring = self._ring(index)
        if ring.running or ring.base is None:
            self._stop(index)
        assert ring.base is not None
        return ring.base

    def _stop(self, index: int) -> None:
        reply = self.call(vu.VHOST_USER_GET_VRING_BASE, _state(index, 0))
        if len(reply) != vu.VRING_STATE.size:
            raise VerbError(errno.EPROTO, f"GET_VRING_BASE: a reply of {len(reply)} bytes")
        ring = self._ring(index)
        ring.base = vu.VRING_STATE.unpack(reply).num
        ring.running = False
        ring.lost = True

    def set_vring_addr(self, addr: VringAddr) -> None:
        self._set(vu.VHOST_USER_SET_VRING_ADDR, vu.VRING_ADDR.pack(addr))

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """Remember the kick; a running ring gets it at once (see the theory of operation)."""
        ring = self._ring(index)
        _close(ring.kick_fd)
        ring.kick_fd = None if fd is None else _dup(fd)
        ring.has_kick = True
        if ring.running:
            self._send_fd(vu.VHOST_USER_SET_VRING_KICK, index, ring.kick_fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        ring = self._ring(index)
        _close(ring.call_fd)
        ring.call_fd = None if fd is None else _dup(fd)
        ring.has_call = True
        self._send_fd(vu.VHOST_USER_SET_VRING_CALL, index, ring.call_fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._send_fd(vu.VHOST_USER_SET_VRING_ERR, index, fd)

    def _send_fd(self, request: int, index: int, fd: int | None) -> None:
        if fd is None:
            self._set(request, _number(index | vu.VHOST_USER_VRING_NOFD_MASK))
        else:
            self._set(request, _number(index), [fd])

    def set_vring_enable(self, index: int, enable: bool) -> None:
        """Enable or disable a ring: what `set_backend` does, and nothing else."""
        self._set(vu.VHOST_USER_SET_VRING_ENABLE, _state(index, int(enable)))

    def set_backend(self, index: int, fd: int | None) -> None:
        """Start (the descriptor's value means nothing) or stop a ring."""
        ring = self._ring(index)
        is_enabling = self._offered is not None and bool(self._offered & _BIT_30)
        if fd is None:
            if ring.running:
                self._stop(index)
                if is_enabling:
                    self.set_vring_enable(index, False)
            return
        if ring.running:
            return
        if self.has(vu.VHOST_USER_PROTOCOL_F_STATUS) and not self._is_running():
            # Where it is negotiated some (DPDK) serve nobody without it.
            self.set_status(_DRIVER_OK)
        if ring.lost and ring.base is not None:
            self._set(vu.VHOST_USER_SET_VRING_BASE, _state(index, ring.base))
        if ring.lost and ring.has_call:
            self._send_fd(vu.VHOST_USER_SET_VRING_CALL, index, ring.call_fd)
        if is_enabling:
            self.set_vring_enable(index, True)
        self._send_fd(vu.VHOST_USER_SET_VRING_KICK, index, ring.kick_fd)
        ring.running = True
        ring.lost = False

    def _is_running(self) -> bool:
        return any(ring.running for ring in self._rings.values())

    # --- dirty log, the rest --------------------------------------------------------------------

    def set_log_base(self, log: DirtyLog) -> None:
        self._require(vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD, "SET_LOG_BASE")
        place = log.size.to_bytes(8, "little") + log.offset.to_bytes(8, "little")
        # Always answered; what the answer holds is not agreed upon among back-ends.
        self.call(vu.VHOST_USER_SET_LOG_BASE, place, [log.fd])

    def set_log_fd(self, fd: int | None) -> None:
        if fd is None:
            raise NoSuchVerb("vhost-user cannot take a log descriptor back")
        self._set(vu.VHOST_USER_SET_LOG_FD, fds=[fd])

    def set_busyloop(self, index: int, timeout_us: int) -> None:
        raise NoSuchVerb(f"vhost-user has no busy loop (ring {index}, {timeout_us} us)")

    def get_busyloop(self, index: int) -> int:
        raise NoSuchVerb(f"vhost-user has no busy loop (ring {index})")

    def set_mtu(self, mtu: int) -> None:
        """Tell the back-end the MTU that the guest is told."""
        self._require(vu.VHOST_USER_PROTOCOL_F_MTU, "NET_SET_MTU")
        self._set(vu.VHOST_USER_NET_SET_MTU, _number(mtu))

    def send_rarp(self, mac: bytes) -> None:
        """Let the back-end announce the guest's MAC."""
        self._require(vu.VHOST_USER_PROTOCOL_F_RARP, "SEND_RARP")
        self._set(vu.VHOST_USER_SEND_RARP, mac + bytes(2))

    def set_status(self, status: int) -> None:
        """Set virtio's device status."""
        self._require(vu.VHOST_USER_PROTOCOL_F_STATUS, "SET_STATUS")
        self._set(vu.VHOST_USER_SET_STATUS, _number(status))

    def get_status(self) -> int:
        """Virtio's device status."""
        self._require(vu.VHOST_USER_PROTOCOL_F_STATUS, "GET_STATUS")
        return self._get_number(vu.VHOST_USER_GET_STATUS)

    # --- IOTLB ----------------------------------------------------------------------------------

    def send_iotlb(self, message: IotlbMsg) -> None:
        self._require(vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ, "IOTLB_MSG")
        self._set(vu.VHOST_USER_IOTLB_MSG, vhost.IOTLB_MSG.pack(message))

    def receive_iotlb(self, timeout: float = 0.0) -> IotlbMsg | None:
        """The next IOTLB message on the back-end's channel; others there are answered "no"."""
        self._require(vu.VHOST_USER_PROTOCOL_F_BACKEND_REQ, "IOTLB_MSG")
        channel = self._backend_channel
        assert channel is not None
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([channel], [], [], left)[0]:
                return None
            request = _receive_whole(channel)
            if request is None:
                return None
            is_iotlb = (
                request.number == _BACKEND_IOTLB_MSG
                and len(request.payload) == vhost.IOTLB_MSG.size
            )
            if request.needs_reply:
                flags = vu.VHOST_USER_VERSION | vu.VHOST_USER_REPLY_MASK
                channel.sendall(encode_message(request.number, flags, _number(not is_iotlb)))
            if is_iotlb:
                return vhost.IOTLB_MSG.unpack(request.payload)

    # --- the end --------------------------------------------------------------------------------

    def _forget_rings(self) -> None:
        for ring in self._rings.values():
            _close(ring.kick_fd)
            _close(ring.call_fd)
        self._rings.clear()

    def close(self) -> None:
        """Close the connection; the back-end frees what it had of us when it notices."""
        self._forget_rings()
        for fd in self._codec.drain_fds():
            os.close(fd)
        if self._backend_channel is not None:
            self._backend_channel.close()
        self.sock.close()


def _number(value: int) -> bytes:
    return vu.NUMBER.pack(vu.Number(int(value)))


def _state(index: int, num: int) -> bytes:
    return vu.VRING_STATE.pack(vu.VringState(index, num))


def _wire(region: Region) -> vu.MemoryRegion:
    return vu.MemoryRegion(region.gpa, region.size, region.uva, region.offset)


def _file(region: Region) -> int:
    if region.fd is None:
        raise VerbError(errno.EINVAL, "private memory cannot be shared over a socket")
    return region.fd


def _dup(fd: int) -> int:
    try:
        return os.dup(fd)
    except OSError as e:
        raise VerbError(e.errno or errno.EBADF, f"descriptor {fd}: {e.strerror}") from e


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _receive_whole(channel: socket.socket) -> Request | None:
    """One message of the back-end's channel; None if it was closed."""
    codec = Codec()
    while True:
        data, fds, _, _ = socket.recv_fds(channel, codec.wanted, MAX_FDS)
        for fd in fds:  # none that we know carries any
            os.close(fd)
        if not data:
            return None
        messages = codec.feed(data)
        if codec.error is not None:
            raise VerbError(errno.EPROTO, f"back-end channel: {codec.error}")
        if messages:
            return messages[0]
