"""`vhostnet ctl`: words to commands, answers to tables, failures to one line and a status."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from front_end import FrontEnd, Guest
from serve_process import ServeProcess, wait_until
from vhostnet.cli import ctl_views
from vhostnet.cli.main import main
from vhostnet.control import client

PATIENCE_S = 60.0


class Daemon(ServeProcess):
    def __init__(self, folder: Path) -> None:
        self.control = str(folder / "control")
        super().__init__(folder, "--backend", "null", "--control", self.control)

    def wait_settled(self) -> None:
        """Wait until no front-end is connected."""
        with client.ControlClient(self.control) as control:
            wait_until(lambda: not control.execute("query-devices")[0]["connected"], "it is free")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    it = Daemon(tmp_path_factory.mktemp("ctl"))
    yield it
    it.check_and_stop()


@pytest.fixture
def guest(daemon: Daemon) -> Iterator[Guest]:
    it = Guest()
    with FrontEnd(daemon.socket) as front_end:
        front_end.start(it)
        it.tx.send(b"x" * 60, b"y" * 60)
        it.tx.wait_used(2)
        yield it
    it.close()


@pytest.fixture
def ctl(daemon, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        status = main(["ctl", "--control", daemon.control, *words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_short_name_is_that_of_the_query(ctl):
    assert ctl("version") == ctl("query-version")
    assert ctl("version")[1].startswith("version  ")


@pytest.mark.usefixtures("guest")
def test_rings_are_a_table(ctl):
    status, out, _ = ctl("vrings")
    head, rx, tx = out.splitlines()
    assert status == 0
    assert head.split()[:4] == ["device", "queue", "running", "format"]
    rows = [dict(zip(head.split(), line.split(), strict=True)) for line in (rx, tx)]
    assert [row["queue"] for row in rows] == ["rx0", "tx0"]
    assert (rows[1]["last-avail"], rows[1]["last-used"], rows[1]["last-error"]) == ("2", "2", "-")


@pytest.mark.usefixtures("guest")
def test_counters_as_a_table_and_of_one_device(ctl):
    head, _, tx = ctl("stats")[1].splitlines()
    row = dict(zip(head.split(), tx.split(), strict=True))
    assert (row["queue"], row["drops"]) == ("tx0", "0")
    packets = int(row["packets"])
    assert packets >= 2
    assert f"packets        {packets}" in ctl("stats", "dev0")[1]


@pytest.mark.usefixtures("guest")
def test_memory_workers_and_devices(ctl):
    assert "dev0: 1 MiB in 1 regions" in ctl("memory", "device=dev0")[1]
    assert "busy-ns" in ctl("workers")[1]
    assert "VERSION_1" in ctl("devices")[1]


def test_a_ring_is_drawn_and_one_that_breaks_a_rule_is_status_6(ctl, guest):
    status, out, _ = ctl("inspect", "dev0", "tx")
    assert (status, out.splitlines()[-1]) == (0, "what is wrong: nothing")
    assert out.startswith("dev0 tx0: split ring of 16, running\n")
    ring = guest.tx.ring
    ring.set_desc(2, guest.tx.buffers[0], 100, 1, 99)  # NEXT, beyond the table
    ring.offer(2)
    status, out, _ = ctl("inspect", "dev0", "tx0")
    assert status == 6
    assert "-> 99" in out
    assert out.splitlines()[-1].startswith("  chain 2 (head 2): a chain goes on in a descriptor")
    assert json.loads(ctl("--json", "inspect", "dev0", "tx0")[1])["problems"]


def test_json_is_what_the_daemon_says(ctl):
    (device,) = json.loads(ctl("--json", "devices")[1])
    assert (device["device"], device["running"]) == ("dev0", False)


def test_a_device_comes_and_goes(ctl, daemon):
    path = f"{daemon.socket}=1"
    status, out, _ = ctl("device-add", path, "null", "queue-pairs=2", "coalesce=off", "name=vm2")
    assert (status, out.split()) == (0, ["device", "vm2"])
    lines = ctl("devices")[1].splitlines()
    assert [line.split()[0] for line in lines] == ["device", "dev0", "vm2"]
    assert ctl("device-del", "vm2") == (0, "", "")


def test_paths_are_those_of_the_shell_and_a_capture_is_a_table(ctl, daemon, monkeypatch):
    monkeypatch.chdir(Path(daemon.control).parent)
    status, out, err = ctl("capture-start", "c.pcapng")
    assert (status, err) == (0, "")
    assert ("file     " + str(Path(daemon.control).with_name("c.pcapng"))) in out.splitlines()
    assert "filter   -" in out.splitlines()
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["queue", "seen", "accepted", "lost"],
        ["dev0-rx", "0", "0", "0"],
        ["dev0-tx", "0", "0", "0"],
    ]
    assert ctl("capture-stop")[0] == 0
    assert ctl("capture") == (0, "running  no\n", "")
    assert ctl("device-add", "relative.sock", "null", "name=here")[0] == 0
    assert Path("relative.sock").is_socket()
    assert ctl("device-del", "here")[0] == 0
    # a client of QMP has no shell, and a sealed daemon no folder
    with (
        client.ControlClient(daemon.control) as control,
        pytest.raises(client.Refused, match=r"^c\.pcapng: the sandbox needs an absolute path"),
    ):
        control.execute("capture-start", file="c.pcapng")


def test_every_command_of_the_daemon_is_listed(ctl):
    out = ctl("commands")[1]
    assert "log-set LEVEL [area]" in out
    assert "vrings [device]" in out


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (("vring",), 2, "did you mean vrings?"),
        (("xyz",), 2, "commands are commands, "),
        (("vrings", "a", "b"), 2, "what is 'b' for? vrings [device=...]"),
        (("vrings", "dev0", "device=dev0"), 2, "device is given twice"),
        (("device-add", "/tmp/x"), 2, "backend is needed"),
        (("device-add", "/tmp/x", "null", "queue-pairs=two"), 2, "'two' is not a number"),
        (("device-add", "/tmp/x", "null", "client=1"), 2, "must be on or off"),
        (("events", "DEVICE_CONECTED"), 2, "did you mean DEVICE_CONNECTED?"),
        (("vrings", "dev9"), 1, "there is no device 'dev9' (there is: dev0)"),
        (("log-set", "loud"), 1, "'loud' is not one of error, warning, info, debug"),
        (("device-add", "/tmp/x", "nul"), 1, "did you mean null"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(ctl, words, status, why):
    got, out, err = ctl(*words)
    assert (got, out) == (status, "")
    assert why in err
    assert err.count("\n") == 1


def test_what_is_missing_on_the_command_line(capsys):
    assert main(["ctl", "devices"]) == 2
    assert "--control PATH is needed" in capsys.readouterr().err
    assert main(["ctl", "--control", "x"]) == 2
    assert "a command is needed" in capsys.readouterr().err


def test_nobody_there(tmp_path, capsys):
    assert main(["ctl", "--control", str(tmp_path / "no"), "devices"]) == 4
    assert "cannot connect: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "status", "why"),
    [
        (b"", 5, "has hung up"),
        (b"SSH-2.0-x\r\n", 5, "is no control socket"),
        (b"[]\n", 5, "is no control socket"),
        (b'{"hello": 1}\n', 5, "is no control socket"),
        (b'{"QMP": {}}\n', 5, "has hung up"),
        (None, 4, "no answer within 0.2 s"),
    ],
)
def test_somebody_else_there(tmp_path, capsys, monkeypatch, says, status, why):
    if says is None:
        monkeypatch.setattr(client, "TIMEOUT_S", 0.2)
    path = str(tmp_path / "s")
    done = threading.Event()

    def impostor() -> None:
        with listener.accept()[0] as sock:
            if says is None:
                done.wait(PATIENCE_S)
            else:
                sock.sendall(says)
                sock.shutdown(socket.SHUT_WR)
                sock.settimeout(PATIENCE_S)
                while sock.recv(4096):
                    pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=impostor)
        thread.start()
        assert main(["ctl", "--control", path, "devices"]) == status
        done.set()
        thread.join()
    assert why in capsys.readouterr().err


def test_events_are_followed_until_the_daemon_ends(tmp_path):
    daemon = Daemon(tmp_path)
    command = [sys.executable, "-m", "vhostnet", "ctl", "--control", daemon.control]
    text = subprocess.Popen([*command, "events"], stdout=-1, stderr=-1, text=True)
    some = subprocess.Popen(
        [*command, "--json", "events", "DEVICE_CONNECTED"], stdout=-1, stderr=-1, text=True
    )
    streams = {text.stdout, some.stdout}
    guest = Guest()
    while streams:  # sessions, until both have heard of one
        with FrontEnd(daemon.socket) as front_end:
            front_end.start(guest)
            guest.reset()
        daemon.wait_settled()
        streams -= set(select.select(streams, [], [], 0.1)[0])
    guest.close()
    daemon.check_and_stop()
    out, err = text.communicate(timeout=PATIENCE_S)
    assert "DEVICE_DISCONNECTED device=dev0 reason=the front-end disconnected" in out
    assert (text.returncode, "has hung up" in err) == (5, True)
    out, _ = some.communicate(timeout=PATIENCE_S)
    assert {json.loads(line)["event"] for line in out.splitlines()} <= {"DEVICE_CONNECTED"}


def test_what_a_name_holds_does_not_reach_the_terminal():
    assert ctl_views.pairs({"a": "\x1b[31mred\n"}) == ["a  ?[31mred?"]


def test_a_table_of_nothing_and_of_much():
    assert ctl_views.view("query-devices", {}, []) == ["(none)"]
    assert ctl_views.view("device-del", {}, {}) == []
    assert ctl_views.table([{"a": 1, "b": None}, {"a": 22, "c": ["x", "y"]}]) == [
        " a  b  c",
        " 1  -  -",
        "22  -  x y",
    ]


def test_asking_imports_nothing_that_is_large():
    code = "import sys, vhostnet.cli.ctl; raise SystemExit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S).returncode == 0
