"""Open a TAP as a VMM does before it hands it to vhost; stdlib only."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vhostnet.uapi import tun

from .transport import VerbError

_NODE = "/dev/net/tun"
_IFREQ = struct.Struct(f"{tun.IFNAMSIZ}sH{tun.IFREQ_SIZE - tun.IFNAMSIZ - 2}x")


def open_tap(name: str, hdr_len: int, *, offloads: int = 0, flags: int = 0) -> int:
    """A descriptor of the TAP *name*, which is created if it does not exist.

    Args:
        hdr_len: bytes of vnet header that the driver and the device agreed on.
        offloads: TUN_F_*.
        flags: further IFF_*, such as IFF_MULTI_QUEUE.
    """
    try:
        fd = os.open(_NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise VerbError(e.errno or errno.EIO, f"{_NODE}: {e.strerror}") from e
    try:
        wanted = flags | tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
        fcntl.ioctl(fd, tun.TUNSETIFF, _IFREQ.pack(name.encode(), wanted))
        fcntl.ioctl(fd, tun.TUNSETVNETHDRSZ, struct.pack("i", hdr_len))
        fcntl.ioctl(fd, tun.TUNSETOFFLOAD, offloads)
    except OSError as e:
        os.close(fd)
        raise VerbError(e.errno or errno.EIO, f"TAP {name}: {e.strerror}") from e
    return fd
