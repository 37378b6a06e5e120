"""Opening one queue of a TAP by the interface's name, which takes the right to do so."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import HostError
from vhostnet.uapi.tun import IFNAMSIZ, IFREQ_SIZE, TUNSETIFF

OPENER_SYSCALLS = ("openat",)
OPENER_IOCTLS = (TUNSETIFF,)

_TUN = "/dev/net/tun"
_IFREQ = struct.Struct(f"={IFNAMSIZ}sH")


@act(Policy.may_open_tap)
def open_tap_queue(name: str, flags: int) -> tuple[None, list[int]]:
    """A queue of the interface, which is made if it does not exist; HostError.

    Args:
        flags: IFF_*.
    """
    fd = _open_tun()
    try:
        _set_interface(fd, name, flags)
    except BaseException:
        os.close(fd)
        raise
    return None, [fd]


def _open_tun() -> int:
    try:
        return os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        what = {
            errno.ENOENT: "it does not exist: load the tun module, or give the container "
            "--device /dev/net/tun",
            errno.EACCES: "permission denied: open it to your group, or use tap-fd:N",
            errno.EPERM: "not permitted here: give the container --device /dev/net/tun",
        }.get(e.errno or 0, e.strerror)
        raise HostError(f"{_TUN}: {what}", e.errno or 0) from e


def _set_interface(fd: int, name: str, flags: int) -> None:
    request = _IFREQ.pack(name.encode(), flags).ljust(IFREQ_SIZE, b"\0")
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError as e:
        what = {
            errno.EPERM: "not permitted: run as root, or let its owner create it with "
            f"'ip tuntap add dev {name} mode tap user $USER vnet_hdr'",
            errno.EBUSY: "is in use by another program",
            errno.EINVAL: "exists with other flags (not a TAP, or multi_queue on one side "
            "only: it must match --queue-pairs)",
            errno.E2BIG: "has no more queues to give",
        }.get(e.errno or 0, e.strerror)
        raise HostError(f"TAP {name}: {what}", e.errno or 0) from e
