"""The driver half on a character device with packed rings; run in `vhostnet run --packed-rings`.

    python packed_session.py mapped|private

Says what it found as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

from oracle.lab import EVENT_IDX, MRG, PACKET_OUTGOING, V1, Tap, frame
from vhostnet.uapi import tun
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, VIRTIO_RING_F_INDIRECT_DESC, mask
from vhostnet_frontend import GuestMemory, IoctlTransport, NetDriver
from vhostnet_frontend.vnet_header import header_size

PACKED = mask(VIRTIO_F_RING_PACKED)
FEATURES = PACKED | V1 | MRG | EVENT_IDX | mask(VIRTIO_RING_F_INDIRECT_DESC)
NUM, TURNS, EACH = 61, 40, 20
PATIENCE_S = 60.0


def received(tap: Tap, n: int) -> list[bytes]:
    """What the guest sent."""
    got: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < n and time.monotonic() < deadline:
        try:
            data, address = tap.wire.recvfrom(1 << 17)
        except BlockingIOError:
            time.sleep(0.0005)
            continue
        if address[2] != PACKET_OUTGOING:
            got.append(data)
    return got


def main(memory: str) -> None:
    device = IoctlTransport()
    offered = device.get_features()
    tap = Tap("packed0", header_size(FEATURES), tun.IFF_VNET_HDR, True, True)
    guest = GuestMemory(2 << 20, private=memory == "private")
    bad: list[str] = []
    with NetDriver(device, tap.fd, features=FEATURES, num=NUM, memory=guest) as driver:
        assert driver.features == FEATURES, hex(driver.features)
        driver.start()
        number = 0
        for turn in range(TURNS):
            sizes = [60 + 97 * k % 1400 for k in range(EACH)]
            frames = [frame(number + k, size) for k, size in enumerate(sizes)]
            number += EACH
            for one in frames:
                driver.send(one, indirect=bool(turn % 2))
            driver.flush(timeout=PATIENCE_S)
            if received(tap, EACH) != frames:
                bad.append(f"turn {turn}: sent")
            for one in frames:
                tap.wire.send(one)
            if [driver.receive(timeout=PATIENCE_S) for _ in frames] != frames:
                bad.append(f"turn {turn}: received")
            if turn % 10 == 9:  # the base, with its wrap counters, says where to go on
                bases = driver.stop()
                for index, base in enumerate(bases):
                    device.set_vring_base(index, base)
                    if device.get_vring_base(index) != base:
                        bad.append(f"turn {turn}: base {base:#x}")
                driver.start()
        bases = driver.stop()
        if bases[1] & 0xFFFF != bases[1] >> 16:
            bad.append(f"tx base {bases[1]:#x}: not all that was taken was used")
        errors = driver.ring_errors()
    print(json.dumps({"offered": bool(offered & PACKED), "bad": bad, "errors": errors}))


if __name__ == "__main__":
    main(sys.argv[1])
