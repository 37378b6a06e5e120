"""A vhost character device, such as /dev/vhost-net: each verb is one ioctl.

Addresses are this process's own, so the memory must have uva = hva (`GuestMemory`'s default),
and the process that calls `set_owner` is the only one that may call the rest.

For arguments that no honest caller passes there is `ioctl`.  stdlib only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
from collections.abc import Sequence

from vhostnet.uapi import vhost
from vhostnet.uapi.vhost import IotlbMsg, VringAddr, VringState

from .guest_memory import DirtyLog, Region
from .transport import VerbError

DEVICE = "/dev/vhost-net"


class IoctlTransport:
    """One open file of a vhost character device.

    Args:
        device: its path, or a descriptor that becomes ours.

    Attributes:
        fd: the open file.
    """

    n_rings = 2

    def __init__(self, device: str | int = DEVICE) -> None:
        if isinstance(device, str):
            self.name = device
            try:
                self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            except OSError as e:
                raise VerbError(e.errno or errno.EIO, f"{device}: {e.strerror}") from e
        else:
            self.name = f"descriptor {device}"
            self.fd = device

    # --- the raw door ------------------------------------------------------------------

    def ioctl(self, number: int, argument: bytes | int = 0) -> bytes:
        """Call ioctl(2) with anything at all.

        Args:
            argument: bytes: a pointer to a copy of them is passed; an int of 32 bits: passed
                as it is (0 is a NULL pointer).

        Returns:
            The bytes as the call left them.
        """
        name = vhost.IOCTL_NAMES.get(number, f"ioctl {number:#x}")
        try:
            if isinstance(argument, int):
                fcntl.ioctl(self.fd, number, argument)
                return b""
            buffer = bytearray(argument)
            fcntl.ioctl(self.fd, number, buffer, True)
            return bytes(buffer)
        except OSError as e:
            raise VerbError(e.errno or errno.EIO, f"{name}: {e.strerror}") from e

    def _set_number(self, number: int, value: int) -> None:
        self.ioctl(number, value.to_bytes(vhost.NUMBER_SIZE, "little"))

    def _get_number(self, number: int) -> int:
        return int.from_bytes(self.ioctl(number, bytes(vhost.NUMBER_SIZE)), "little")

    def _set_state(self, number: int, index: int, num: int) -> None:
        self.ioctl(number, vhost.VRING_STATE.pack(VringState(index, num)))

    def _get_state(self, number: int, index: int) -> int:
        reply = self.ioctl(number, vhost.VRING_STATE.pack(VringState(index, 0)))
        return vhost.VRING_STATE.unpack(reply).num

    def _set_file(self, number: int, index: int, fd: int | None) -> None:
        file = vhost.VringFile(index, -1 if fd is None else fd)
        self.ioctl(number, vhost.VRING_FILE.pack(file))

    # --- features and owner --------------------------------------------------------------

    def get_features(self) -> int:
        return self._get_number(vhost.VHOST_GET_FEATURES)

    def set_features(self, features: int) -> None:
        self._set_number(vhost.VHOST_SET_FEATURES, features)

    def get_features_array(self, count: int) -> list[int]:
        head = vhost.FEATURES_HEAD.pack(vhost.FeaturesHead(count))
        reply = self.ioctl(vhost.VHOST_GET_FEATURES_ARRAY, head + bytes(8 * count))
        return [
            int.from_bytes(reply[at : at + 8], "little") for at in range(len(head), len(reply), 8)
        ]

    def set_features_array(self, words: Sequence[int]) -> None:
        head = vhost.FEATURES_HEAD.pack(vhost.FeaturesHead(len(words)))
        body = b"".join(word.to_bytes(8, "little") for word in words)
        self.ioctl(vhost.VHOST_SET_FEATURES_ARRAY, head + body)

    def get_backend_features(self) -> int:
        return self._get_number(vhost.VHOST_GET_BACKEND_FEATURES)

    def set_backend_features(self, features: int) -> None:
        self._set_number(vhost.VHOST_SET_BACKEND_FEATURES, features)

    def set_owner(self) -> None:
        self.ioctl(vhost.VHOST_SET_OWNER)

    def reset_owner(self) -> None:
        self.ioctl(vhost.VHOST_RESET_OWNER)

    # --- memory and rings ----------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[Region]) -> None:
        table = vhost.MEMORY_HEAD.pack(vhost.MemoryHead(len(regions), 0))
        for region in regions:
            table += vhost.MEMORY_REGION.pack(
                vhost.MemoryRegion(region.gpa, region.size, region.uva, 0)
            )
        self.ioctl(vhost.VHOST_SET_MEM_TABLE, table)

    def set_vring_num(self, index: int, num: int) -> None:
        self._set_state(vhost.VHOST_SET_VRING_NUM, index, num)

    def set_vring_base(self, index: int, base: int) -> None:
        self._set_state(vhost.VHOST_SET_VRING_BASE, index, base)

    def get_vring_base(self, index: int) -> int:
        return self._get_state(vhost.VHOST_GET_VRING_BASE, index)

    def set_vring_addr(self, addr: VringAddr) -> None:
        self.ioctl(vhost.VHOST_SET_VRING_ADDR, vhost.VRING_ADDR.pack(addr))

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        self._set_file(vhost.VHOST_SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self._set_file(vhost.VHOST_SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._set_file(vhost.VHOST_SET_VRING_ERR, index, fd)

    def set_log_base(self, log: DirtyLog) -> None:
        self._set_number(vhost.VHOST_SET_LOG_BASE, log.uva)

    def set_log_fd(self, fd: int | None) -> None:
        number = -1 if fd is None else fd
        self.ioctl(vhost.VHOST_SET_LOG_FD, number.to_bytes(4, "little", signed=True))

    def set_busyloop(self, index: int, timeout_us: int) -> None:
        self._set_state(vhost.VHOST_SET_VRING_BUSYLOOP_TIMEOUT, index, timeout_us)

    def get_busyloop(self, index: int) -> int:
        return self._get_state(vhost.VHOST_GET_VRING_BUSYLOOP_TIMEOUT, index)

    def set_backend(self, index: int, fd: int | None) -> None:
        self._set_file(vhost.VHOST_NET_SET_BACKEND, index, fd)

    # --- IOTLB ---------------------------------------------------------------------------

    def send_iotlb(self, message: IotlbMsg) -> None:
        self.write(vhost.MSG.pack(vhost.Msg(vhost.VHOST_IOTLB_MSG_V2, 0, message)))

    def receive_iotlb(self, timeout: float = 0.0) -> IotlbMsg | None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(int(timeout * 1000)):
            return None
        data = self.read(vhost.MSG.size)
        return vhost.MSG.unpack(data).iotlb if len(data) == vhost.MSG.size else None

    def write(self, data: bytes) -> int:
        """write(2) of anything at all."""
        try:
            return os.write(self.fd, data)
        except OSError as e:
            raise VerbError(e.errno or errno.EIO, f"write: {e.strerror}") from e

    def read(self, size: int) -> bytes:
        """read(2) of *size* bytes."""
        try:
            return os.read(self.fd, size)
        except OSError as e:
            raise VerbError(e.errno or errno.EIO, f"read: {e.strerror}") from e

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
