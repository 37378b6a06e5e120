"""Hostile rings and messages in large numbers, with counts, time and what was reached.

    python -m tests.fuzz.volume [--rings N] [--messages N] [--seed N]

Rings run compiled, for each ring format and behind an IOMMU, in memory between guard pages: a
byte too many ends the process.  Messages go through the codec and a session to a device in this
process, and a share of them through a daemon's socket.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from front_end import FrontEnd, SessionClosed
from fuzz import volume_kernel as vk
from fuzz.rig import FEATURES, NUM, REGIONS, TABLE, Rig
from fuzz.talk import BEGIN, Talker
from serve_process import ServeProcess
from vhostnet.datapath import codes

KINDS = {"split": (False, False), "packed": (True, False), "split behind an IOMMU": (False, True)}
CODE_NAMES = {
    -value: name
    for name, value in vars(codes).items()
    if name.startswith("RING_") and isinstance(value, int)
}
#: What each kind can find; a miss is counted apart.
SPLIT = {-code for code in codes.RING_ERRORS} - {-codes.RING_FORBIDDEN}
REACHABLE = {
    "split": SPLIT,
    # No heads and no index in a packed ring; and a descriptor cannot be available in two laps, so
    # only a driver that changes it meanwhile can make a loop (tests/hostile/test_ring_bytes.py).
    "packed": SPLIT - {-codes.RING_AVAIL_JUMP, -codes.RING_BAD_HEAD, -codes.RING_LOOP},
    # what is nowhere is a miss there, not an error
    "split behind an IOMMU": SPLIT - {-codes.RING_UNMAPPED, -codes.RING_INDIRECT_UNMAPPED}
    | {-codes.RING_FORBIDDEN},
}
CHUNK = 50_000
#: Messages of one session over a socket.
A_SESSION = 16
#: Addresses: six with room behind them, then borders and nowhere.
SPOTS = np.array(
    [
        REGIONS[0][0] + 0x1000, REGIONS[0][0] + 0x1200, REGIONS[1][0] - 400, REGIONS[1][0] + 0x100,
        REGIONS[2][0], REGIONS[3][0] + 0x100,
        *[gpa for gpa, _ in REGIONS], *[gpa + size for gpa, size in REGIONS],
        0, -1, -16, 1 << 62, -(1 << 63), 0x12345, TABLE, TABLE + 0x1000 - 8,
    ],
    np.int64,
)  # fmt: skip
LENGTHS = np.array(
    [1, 2, 5, 9, 12, 13, 14, 60, 60, 200, 600, 0, 0, 1, 8, 17, 24, 4096, 65536, 65537, 1 << 20,
     1 << 31, 0xFFFFFFFF, 0xFFFFFFF0],
    np.int64,
)  # fmt: skip


def run_rings(kind: str, n: int, seed: int) -> tuple[Counter[int], np.ndarray]:
    """Run *n* rings of one kind; AssertionError if a rule is broken."""
    is_packed, is_translated = KINDS[kind]
    state = np.array([seed * 0x9E3779B97F4A7C1 + 1 & (1 << 62) - 1], np.int64)
    result = np.zeros(vk.N_RESULTS, np.int64)
    lap = np.zeros(2, np.int64)
    rig = Rig(is_packed, is_translated)
    done = 0
    while done < n:
        features = FEATURES[done // CHUNK % len(FEATURES)]
        rig.place(features)
        (desc, _), (avail, avail_size), (used, used_size) = rig.parts
        hva = rig.memory.hva
        where = np.array(
            [hva(desc), hva(avail), hva(used), hva(TABLE), TABLE, NUM, avail_size, used_size],
            np.int64,
        )
        many = min(CHUNK, n - done)
        at = vk.hostile_rings(
            many, state, where, SPOTS, LENGTHS, rig.worker, rig.rx, rig.tx, rig.mem, rig.regions,
            rig.backend, rig.iov, rig.heads, lap, result,
        )  # fmt: skip
        assert at == 0, f"{kind}: run {done + at} of seed {seed} broke its budget"
        rig.memory.check()
        for record in (rig.rx[0], rig.tx[0]):
            result[vk.PACKETS] += record["packets"]
            result[vk.MALFORMED] += record["drop_malformed"]
            result[vk.SHORT] += record["drop_short"]
            result[vk.TOO_SMALL] += record["drop_too_small"]
        done += many
    found = Counter(
        {code: int(count) for code, count in enumerate(result[vk.FIRST_CODE :]) if code and count}
    )
    return found, result


def rings(n: int, seed: int) -> bool:
    """Run *n* rings, a third of each kind; returns whether all that can be reached was."""
    is_all = True
    for k, kind in enumerate(KINDS):
        share = n // len(KINDS) + (k < n % len(KINDS))
        run_rings(kind, 100, seed)  # compiled now, not timed
        began = time.monotonic()
        found, result = run_rings(kind, share, seed + k)
        seconds = time.monotonic() - began
        print(
            f"{kind}: {result[vk.RUNS]:,} rings in {seconds:.1f} s; "
            f"{result[vk.PACKETS]:,} packets, {result[vk.MALFORMED]:,} malformed, "
            f"{result[vk.SHORT]:,} short, "
            f"{result[vk.TOO_SMALL]:,} too small, {result[vk.MISSES]:,} misses; "
            f"most chains in one run: {result[vk.MOST_CHAINS]}"
        )
        for code in sorted(REACHABLE[kind] | set(found)):
            print(f"    {found[code]:>12,}  {CODE_NAMES.get(code, code)}")
        missing = REACHABLE[kind] - set(found)
        if missing:
            is_all = False
            print(f"    not reached: {', '.join(CODE_NAMES[code] for code in sorted(missing))}")
        if "IOMMU" in kind and not result[vk.MISSES]:
            is_all = False
            print("    not reached: RING_MISS")
    return is_all


def messages(n: int, seed: int) -> Counter[str]:
    """Send *n* hostile messages through codec and session; what became of them."""
    dice = random.Random(seed)
    before = len(os.listdir("/proc/self/fd"))
    outcomes: Counter[str] = Counter()
    with Talker() as talker:
        while outcomes.total() < n:
            outcomes[talker.say(dice)] += 1
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors leak"
    return outcomes


def converse(path: str, n: int, dice: random.Random, outcomes: Counter[str]) -> None:
    """One session of *n* messages; then what is said to the daemon ends, and it hangs up."""
    with FrontEnd(path) as front_end:
        front_end.send_bytes(BEGIN)
        try:
            for _ in range(n):
                data, fds = Talker.make(dice)
                outcomes["sent"] += 1
                try:
                    front_end.send_bytes(data, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
            front_end.socket.shutdown(socket.SHUT_WR)
            outcomes["sessions to their end"] += 1
        except (SessionClosed, OSError):
            outcomes["sessions closed meanwhile"] += 1
        with contextlib.suppress(ConnectionResetError):
            while data := front_end.socket.recv(65536):
                outcomes["bytes of answers"] += len(data)


def messages_by_socket(n: int, seed: int) -> Counter[str]:
    """The same messages to a daemon; it must live and hold what it held before."""
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        process = ServeProcess(Path(folder), "--backend", "null", "--iommu")
        try:
            while outcomes["sent"] < n:
                converse(process.socket, min(A_SESSION, n - outcomes["sent"]), dice, outcomes)
            process.wait_idle()
            process.check_and_stop()
        finally:
            process.kill()
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("tests.fuzz.volume", description=__doc__)
    parser.add_argument("--rings", type=int, default=300_000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    is_all = rings(options.rings, options.seed) if options.rings else True
    if options.messages:
        by_socket = options.messages // 20
        began = time.monotonic()
        told = messages(options.messages - by_socket, options.seed)
        print(f"messages: {told.total():,} in {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        sent = messages_by_socket(by_socket, options.seed + 1)
        print(
            f"messages by socket: {by_socket:,} in {time.monotonic() - began:.1f} s; {dict(sent)}"
        )
        for what, count in told.most_common(12):
            print(f"    {count:>12,}  {what}")
    return 0 if is_all else 1


if __name__ == "__main__":
    sys.exit(main())
