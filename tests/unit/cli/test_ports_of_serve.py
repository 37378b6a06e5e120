"""`backend=port:NAME` by device-add, device-del and SIGHUP, with guests that send all the while."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flooding import flooding
from serve_process import PATIENCE_S, ServeProcess, wait_until
from vhostnet.cli.main import main
from vhostnet.control.client import ControlClient, Refused
from vhostnet.datapath import catalogue
from vhostnet.native._jit import CACHE_DIR, JIT_ENABLED
from vhostnet_frontend import NetDriver, VhostUserTransport

TURNS = 12


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    if JIT_ENABLED:  # the daemon does not compile for device-add
        catalogue.warm({*catalogue.kernels_for("port"), *catalogue.kernels_for("null")})


class Ports:
    """A daemon to which devices come and go, and a client of its control socket."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        path = str(folder / "control")
        self.process = ServeProcess(folder, *options, "--control", path)
        self.control = ControlClient(path, PATIENCE_S)

    def add(self, name: str, backend: str = "port:x", **keys: object) -> None:
        socket = str(self.folder / name)
        self.control.execute("device-add", socket=socket, backend=backend, name=name, **keys)

    def remove(self, name: str) -> None:
        self.control.execute("device-del", device=name)

    def driver(self, name: str) -> NetDriver:
        """A guest at that device, started."""
        return NetDriver(VhostUserTransport.connect(str(self.folder / name), wait=5.0)).start()

    def tx(self, name: str) -> dict[str, int]:
        """What the device's TX ring counted."""
        [stats] = self.control.execute("query-stats", device=name)
        counters: dict[str, int] = stats["pairs"][0]["tx"]["counters"]
        return counters

    def partners(self) -> dict[str, str | None]:
        told = self.control.execute("query-devices")
        return {device["device"]: device["partner"] for device in told if "partner" in device}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Ports]:
    it = Ports(tmp_path, "--backend", "null")
    yield it
    it.control.close()
    it.process.wait_idle()
    it.process.check_and_stop()


def frame(number: int) -> bytes:
    return b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xb5" + number.to_bytes(46, "big")


def check_both_ways(a: NetDriver, b: NetDriver, number: int) -> None:
    for sender, receiver in ((a, b), (b, a)):
        sender.send(frame(number))
        while (found := receiver.receive(timeout=PATIENCE_S)) != frame(number):
            assert found is not None


def test_the_first_of_a_pair_waits_and_a_third_is_refused(daemon: Ports) -> None:
    daemon.add("vm1")
    assert daemon.partners() == {"vm1": None}
    with daemon.driver("vm1") as a:
        for k in range(10):
            a.send(frame(k))
        a.flush()
        assert daemon.tx("vm1")["drop_no_peer"] == 10
        with pytest.raises(Refused, match="queue-pairs: the two devices of port:x have 1 and 2"):
            daemon.add("vm2", queue_pairs=2)
        daemon.add("vm2")
        assert daemon.partners() == {"vm1": "vm2", "vm2": "vm1"}
        with daemon.driver("vm2") as b:
            check_both_ways(a, b, 99)
            with pytest.raises(Refused) as refused:
                daemon.add("vm3")
            assert str(refused.value) == ("backend: port:x joins two devices, vm1 and vm2 already")
            daemon.add("vm3", "port:y")
            check_both_ways(a, b, 100)
    for name in ("vm3", "vm2", "vm1"):
        daemon.remove(name)
    assert [line for line in daemon.process.lines() if "port:x" in line and "dropped" in line] == [
        "vm1: no other device has port:x: what is sent is dropped",
        "vm1: no other device has port:x: what is sent is dropped",
    ]


def test_devices_come_and_go_under_traffic(daemon: Ports) -> None:
    daemon.add("vm1")
    with daemon.driver("vm1") as stayer:
        with flooding(stayer, frame(0)):
            for turn in range(TURNS):
                daemon.add("vm2")
                other = daemon.driver("vm2")
                assert other.receive(timeout=PATIENCE_S) == frame(0), turn
                with flooding(other, frame(0), to_the_end=False):
                    assert stayer.receive(timeout=PATIENCE_S) == frame(0), turn
                    daemon.remove("vm2")
                other.close()
                while stayer.receive(timeout=0.0) is not None:
                    pass
        daemon.add("vm2")
        with daemon.driver("vm2") as other:
            check_both_ways(stayer, other, 99)
        tx = daemon.tx("vm1")
        assert tx["ring_errors"] == tx["drop_bad_header"] == tx["drop_refused"] == 0
    daemon.remove("vm2")
    daemon.remove("vm1")


