"""Merged frames on a real TAP: Linux's own segmentation makes the guest's packets of them again."""

from __future__ import annotations

import os
import select
import subprocess
from dataclasses import replace

import pytest

from driver_ring import Memory
from instance import TX, Instance
from serve_process import PATIENCE_S
from tcp_frames import ACK, PSH, TIMESTAMPS, Segment, stream
from vhostnet.backends.tap import TapBackend
from vhostnet.backends.tap_queue import open_tap_queue
from vhostnet.uapi.tun import IFF_NO_PI, IFF_TAP

#: From the guest's TAP over a bridge to one that takes neither GSO nor partial checksums.
BRIDGE = """
ip link add br0 type bridge mcast_snooping 0
for dev in tap0 plain0; do
  ip link set $dev master br0; echo 1 > /proc/sys/net/ipv6/conf/$dev/disable_ipv6
done
echo 1 > /proc/sys/net/ipv6/conf/br0/disable_ipv6
for dev in br0 tap0 plain0; do ip link set $dev up; done
"""
QUIET_S = 0.5


def bridge() -> None:
    done = subprocess.run(["sh", "-c", BRIDGE], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no bridge here: {done.stderr.strip()}")


def plain_tap() -> int:
    [fd] = open_tap_queue("plain0", IFF_TAP | IFF_NO_PI)[1]
    return fd


def received(fd: int, expected: int = 0) -> list[bytes]:
    """What comes out of a TAP, the host's own chatter apart.

    Waits until *expected* frames are there and then nothing comes for a while.
    """
    frames: list[bytes] = []
    while select.select([fd], [], [], PATIENCE_S if len(frames) < expected else QUIET_S)[0]:
        frame = os.read(fd, 65536)
        if frame[6:12] == Segment().ether[6:12]:
            frames.append(frame)
    return frames


@pytest.mark.root
@pytest.mark.parametrize("options", [b"", TIMESTAMPS], ids=["plain", "timestamps"])
@pytest.mark.parametrize("version", [4, 6])
def test_linux_segments_into_what_the_guest_sent(namespace, version, options):
    backend = namespace.run(TapBackend.open, "tap0", 1, False, True)
    plain = namespace.run(plain_tap)
    pair = Instance(num=256, memory=Memory(4 << 20))
    try:
        namespace.run(bridge)
        backend.negotiate(12, 0)
        backend.set_link(True)
        received(plain)
        pair.queue = backend.queues[0]
        pair.start()
        sent = stream(Segment(bytes(1400), version=version, options=options, seq=2**32 - 9000), 50)
        sent.append(sent[-1].then(size=700, flags=ACK | PSH))
        bad = replace(sent[-1].then(size=1400), tcp_check_off=1, flags=ACK)
        sent += [bad, *stream(bad.then(tcp_check_off=0), 20, ip_check_off=0)]
        for segment in sent:
            pair.tx.send(bytes(12) + segment.frame())
        pair.kick(TX)
        assert received(plain, len(sent)) == [segment.frame() for segment in sent]
        record = backend.queues[0].record[0]
        # 46 of the first, the rest up to PSH, and what follows the one with a wrong checksum
        assert (record["merged_frames"], record["merged_segments"]) == (3, 71)
        assert pair.counter(TX, "drop_refused") == 0
    finally:
        pair.close()
        backend.close()
        os.close(plain)
