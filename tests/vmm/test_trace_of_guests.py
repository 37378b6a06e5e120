"""A real guest's boot, traced, and said again: to our daemon, and to DPDK's net_vhost."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serve_process import PATIENCE_S, ServeProcess, wait_until
from vhostnet.cli.main import main
from vhostnet.demo.daemon import Daemon
from vhostnet.protocol.vhost_user_trace import Exchange, read_trace

if TYPE_CHECKING:
    from conftest import Bed, RunBed

pytestmark = [pytest.mark.vmm, pytest.mark.root]


@pytest.fixture(scope="module")
def boot_trace(shared_bed: Bed) -> Path:
    """What QEMU says from power-on to a guest that pings, and when it is powered off."""
    path = shared_bed.folder / "boot.trace"
    daemon = shared_bed.serve("--trace", str(path))
    guest = shared_bed.boot()
    shared_bed.assert_pings(guest)
    guest.qmp("quit")
    if daemon is None:
        pytest.skip("QEMU's own card says nothing")
    wait_until(lambda: "+++ disconnected" in path.read_text(), "the end of the session")
    assert isinstance(daemon, Daemon)
    return path


def test_a_boot_is_readable_and_said_again_to_another_daemon(
    boot_trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = boot_trace.read_text()
    with boot_trace.open() as file:
        said = [part for _, part in read_trace(file) if isinstance(part, Exchange)]
    assert [part.name for part in said[:2]] == ["GET_FEATURES", "GET_PROTOCOL_FEATURES"]
    assert re.search(r"SET_FEATURES\(0x\w+<CSUM\|.*MRG_RXBUF.*VERSION_1>\)", text)
    assert re.search(r"ADD_MEM_REG\(region=\{guest_phys_addr=0x0, .*\}, fds=\[\d+<memfd:", text)
    assert re.search(r"SET_VRING_KICK\(0x1<1>, fds=\[\d+<anon_inode:\[eventfd\]>\]", text)

    (tmp_path / "other").mkdir()
    other = ServeProcess(tmp_path / "other", "--backend", "null")
    try:
        assert main(["replay", str(boot_trace), "--socket-path", other.socket]) == 0
        other.check_and_stop()
    finally:
        other.kill()
    assert "ring is broken" not in other.log()
    assert re.search(r"# \d+ messages said, 0 left out; .* 0 of them refusals", _last(capsys))


@pytest.fixture
def net_vhost(tmp_path: Path) -> Iterator[Path]:
    """The socket of DPDK's back-end."""
    if shutil.which("dpdk-testpmd") is None:
        pytest.skip("dpdk-testpmd is missing")
    path = tmp_path / "net_vhost"
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [
                *("dpdk-testpmd", "--lcores", "0@0,1@0", "--no-pci", "--no-telemetry", "--no-huge"),
                *("-m", "512", "--file-prefix", "replay", "--vdev", f"net_vhost0,iface={path}"),
                *("--", "-i", "--total-num-mbufs=20000"),
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        wait_until(lambda: path.exists() or process.poll() is not None, "DPDK's socket")
        assert process.poll() is None
        yield path
        process.communicate(b"stop\nquit\n", timeout=PATIENCE_S)


def test_a_boot_is_said_again_to_dpdk(
    boot_trace: Path, net_vhost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(boot_trace), "--socket-path", str(net_vhost)]) == 0
    assert "0 of them refusals" in _last(capsys)
    log = (net_vhost.parent / "log").read_text(errors="replace")
    assert "VHOST_USER_SET_VRING_KICK" in log
    assert "virtio is now ready for processing" in log


def test_the_ioctls_of_a_qemu_are_readable(
    run_bed: RunBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_bed.folder / "run.trace"
    prefix = run_bed.prefix
    at = prefix.index("--")
    traced = [*prefix[:at], "--trace", str(path), *prefix[at:]]
    monkeypatch.setattr(type(run_bed), "prefix", property(lambda _self: traced))
    guest = run_bed.start(run_bed.machine("shared"))
    run_bed.assert_pings(guest)
    text = path.read_text()
    assert "# vhostnet trace 1: ioctl" in text
    assert re.search(r"SET_OWNER\(\) = 0 <\d\.\d{6}>\n", text)
    assert re.search(r" GET_FEATURES\(\) = 0x\w+<.*MRG_RXBUF", text)
    assert re.search(r"NET_SET_BACKEND\(index=0, fd=\d+<dev/net/tun>\) = 0", text)


def _last(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]
