"""A real guest's packets, captured: all of them, both directions, as tcpdump and tshark read it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pcapng_reader import read
from serve_process import wait_until
from vhostnet.demo.daemon import Daemon

if TYPE_CHECKING:
    from conftest import Bed, RunBed
    from vhostnet.demo.qemu import GuestVM

pytestmark = [pytest.mark.vmm, pytest.mark.root]


def counted(guest: GuestVM) -> tuple[int, int]:
    """(received, sent) packets of the guest's card, as `ip -s link` has them."""
    folder = "/sys/class/net/eth0/statistics"
    received, sent = guest.check(f"cat {folder}/rx_packets {folder}/tx_packets").split()
    return int(received), int(sent)


def test_the_guests_own_packets_are_all_there(bed: Bed) -> None:
    path = bed.folder / "guest.pcapng"
    daemon = bed.serve("--pcap", str(path))
    if not isinstance(daemon, Daemon):
        pytest.skip("QEMU's own card is not captured")
    guest = bed.boot()
    bed.assert_pings(guest)
    bed.assert_transfers(guest, mib=16)
    guest.check("ip link set eth0 down")  # nothing moves any more
    received, sent = counted(guest)
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: not daemon.running(), "the end of the daemon")
    file = read(path)
    rx, tx = file.of("dev0-rx"), file.of("dev0-tx")
    (rx_seen, rx_kept, rx_lost), (tx_seen, tx_kept, tx_lost) = (
        file.statistics[file.names.index(name)] for name in ("dev0-rx", "dev0-tx")
    )
    assert (rx_lost, tx_lost) == (0, 0)
    assert (rx_seen, tx_seen) == (rx_kept, tx_kept) == (len(rx), len(tx))
    assert (len(rx), len(tx)) == (received, sent)
    assert len(rx) > 100
    assert any("GSO tcpv4" in packet.comment for packet in tx)
    times = [packet.time_ns for packet in file.packets]
    assert times == sorted(times)
    if shutil.which("tcpdump") is not None:
        assert _tcpdump(path, "icmp[icmptype] == icmp-echo") == 10
        assert _tcpdump(path, "") == len(file.packets)
    if shutil.which("tshark") is None:
        pytest.skip("all is right, but tshark is missing to say so too")
    _tshark(path, len(file.packets))


def _tcpdump(path: Path, expression: str) -> int:
    """Packets that tcpdump reads."""
    command = ["tcpdump", "-nr", str(path), *([expression] if expression else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return len(done.stdout.splitlines())


def _tshark(path: Path, packets: int) -> None:
    fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment"]
    done = subprocess.run(
        ["tshark", "-nr", str(path), *fields],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(path.parent)},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == packets
    assert {line.split("\t")[0] for line in lines} == {"dev0-rx", "dev0-tx"}
    assert re.search(r"GSO tcpv4, size \d+; checksum partial, start 34 offset 16", done.stdout)


@pytest.mark.parametrize("memory", ["private", "shared"])
def test_through_run_too(run_bed: RunBed, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run_bed.folder / "guest.pcapng"
    before, after = run_bed.prefix[:-1], run_bed.prefix[-1:]
    assert after == ["--"]
    prefix = [*before, "--pcap", str(path), *after]
    monkeypatch.setattr(type(run_bed), "prefix", property(lambda _self: prefix))
    guest = run_bed.start(run_bed.machine(memory))
    run_bed.assert_pings(guest)
    run_bed.assert_transfers(guest)
    guest.check("ip link set eth0 down")
    received, sent = counted(guest)
    guest.qmp("quit")
    wait_until(lambda: bool(read_or_nothing(path)), "the end of the capture", 20.0)
    names = read_or_nothing(path)
    assert list(names.values()) == [received, sent]
    assert [name[-3:] for name in names] == ["-rx", "-tx"]


def read_or_nothing(path: Path) -> dict[str, int]:
    """Packets by interface; nothing while the file is not whole."""
    try:
        file = read(path)
    except (AssertionError, OSError, LookupError, struct.error):
        return {}
    if not file.statistics:
        return {}
    return {name: len(file.of(name)) for name in file.names}
