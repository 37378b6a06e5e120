"""Other networks than a TAP's own wire: what a `Card` takes in place of a `Tap`; stdlib only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time

from oracle.lab import ETHERTYPE, PATIENCE, SIOCSIFMTU, NotHere, Tap, describe
from vhostnet.uapi import packet, tun

SIOCBRADDBR, SIOCBRDELBR, SIOCBRADDIF = 0x89A0, 0x89A1, 0x89A2


class PacketSocket(Tap):
    """A raw packet socket on a TAP: the device has the socket, and the wire is the TAP's file.

    Args:
        hdr_len: bytes of virtio_net_hdr that the socket speaks, 0 or 10.
        protocol: what it is bound to: one protocol, or all.
    """

    def __init__(
        self, name: str, hdr_len: int, *, mtu: int = 1500, protocol: int = ETHERTYPE
    ) -> None:
        super().__init__(name, 0, 0, attach=True, up=True)
        self.wire_fd = self.fd
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            fcntl.ioctl(s, SIOCSIFMTU, struct.pack("16si20x", name.encode(), mtu))
        self.wire.close()
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.bind((name, protocol))
        if hdr_len:
            self.socket.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        self.fd = self.socket.fileno()

    def arrive(self, *frames: bytes) -> None:
        for data in frames:
            os.write(self.wire_fd, data)

    def sent(self, expected: int) -> list[str]:
        got: list[str] = []
        deadline = time.monotonic() + PATIENCE / 10
        while True:
            try:
                got.append(describe(os.read(self.wire_fd, 1 << 17)))
            except BlockingIOError:
                if len(got) >= expected or time.monotonic() > deadline:
                    return got
                time.sleep(0.001)

    def error(self) -> str:
        """The error that is pending, taken off the socket."""
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return errno.errorcode.get(number, "none")

    def close_fd(self) -> None:
        self.socket.close()
        if self.wire_fd >= 0:
            os.close(self.wire_fd)
            self.wire_fd = self.fd = -1


class Bridged(Tap):
    """A TAP in a bridge with another one, whose file is the wire.

    The kernel takes the VLAN tag off what comes in, and hands it to the second TAP beside the
    frame, as it does with a network card's.
    """

    def __init__(self, name: str, hdr_len: int) -> None:
        with contextlib.suppress(OSError):  # the bridge would join a group, and tell
            with open("/proc/sys/net/ipv4/igmp_link_local_mcast_reports", "w") as file:
                file.write("0")
            with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as file:
                file.write("1")
        super().__init__(name, hdr_len, tun.IFF_VNET_HDR, attach=True, up=True)
        self._far = Tap(f"{name}far", 0, 0, attach=True, up=True)
        self._bridge = f"{name}br".encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                fcntl.ioctl(s, SIOCBRADDBR, self._bridge + bytes(16 - len(self._bridge)))
            except OSError as e:
                raise NotHere(f"no bridge: {e.strerror}") from e
            for port in (self, self._far):
                index = socket.if_nametoindex(port.name)
                fcntl.ioctl(s, SIOCBRADDIF, struct.pack("16si20x", self._bridge, index))
        self.set_up(self._bridge.decode())

    def arrive(self, *frames: bytes) -> None:
        for data in frames:
            os.write(self._far.fd, data)

    def close(self) -> None:
        self.set_up(self._bridge.decode(), False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            fcntl.ioctl(s, SIOCBRDELBR, self._bridge + bytes(16 - len(self._bridge)))
        self._far.close()
        super().close()
