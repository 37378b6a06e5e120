"""Owners that exec, exit, and give their pid to strangers, under traffic; run in `vhostnet run`.

    python owner_life.py exec|exit ROUNDS

Each owner has a device on a TAP into which another process sends without end, with rings and
buffers in private memory.  Whoever comes after it (its new program; a stranger with its pid) has
memory at the same addresses, with the same rings, moves their indices and kicks: what it must not
see is a byte that somebody else has written.

The owner is a child of the supervisor (an orphan), whose memory is reached in the fastest way, by
its pid.  In `exit` the pid is given again by
/proc/sys/kernel/ns_last_pid: needs a pid namespace of its own.

Prints one line at the end: the rounds, and how often the device had received something before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

import owner_after
from oracle.lab import MRG, V1, Tap, frame
from vhostnet.uapi import tun
from vhostnet_frontend import Buffer, GuestMemory, IoctlTransport, SplitRing
from vhostnet_frontend.vnet_header import header_size

NUM, SIZE = 256, 1 << 20
libc = ctypes.CDLL(None)


def flood(tap: Tap) -> int:
    """A process that sends frames for the guest until it is killed."""
    pid = os.fork()
    if pid == 0:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        data = frame(7, 512)
        while True:
            with contextlib.suppress(OSError):
                for _ in range(32):
                    tap.wire.send(data)
            time.sleep(0.0002)
    return pid


class Owner:
    """A running device whose memory is private to this process."""

    def __init__(self, device: IoctlTransport, tap: Tap, kick: int) -> None:
        self.memory = GuestMemory(SIZE, private=True)
        self.ring = SplitRing(self.memory, NUM)
        for _ in range(NUM):
            self.ring.add([Buffer(self.memory.alloc(2048), 2048, True)])
        self.ring.publish()
        (region,) = self.memory.regions
        self.hva, self.size = region.hva, region.size
        self.rings = ctypes.string_at(self.hva, self.size)
        device.set_owner()
        device.set_features(V1 | MRG)
        device.set_mem_table(self.memory.regions)
        device.set_vring_num(0, NUM)
        device.set_vring_base(0, 0)
        device.set_vring_addr(self.ring.addr(0))
        device.set_vring_kick(0, kick)
        device.set_backend(0, tap.fd)

    @property
    def avail_idx_at(self) -> int:
        """Offset of avail->idx in the memory."""
        return self.ring.addr(0).avail_user_addr + 2 - self.hva

    def wait_for_traffic(self) -> bool:
        for _ in range(100_000):  # a minute: a bound against hanging
            if self.ring.read_used_idx():
                return True
            time.sleep(0.0005)
        return False


def inheritable_kick() -> int:
    kick = os.eventfd(0)
    os.set_inheritable(kick, True)
    return kick


def orphan(act: Callable[[], None]) -> None:
    """Have a process do something whose parent is the supervisor."""
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            act()
        os._exit(0)
    os.waitpid(middle, 0)


def exec_round(tap: Tap, number: int) -> tuple[bool, bool]:
    """(whether somebody wrote to what came after the owner, whether there was traffic)."""
    told, tell = os.pipe()
    os.set_inheritable(tell, True)

    def own_and_exec() -> None:
        device, kick = IoctlTransport(), inheritable_kick()
        os.set_inheritable(device.fd, bool(number % 2))  # closed by exec, or not
        owner = Owner(device, tap, kick)
        os.write(tell, b"y" if owner.wait_for_traffic() else b"n")
        rings = os.memfd_create("rings", 0)
        os.write(rings, owner.rings)
        words = [hex(owner.hva), *map(str, (owner.avail_idx_at, kick, rings, tell))]
        os.execv(sys.executable, [sys.executable, "-S", "-E", owner_after.__file__, *words])

    orphan(own_and_exec)
    os.close(tell)
    said = os.read(told, 1) + os.read(told, 1)
    os.close(told)
    assert len(said) == 2, "what the owner has run has ended early"
    return said[1:] != b"0", said[:1] == b"y"


def exit_round(tap: Tap, number: int) -> tuple[bool, bool]:
    """The same, with a process that gets the number of one that has ended."""
    device, kick = IoctlTransport(), inheritable_kick()
    rings = os.memfd_create("rings")
    told, tell = os.pipe()

    def own_and_end() -> None:
        owner = Owner(device, tap, kick)
        word = "yes" if owner.wait_for_traffic() else "no"
        os.write(rings, owner.rings)
        os.write(tell, f"{os.getpid()} {owner.hva} {owner.avail_idx_at} {word}".encode())
        if not number % 2:
            time.sleep(100)

    orphan(own_and_end)
    pid, hva, at, traffic = os.read(told, 200).decode().split()
    if not number % 2:
        os.kill(int(pid), signal.SIGKILL)
    wrote = stranger(int(pid), int(hva), os.pread(rings, SIZE, 0), int(at), kick)
    device.close()
    for fd in (told, tell, kick, rings):
        os.close(fd)
    return wrote, traffic == "yes"


def stranger(pid: int, hva: int, rings: bytes, at: int, kick: int) -> bool:
    """Another process with the same pid: whether somebody writes to its memory."""
    for _ in range(5000):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(pid - 1))
        child = os.fork()
        if child == 0:
            wrote = os.getpid() == pid and owner_after.changed(hva, rings, at, kick)
            os._exit(wrote)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if child == pid:
            return status != 0
    raise SystemExit(f"pid {pid} is not given again")


def main(what: str, rounds: int) -> None:
    tap = Tap("life0", header_size(V1 | MRG), tun.IFF_VNET_HDR, True, True)
    os.set_inheritable(tap.fd, True)
    flooder = flood(tap)
    wrote = traffic = 0
    for number in range(rounds):
        bad, seen = (exec_round if what == "exec" else exit_round)(tap, number)
        wrote += bad
        traffic += seen
    os.kill(flooder, signal.SIGKILL)
    print(f"rounds {rounds} wrote {wrote} traffic {traffic}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
