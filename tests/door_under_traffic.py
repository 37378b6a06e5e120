"""RESET_OWNER, SET_BACKEND and close under traffic, and descriptors set again and again.

    python door_under_traffic.py verbs|descriptors ROUNDS

Runs in `vhostnet run`.  Prints what its supervisor has open before and after.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from oracle.lab import MRG, V1, Tap
from owner_life import Owner, flood
from vhostnet.uapi import tun
from vhostnet_frontend import IoctlTransport, VerbError
from vhostnet_frontend.vnet_header import header_size

SUPERVISOR = os.getppid()


def held() -> int:
    return len(os.listdir(f"/proc/{SUPERVISOR}/fd"))


def settled(device: IoctlTransport) -> int:
    """What the supervisor has open when it has seen all closes before."""
    for _ in range(3):
        device.get_features()
    return held()


def verbs(rounds: int) -> None:
    tap = Tap("door0", header_size(V1 | MRG), tun.IFF_VNET_HDR, True, True)
    flooder = flood(tap)
    watch = IoctlTransport()
    kick = os.eventfd(0)
    before = after = traffic = 0
    for number in range(rounds):
        device = IoctlTransport()
        owner = Owner(device, tap, kick)
        if number % 4 == 0:
            traffic += owner.wait_for_traffic()
        os.eventfd_write(kick, 1)
        if number % 3 == 0:
            device.reset_owner()
        elif number % 3 == 1:
            for _ in range(3):
                device.set_backend(0, None)
                device.set_backend(0, tap.fd)
        device.close()
        owner.memory.close()
        if number == 9:
            before = settled(watch)
    after = settled(watch)
    os.kill(flooder, signal.SIGKILL)
    print("verbs", rounds, "held", before, after, "traffic", traffic)


def descriptors(rounds: int) -> None:
    device = IoctlTransport()
    device.set_owner()
    kicks = [os.eventfd(0) for _ in range(2)]
    pipe, _ = os.pipe()
    before = 0
    for number in range(rounds):
        fd = kicks[number % 2]
        for index in (0, 1):
            device.set_vring_kick(index, fd)
            device.set_vring_call(index, fd)
            device.set_vring_err(index, fd)
        device.set_log_fd(fd)
        for wrong in (pipe, 9999):
            with contextlib.suppress(VerbError):
                device.set_log_fd(wrong)
            with contextlib.suppress(VerbError):
                device.set_backend(0, wrong)
        if number == 0:
            before = settled(device)
    print("descriptors", rounds, "held", before, settled(device), "traffic", 0)


if __name__ == "__main__":
    {"verbs": verbs, "descriptors": descriptors}[sys.argv[1]](int(sys.argv[2]))
