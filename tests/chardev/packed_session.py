"""Runs inside a guest: packed rings over ioctls, in memory of both kinds, into a TAP and back.

    python packed_session.py FRAMES

Prints "RESULT " and JSON: for each kind of memory what the TAP and the driver have received.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
from typing import Any

from oracle.lab import IFF_UP, SIOCSIFFLAGS
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, VNET_HDR_MRG_LEN, mask
from vhostnet_frontend import DEFAULT_FEATURES, GuestMemory, IoctlTransport, NetDriver, open_tap

ETH_P_ALL = 3
ETHERTYPE = b"\x88\xb5"


def frame(k: int) -> bytes:
    """One for a station that is not here."""
    return b"\x02\0\0\0\0\x02" + b"\x02\0\0\0\0\x01" + ETHERTYPE + k.to_bytes(4, "little") * 20


def both_ways(kind: str, n: int) -> dict[str, Any]:
    name = f"packed-{kind}"
    tap = open_tap(name, VNET_HDR_MRG_LEN)
    host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    fcntl.ioctl(host, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), IFF_UP))
    host.bind((name, 0))
    host.settimeout(20.0)
    features = DEFAULT_FEATURES | mask(VIRTIO_F_RING_PACKED)
    memory = GuestMemory(8 << 20, private=kind == "private")
    transport = IoctlTransport()
    with host, NetDriver(transport, tap, features=features, memory=memory) as driver:
        assert driver.features >> VIRTIO_F_RING_PACKED & 1
        driver.start()
        arrived, k = [], 0
        while len(arrived) < n:
            if k < n:
                driver.send(frame(k))
                k += 1
            got = host.recv(4096)
            if got[12:14] == ETHERTYPE:
                arrived.append(got)
        received = []
        for k in range(n):
            host.send(frame(k))
            while (got := driver.receive(timeout=20.0)) is not None and got[12:14] != ETHERTYPE:
                pass
            received.append(got)
    expected = [frame(k) for k in range(n)]
    return {"the TAP": arrived == expected, "the driver": received == expected}


n = int(sys.argv[1])
print("RESULT", json.dumps({kind: both_ways(kind, n) for kind in ("shared", "private")}))