def test_both_go_at_once_while_both_send(daemon: Ports) -> None:
    for turn in range(TURNS // 2):
        daemon.add("vm1")
        daemon.add("vm2")
        a, b = daemon.driver("vm1"), daemon.driver("vm2")
        with flooding(a, frame(0), to_the_end=False), flooding(b, frame(0), to_the_end=False):
            assert a.receive(timeout=PATIENCE_S) == b.receive(timeout=PATIENCE_S) == frame(0)
            for name in ("vm1", "vm2")[:: 1 if turn % 2 else -1]:
                daemon.remove(name)
        a.close()
        b.close()
    assert daemon.partners() == {}


def test_a_device_that_cannot_be_opened_leaves_its_partner_alone(daemon: Ports) -> None:
    daemon.add("vm1")
    (daemon.folder / "taken").write_text("a file, and no socket")
    with pytest.raises(Refused, match="taken"):
        daemon.add("taken")
    assert daemon.partners() == {"vm1": None}
    daemon.add("vm2")
    with daemon.driver("vm1") as a, daemon.driver("vm2") as b:
        check_both_ways(a, b, 1)
    daemon.remove("vm1")
    daemon.remove("vm2")


def test_the_partner_of_a_device_of_the_command_line_may_come_later(tmp_path: Path) -> None:
    one = f"socket={tmp_path / 'vm1'},name=vm1,backend=port:x"
    daemon = Ports(tmp_path, "--device", one)
    daemon.add("vm2")
    with daemon.driver("vm1") as a, daemon.driver("vm2") as b:
        check_both_ways(a, b, 1)
    daemon.control.close()
    daemon.process.check_and_stop()


def test_without_a_control_socket_a_port_alone_is_a_mistake(capsys) -> None:
    for words in (["--socket-path=s", "--backend=port:x"], ["--device=socket=s,backend=port:x"]):
        assert main(["serve", *words]) == 2
        said = capsys.readouterr().err
        assert "backend: port:x: one device has it; it joins two" in said
        assert said.count("\n") == 1


def test_check_says_which_partner_is_not_named(tmp_path: Path, capsys) -> None:
    file = tmp_path / "vhostnet.toml"
    file.write_text((BOTH + OTHER.replace("port:x", "port:y")).replace("DIR", str(tmp_path)))
    assert main(["check", str(file)]) == 0
    [said] = [line for line in capsys.readouterr().out.splitlines() if " partner " in line]
    assert " ".join(said.split()) == (
        "-- vm3 partner no other device has port:y: what is sent is dropped until one comes"
    )


# --- SIGHUP ---------------------------------------------------------------------------------------

VM = '[device.{0}]\nsocket = "DIR/{0}"\nbackend = "port:x"\n'
ONE, BOTH, OTHER = VM.format("vm1"), VM.format("vm1") + VM.format("vm2"), VM.format("vm3")


def test_a_reload_adds_removes_and_replaces_the_partner_of_a_guest_that_sends(tmp_path) -> None:
    file = tmp_path / "vhostnet.toml"
    file.write_text(ONE.replace("DIR", str(tmp_path)))
    daemon = Ports(tmp_path, "--config", str(file))

    def reload(text: str) -> list[str]:
        file.write_text(text.replace("DIR", str(tmp_path)))
        daemon.process.mark()
        daemon.process.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any("reloaded" in line for line in daemon.process.lines()), "a reload")
        return daemon.process.lines()

    with daemon.driver("vm1") as a, flooding(a, frame(0)):
        for text, name in ((BOTH, "vm2"), (ONE + OTHER, "vm3"), (BOTH, "vm2")):
            said = reload(text)
            assert said[-1] == "the configuration is reloaded: 2 devices"
            assert f"{name}: joined to vm1 by port:x" in said
            with daemon.driver(name) as b:
                assert b.receive(timeout=PATIENCE_S) == frame(0)
                reload(ONE if name == "vm2" else text)
                assert daemon.partners()["vm1"] == (None if name == "vm2" else name)
        daemon.add("by-hand")
        said = reload(ONE + OTHER)
        assert said[0].startswith(f"not applied: {file}:4: [device.vm3] backend: port:x joins two")
        assert said[0].endswith("vm1 and by-hand already")
    daemon.control.close()
    daemon.process.check_and_stop()


# --- kernels that are not there -------------------------------------------------------------------


@pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")
@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_kernels_that_are_not_compiled_are_named_with_what_to_do(
    tmp_path: Path, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The markers of `vhostnet warm` are there, Numba's own files are not: those count."""
    cache = tmp_path / "cache" / "vhostnet" / "kernels" / CACHE_DIR.name
    without = shutil.ignore_patterns("port_worker.*")
    shutil.copytree(CACHE_DIR, cache, ignore=without, copy_function=os.symlink)
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    daemon = Ports(tmp_path, "--backend", "null", "--sandbox", sandbox)
    then = "restart the daemon" if sandbox == "auto" else "try again"
    with pytest.raises(Refused) as refused:
        daemon.add("vm1")
    assert str(refused.value) == (
        f"backend: the data path of port:x is not compiled in {cache.parent}, and compiling takes "
        "longer than the other devices can wait: run `vhostnet warm` as the daemon's user and "
        f"{then}"
    )
    for made in CACHE_DIR.glob("*/port_worker.*"):  # as `vhostnet warm`
        shutil.copy(made, cache / made.relative_to(CACHE_DIR))
    if sandbox == "none":
        daemon.add("vm1")
    else:
        with pytest.raises(Refused):
            daemon.add("vm1")
    assert "kernels compiled" not in daemon.process.log().partition("0 kernels compiled")[2]
    daemon.control.close()
    daemon.process.check_and_stop()
