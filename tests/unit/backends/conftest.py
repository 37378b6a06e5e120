"""A network namespace of the test's own, for real TAPs."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SIOCETHTOOL, ETHTOOL_GLINK = 0x8946, 0xA


def _enter_new_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise PermissionError("unshare")


class Namespace:
    """A thread that lives in a network namespace of its own, and runs what it is given."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=_enter_new_namespace)

    def run(self, function, *args):
        return self._thread.submit(function, *args).result(10)

    def up(self, name: str) -> None:
        self.run(self._up, name)

    @staticmethod
    def _up(name: str) -> None:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), IFF_UP))

    def carrier(self, name: str) -> bool:
        return self.run(self._carrier, name)

    @staticmethod
    def _carrier(name: str) -> bool:
        # /sys shows the namespace of its mount; a thread's own is asked by ioctl
        import fcntl

        glink = (ctypes.c_uint32 * 2)(ETHTOOL_GLINK, 0)
        request = struct.pack("16sQ16x", name.encode(), ctypes.addressof(glink))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            fcntl.ioctl(s, SIOCETHTOOL, request)
        return bool(glink[1])

    def packet_socket(self, name: str) -> socket.socket:
        def make() -> socket.socket:
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            s.bind((name, 0))
            s.settimeout(60)
            return s

        return self.run(make)

    def close(self) -> None:
        self._thread.shutdown()


@pytest.fixture
def namespace():
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun")
    space = Namespace()
    try:
        space.run(os.getpid)
    except Exception:
        pytest.skip("network namespaces need root or a user namespace")
    yield space
    space.close()
