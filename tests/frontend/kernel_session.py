"""Runs inside a guest: drives the kernel's own /dev/vhost-net and prints what it saw as JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

sys.path.insert(0, "/opt")

from vhostnet.uapi import vhost
from vhostnet_frontend import (
    GuestMemory,
    IoctlTransport,
    NetDriver,
    VerbError,
    open_tap,
)
from vhostnet_frontend.netdev import signals
from vhostnet_frontend.scenarios import SPLIT, repair
from vhostnet_frontend.transport import errno_name

BROADCAST = b"\xff" * 6
SOURCE = b"\x02\0\0\0\0\x09"
ETHERTYPE = 0x88B5


def frame(number: int, size: int = 60) -> bytes:
    head = BROADCAST + SOURCE + ETHERTYPE.to_bytes(2, "big") + number.to_bytes(4, "big")
    return (head + bytes((number + k) & 0xFF for k in range(size)))[:size]


def error_of(call, *arguments: object) -> str:
    try:
        call(*arguments)
    except VerbError as e:
        return errno_name(e.errno)
    return "none"


def raw_socket() -> socket.socket:
    """The host's end of the TAP: what the guest sends is received here, and the reverse."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ETHERTYPE)
    made.bind(("tap0", ETHERTYPE))
    made.settimeout(60.0)
    return made


def refusals() -> dict[str, str]:
    """What the kernel says to callers who got it wrong."""
    said = {}
    device = IoctlTransport()
    said["num without owner"] = error_of(device.set_vring_num, 0, 8)
    said["unknown feature"] = error_of(device.set_features, 1 << 63)
    said["null argument"] = error_of(device.ioctl, vhost.VHOST_SET_FEATURES, 0)
    device.set_owner()
    said["second owner"] = error_of(device.set_owner)
    said["third ring"] = error_of(device.set_vring_num, 2, 8)
    said["odd size"] = error_of(device.set_vring_num, 0, 3)
    said["backend without memory"] = error_of(device.set_backend, 0, None)
    said["unknown ioctl"] = error_of(device.ioctl, 0xAF77, bytes(8))
    said["closed kick"] = error_of(device.set_vring_kick, 0, 999)
    said["no IOTLB"] = error_of(device.write, bytes(72))
    device.reset_owner()
    said["after reset"] = error_of(device.set_vring_num, 0, 8)
    device.close()
    return said


def traffic(private: bool, tap: int, wire: socket.socket) -> dict[str, object]:
    """Send, receive, stop, start again."""
    saw: dict[str, object] = {}
    memory = GuestMemory(4 << 20, private=private)
    device = IoctlTransport()
    saw["features"] = hex(device.get_features())
    with NetDriver(device, tap, memory=memory, num=64, rx_size=512) as driver:
        saw["hdr_len"] = driver.hdr_len
        driver.start()
        for turn in range(3):
            sizes = [60 + 300 * k for k in range(5)]
            for k, size in enumerate(sizes):
                driver.send(frame(k, size), indirect=k % 2 == 1)
            saw[f"sent {turn}"] = [wire.recv(4096) == frame(k, s) for k, s in enumerate(sizes)]
            driver.flush()
            lengths = []
            for k, size in enumerate(sizes):
                wire.send(frame(k, size))
                packet = driver.receive_packet(timeout=60.0)
                if packet is None or packet.frame != frame(k, size):
                    lengths.append(("lost", None if packet is None else packet.frame.hex()))
                else:
                    lengths.append(packet.lengths)
            saw[f"received {turn}"] = lengths
            saw[f"bases {turn}"] = driver.stop()
            if turn < 2:
                driver.start()
        saw["errors"] = driver.ring_errors()
    memory.close()
    return saw


def misbehaviour(name: str, tap: int, wire: socket.socket) -> dict[str, object]:
    """One malformed TX ring, and whether the ring works again once it is repaired."""
    with (
        GuestMemory(1 << 20) as memory,
        NetDriver(IoctlTransport(), tap, memory=memory, num=16, rx_size=256, tx_size=256) as driver,
    ):
        driver.start()
        queue = driver.tx[0]
        SPLIT[name].apply(queue.ring)
        os.eventfd_write(queue.kick_fd, 1)
        driver.rx[0].wait(0.05)
        saw = {"errors": signals(queue.err_fd), "used": queue.ring.read_used_idx()}
        repair(queue.ring)
        os.eventfd_write(queue.kick_fd, 1)
        saw["alive"] = len(wire.recv(4096)) > 0
        return saw


def main() -> None:
    said = {"refusals": refusals()}
    tap = open_tap("tap0", 12)
    subprocess.run(["ip", "link", "set", "tap0", "up"], check=True)
    wire = raw_socket()
    said["shared"] = traffic(False, tap, wire)
    said["private"] = traffic(True, tap, wire)
    for name in ("head_beyond_num", "indirect_nested", "readable_after_writable"):
        said[name] = misbehaviour(name, tap, wire)
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    main()
