"""Captures of a daemon: --pcap, and the commands of the control socket, while a driver sends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from pcapng_reader import read
from serve_process import ServeProcess
from vhostnet.cli.main import main
from vhostnet_frontend import NetDriver, VhostUserTransport


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServeProcess]:
    options = [word.replace("FOLDER", str(tmp_path)) for word in getattr(request, "param", [])]
    control = ["--control", str(tmp_path / "control")]
    made = ServeProcess(tmp_path, "--backend", "null", *control, *options)
    try:
        yield made
        if made.is_running():
            made.check_and_stop()
    finally:
        made.kill()


def execute(folder: Path, command: str, **arguments: Any) -> Any:
    async def ask() -> Any:
        qmp = QMPClient("test")
        await qmp.connect(str(folder / "control"))
        try:
            return await qmp.execute(command, arguments)
        finally:
            await qmp.disconnect()

    return asyncio.run(ask())


def send(driver: NetDriver, n: int) -> None:
    sender = driver.sender(bytes(64), stamped=True)
    assert sender.run(count=n).frames == n
    assert sender.finish()


def test_a_capture_begins_and_ends_while_a_driver_sends(
    daemon: ServeProcess, tmp_path: Path
) -> None:
    path = tmp_path / "capture.pcapng"
    assert execute(tmp_path, "query-capture") == {"running": False}
    with NetDriver(VhostUserTransport.connect(daemon.socket)) as driver:
        driver.start()
        send(driver, 50)
        started = execute(tmp_path, "capture-start", file=str(path), device="dev0")
        assert (started["running"], started["file"]) == (True, str(path))
        with pytest.raises(ExecuteError, match="runs: stop it first"):
            execute(tmp_path, "capture-start", file=str(path))
        send(driver, 70)
        stopped = execute(tmp_path, "capture-stop")
        send(driver, 90)
    assert (stopped["running"], stopped["packets"]) == (False, 70)
    assert {"queue": "dev0-tx", "seen": 70, "accepted": 70, "lost": 0} in stopped["queues"]
    assert len(read(path).packets) == 70
    with pytest.raises(ExecuteError, match="there is no capture"):
        execute(tmp_path, "capture-stop")


@pytest.mark.usefixtures("daemon")
def test_what_cannot_be_captured_is_said(tmp_path: Path) -> None:
    for arguments, why in (
        ({"file": "-"}, "for --pcap"),
        ({"file": str(tmp_path / "no" / "where")}, "outside of what the sandbox allows"),
        ({"file": str(tmp_path / "x"), "device": "dev9"}, "there is no device 'dev9'"),
        ({"file": str(tmp_path / "x"), "snaplen": 0}, "snaplen is 1 to"),
        ({"file": str(tmp_path / "x"), "filter": "prot 1"}, r"is no filter|libpcap"),
    ):
        with pytest.raises(ExecuteError, match=why):
            execute(tmp_path, "capture-start", **arguments)
    assert execute(tmp_path, "query-capture") == {"running": False}


@pytest.mark.parametrize(
    "daemon", [["--pcap", "FOLDER/all.pcapng", "--pcap-snaplen", "40"]], indirect=True
)
def test_pcap_takes_all_from_the_start_to_the_end(daemon: ServeProcess, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    execute(tmp_path, "device-add", socket=other, backend="null", name="late")
    for socket in (daemon.socket, other):
        with NetDriver(VhostUserTransport.connect(socket)) as driver:
            driver.start()
            send(driver, 30)
    assert daemon.stop() == 0
    file = read(tmp_path / "all.pcapng")
    assert file.names == ["dev0-rx", "dev0-tx", "late-rx", "late-tx"]
    assert [len(file.of(name)) for name in file.names] == [0, 30, 0, 30]
    assert {(len(p.data), p.original) for p in file.packets} == {(40, 64)}
    assert not re.search("Traceback|bug in", daemon.log())


def test_options_without_pcap_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--socket-path=s", "--backend=null", "--pcap-count", "3"]) == 2
    assert "--pcap-count goes with --pcap" in capsys.readouterr().err
    assert main(["run", "--pcap", "-", "--", "true"]) == 125
    assert "use a file or a FIFO" in capsys.readouterr().err
