"""What is measured between a guest and its host: ping, iperf3, whole files with checksums.

The guest runs the iperf3 server, the host the client: the client's JSON then need not come
through a serial port.  Directions are named by where the bytes go: "to_host" is the guest's
transmit (tx), "to_guest" its receive (rx).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Literal

from vhostnet.demo.netns import Namespace
from vhostnet.demo.qemu import GuestVM
from vhostnet.demo.tools import end, output_of, require, run_short, spawn
from vhostnet.errors import HostError

Direction = Literal["to_host", "to_guest"]
DIRECTIONS: tuple[Direction, ...] = ("to_host", "to_guest")

_FILE_PORT = 5301
# A bound against hanging; a file takes a second a MiB more, at the slowest.
_PATIENCE_S = 60
_BETWEEN = ("unable to connect", "server is busy", "unable to receive control message")


@dataclass(frozen=True)
class Path:
    """One card's way between guest and host: the two ends and their addresses."""

    guest: GuestVM
    host: Namespace
    guest_address: str
    host_address: str


@dataclass(frozen=True)
class PingResult:
    """Echo requests sent and lost; the average round trip is 0.0 when none came back."""

    sent: int
    lost: int
    average_ms: float


@dataclass(frozen=True)
class UdpResult:
    """Datagrams as the receiver counted them, and the rate that arrived."""

    sent: int
    lost: int
    mbps: float


def ping(path: Path, count: int, *, size: int = 56, interval_s: float = 0.1) -> PingResult:
    """Send `count` echo requests of `size` bytes from the guest to the host."""
    command = f"ping -c {count} -i {interval_s} -s {size} -W 10 {path.host_address}"
    _, said = path.guest.run(command, timeout=count * interval_s + _PATIENCE_S)
    match = re.search(r"(\d+) packets transmitted, (\d+) packets received", said)
    if match is None:
        raise HostError(f"ping in the guest: {said.strip()}")
    average = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", said)
    sent, received = int(match[1]), int(match[2])
    return PingResult(sent, sent - received, float(average[1]) if average else 0.0)


def start_iperf3(guest: GuestVM) -> None:
    """Start the iperf3 server in the guest; it serves all cards, one run after the other."""
    guest.check("iperf3 --server --daemon")
    guest.wait_until("netstat -ltn | grep -q ':5201 '")


def tcp(path: Path, direction: Direction, seconds: float) -> float:
    """Return one TCP stream's goodput in Mbit/s, counted by its receiver."""
    result = _iperf3(path, direction, seconds, [])
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e6


def udp(
    path: Path, direction: Direction, seconds: float, *, mbps: float = 50.0, size: int = 1400
) -> UdpResult:
    """Send datagrams of `size` bytes at a fixed rate; the receiver counts."""
    options = ["--udp", "--bitrate", f"{mbps}M", "--length", str(size)]
    summed = _iperf3(path, direction, seconds, options)["end"]["sum"]
    rate = float(summed["bits_per_second"]) / 1e6 * (1 - float(summed["lost_percent"]) / 100)
    return UdpResult(int(summed["packets"]), int(summed["lost_packets"]), rate)


def transfer(path: Path, direction: Direction, mib: int) -> bool:
    """Send a random file over TCP; tells whether its SHA-256 is the same on both sides."""
    with tempfile.TemporaryDirectory(prefix="vhostnet-file-") as folder:
        name = os.path.join(folder, "file")
        move = _send_to_host if direction == "to_host" else _send_to_guest
        there = move(path, name, mib)
        with open(name, "rb") as file:
            here = hashlib.file_digest(file, "sha256").hexdigest()
        path.guest.check("rm -f /tmp/file")
        return here == there


def _send_to_host(path: Path, name: str, mib: int) -> str:
    limit = _PATIENCE_S + mib
    path.guest.check(f"head -c {mib << 20} /dev/urandom > /tmp/file", timeout=limit)
    with open(name, "wb") as file:
        # Its standard input stays open: nc closes its sending side at the end of input, and the
        # other nc would take that as the end of everything.
        listener = spawn(
            [require("busybox"), "nc", "-l", "-p", str(_FILE_PORT)],
            prefix=path.host.prefix,
            stdin=subprocess.PIPE,
            stdout=file,
        )
        try:
            send = f"nc {path.host_address} {_FILE_PORT} < /tmp/file"
            path.guest.wait_until(f"timeout {limit} {send}", takes=limit + _PATIENCE_S)
            listener.wait(_PATIENCE_S)
        finally:
            end(listener)
    return path.guest.check("sha256sum /tmp/file").split()[0]


def _send_to_guest(path: Path, name: str, mib: int) -> str:
    with open(name, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    limit = _PATIENCE_S + mib
    path.guest.check(f"(sleep {limit} | timeout {limit} nc -l -p {_FILE_PORT} > /tmp/file) &")
    path.guest.wait_until(f"netstat -ltn | grep -q ':{_FILE_PORT} '")
    send = f"{require('busybox')} nc {path.guest_address} {_FILE_PORT} < {name}"
    output_of(["/bin/sh", "-c", send], prefix=path.host.prefix, timeout=limit)
    return path.guest.check("sha256sum /tmp/file").split()[0]


def _iperf3(path: Path, direction: Direction, seconds: float, options: list[str]) -> Any:
    argv = [require("iperf3"), "--client", path.guest_address, "--json", "--interval", "0"]
    argv += ["--time", f"{seconds:g}", "--connect-timeout", "10000", *options]
    if direction == "to_host":
        argv.append("--reverse")
    # Between two runs the server is still busy with the last one, or has its port closed.
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        done = run_short(argv, prefix=path.host.prefix, timeout=seconds + _PATIENCE_S)
        try:
            result = json.loads(done.stdout)
        except ValueError:
            raise HostError(f"iperf3: {done.stderr.decode(errors='replace').strip()}") from None
        error = result.get("error")
        if error is None and done.returncode == 0:
            return result
        is_between = any(words in str(error) for words in _BETWEEN)
        if not is_between or time.monotonic() > deadline:
            raise HostError(f"iperf3: {error or 'failed'}")
        time.sleep(0.1)
