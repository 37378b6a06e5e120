"""Write, read and poll of a vhost character device: IOTLB messages.

The owner says where I/O virtual addresses are, and reads which ones are missed.

Source: Linux vhost_chr_write_iter(), vhost_chr_read_iter().
"""

from __future__ import annotations

import collections
import errno
from collections.abc import Callable, Sequence

from vhostnet.errors import PeerError
from vhostnet.uapi.vhost import (
    MSG,
    VHOST_IOTLB_INVALIDATE,
    VHOST_IOTLB_MISS,
    VHOST_IOTLB_MSG,
    VHOST_IOTLB_MSG_V2,
    VHOST_IOTLB_UPDATE,
    IotlbMsg,
    Msg,
)

from .memory import user_range
from .vhost_net import VhostNet

_WORD = 1 << 64
#: What our own tables compute with.
_IOVA_LIMIT = 1 << 63
#: A message must have the outer type, and the body up to its own type.
_MSG_MIN = 40


class IotlbMessages:
    """The messages of one open file.

    Args:
        net: the device; its misses come here.
        reach: sees to it that ranges of the owner's memory, (uva, bytes), are known to *net*.
        tell: called when `read` has something, in the worker's or the control thread.

    Attributes:
        version_2: the owner has acked VHOST_BACKEND_F_IOTLB_MSG_V2: the form of misses.
    """

    def __init__(
        self,
        net: VhostNet,
        reach: Callable[[Sequence[tuple[int, int]]], None],
        tell: Callable[[], None],
    ) -> None:
        self._net, self._reach, self._tell = net, reach, tell
        self.version_2 = False
        #: what `read` gives
        self._misses: collections.deque[bytes] = collections.deque()
        net.on_iotlb_miss = self._on_miss

    def forget(self) -> None:
        """Nobody wants to know what was missed."""
        self._misses.clear()

    def _on_miss(self, iova: int, access: int) -> None:
        outer = VHOST_IOTLB_MSG_V2 if self.version_2 else VHOST_IOTLB_MSG
        body = IotlbMsg(iova, 0, 0, access, VHOST_IOTLB_MISS)
        self._misses.append(MSG.pack(Msg(outer, 0, body)))
        self._tell()

    def write(self, data: bytes) -> int:
        """An IOTLB message; returns 72.  EINVAL for its form, EFAULT for what it asks."""
        if len(data) < _MSG_MIN:
            raise PeerError("an IOTLB message is too short")
        message = MSG.unpack(data[: MSG.size].ljust(MSG.size, b"\0"))
        if message.type not in (VHOST_IOTLB_MSG, VHOST_IOTLB_MSG_V2):
            raise PeerError(f"an IOTLB message of type {message.type}")
        body = message.iotlb
        if body.type == VHOST_IOTLB_UPDATE and body.size == 0:
            raise PeerError("an IOTLB update of no bytes")
        self.send(body)
        return MSG.size

    def send(self, body: IotlbMsg) -> None:
        """What the message asks; EFAULT for whatever is wrong with it."""
        if self._net.iotlb is None:
            raise PeerError(f"{self._net.name}: there is no IOTLB", errno.EFAULT)
        if body.type == VHOST_IOTLB_UPDATE:
            self._update(body)
        elif body.type == VHOST_IOTLB_INVALIDATE:
            self._net.iotlb_invalidate(body.iova, body.size)
        else:
            raise PeerError(f"an IOTLB message of body type {body.type}", errno.EFAULT)

    def _update(self, body: IotlbMsg) -> None:
        wraps = body.iova + body.size > _WORD
        if wraps or (body.perm and not user_range(body.uaddr, body.size)):
            raise PeerError(f"IOTLB update of {body.iova:#x}: no user range", errno.EFAULT)
        size = min(body.size, _IOVA_LIMIT - body.iova, _WORD - body.uaddr)
        if size > 0:  # beyond our limit no address of a descriptor can be
            if body.perm:
                self._reach([(body.uaddr, size)])
            try:
                self._net.iotlb_update(body.iova, size, body.uaddr, body.perm)
            except PeerError as e:
                raise PeerError(str(e), errno.EFAULT) from e

    def read(self, size: int) -> bytes:
        """The next miss, EAGAIN if there is none; nothing for less room than a message."""
        if size < MSG.size:
            return b""
        try:
            return self._misses.popleft()
        except IndexError:
            raise PeerError("there is no IOTLB message", errno.EAGAIN) from None

    def unread(self, messages: Sequence[bytes]) -> None:
        """Put back what `read` gave, before what has come since."""
        self._misses.extendleft(reversed(messages))

    def readable(self) -> bool:
        """poll: whether `read` has something."""
        return bool(self._misses)
