"""The shortest benchmark, from the command line to the files; the numbers mean nothing here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_process import READY_S
from vhostnet.bench.results import WorkloadResult, load

pytestmark = [
    pytest.mark.vmm,
    pytest.mark.skipif(shutil.which("dpdk-testpmd") is None, reason="dpdk-testpmd is missing"),
    pytest.mark.skipif(shutil.which("stdbuf") is None, reason="stdbuf is missing"),
]


def bench(
    folder: Path, workload: str, case: str, seconds: float
) -> tuple[subprocess.CompletedProcess[str], WorkloadResult]:
    """Measure one case once: what the command said, and what it kept."""
    words = ["--only", case, "--runs", "1", "--seconds", str(seconds), "--output", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "vhostnet", "bench", workload, *words],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    return done, load(folder / f"{workload}.json")


def test_one_case_of_g2d_and_its_peer(tmp_path) -> None:
    done, result = bench(tmp_path, "g2d", "split mrg_rxbuf=1 in_order=0 64 B", 0.3)
    assert result.disturbances  # one short run is never for publication
    (case,) = result.cases
    assert set(case.sides) == {"vhostnet", "DPDK net_vhost"}
    for side in case.sides.values():
        (mpps,) = side.runs["mpps"]
        assert mpps is not None
        assert mpps > 0.01
        assert side.failures == []
        assert any("dpdk-testpmd" in command for command in side.commands)
    assert "vhostnet serve --socket-path DIR/socket" in " ".join(case.sides["vhostnet"].commands)
    assert "| split mrg_rxbuf=1 in_order=0 64 B |" in done.stdout
    assert (tmp_path / "g2d.svg").read_text().startswith("<svg")
    assert "run 1" in done.stderr


def test_one_case_of_g2tap_tcp_merges_and_counts_segments(tmp_path) -> None:
    _, result = bench(tmp_path, "g2tap-tcp", "1 flow", 0.5)
    (case,) = result.cases
    segments = {name: side.runs["segments"][0] for name, side in case.sides.items()}
    assert [side.failures for side in case.sides.values()] == [[], [], []]
    assert segments["vhostnet"] > 2
    # the interface may have a stray packet of the host's own
    assert segments["vhostnet, --coalesce off"] == pytest.approx(1, rel=0.01)
    assert segments["bare write()"] == pytest.approx(1, rel=0.01)


def test_one_case_of_vm2vm_and_its_peer(tmp_path) -> None:
    _, result = bench(tmp_path, "vm2vm", "packed mrg_rxbuf=1 in_order=0 1514 B", 0.3)
    (case,) = result.cases
    for side in case.sides.values():
        (mpps,) = side.runs["mpps"]
        assert mpps is not None
        assert mpps > 0.01
        assert side.failures == []
    commands = " ".join(case.sides["vhostnet"].commands)
    assert "--device socket=DIR/socket1,backend=port:x" in commands
