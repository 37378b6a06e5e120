"""What systemd is told, and the sockets that it hands over."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from front_end import FrontEnd
from serve_process import PATIENCE_S, READY_S
from vhostnet.cli import activation, service_manager
from vhostnet.cli.activation import Offered, check_all_taken, listeners_of, without_socket
from vhostnet.cli.service_manager import Watchdog, notify, watchdog_s
from vhostnet.device.worker import Worker
from vhostnet.errors import UsageError
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions


class Systemd:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self.address = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(READY_S)
        self._socket.bind("\0" + path[1:] if path[0] == "@" else path)

    def hear(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def wait_for(self, *lines: str) -> list[str]:
        """All that is said, until one of these."""
        said: list[str] = []
        while not set(lines) & set(said):
            said += self.hear()
        return said

    def is_silent(self) -> bool:
        if select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(4096)
            return False
        return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path, monkeypatch) -> Iterator[Systemd]:
    path = str(tmp_path / "notify") if request.param == "path" else f"@vhostnet-test-{os.getpid()}"
    it = Systemd(path)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    yield it
    it.close()


def test_lines_are_sent_to_a_path_or_an_abstract_address(systemd):
    notify("READY=1", "STATUS=here")
    assert systemd.hear() == ["READY=1", "STATUS=here"]


@pytest.mark.parametrize("address", ["", "relative", "/none/there", "vsock:2:3", "/" + "x" * 200])
def test_nobody_who_listens_is_no_error(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_on_if_it_is_meant_for_us(environment, seconds):
    assert watchdog_s(environment) == seconds


class Thread:
    """What a watchdog knows of a worker."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.comes_by = True
        self.asked = 0

    def heartbeat(self) -> bool:
        self.asked += 1
        return self.comes_by


def test_a_worker_that_does_not_come_by_stops_the_pings_and_is_named(systemd, caplog):
    good, bad = Thread("vhost-1"), Thread("vhost-2")
    with closing(Loop()) as loop:
        watchdog = Watchdog(loop, 0.02, lambda: iter((good, bad)))
        while systemd.is_silent():
            loop.run_once(0.1)
        bad.comes_by = False
        asked = bad.asked
        loop.run_once(0.1)
        while not systemd.is_silent():  # what was sent before
            pass
        while bad.asked < asked + 5:
            loop.run_once(0.1)
        assert systemd.is_silent()
        said = [record.getMessage() for record in caplog.records]
        assert said == ["worker vhost-2 hangs: the watchdog is not fed until it comes by"]
        bad.comes_by = True
        while systemd.is_silent():
            loop.run_once(0.1)
        watchdog.close()


def test_a_workers_heart_beats_while_it_comes_by_and_while_it_is_parked():
    is_in = threading.Semaphore(0)
    stuck = threading.Event()
    stuck.set()

    def turn() -> int:
        is_in.release()
        time.sleep(0.001)
        stuck.wait()
        return 0

    worker = Worker("vhost-test", turn, lambda _code: None)
    worker.start()
    try:
        assert worker.heartbeat()
        deadline = time.monotonic() + PATIENCE_S
        is_in.acquire()
        while not worker.heartbeat():
            assert time.monotonic() < deadline
        with worker.quiesced():
            assert worker.heartbeat()
            assert worker.heartbeat()
        stuck.clear()
        while worker.heartbeat():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not worker.heartbeat()
        stuck.set()
        while not worker.heartbeat():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        stuck.set()
        worker.stop()
    assert not worker._thread.is_alive()


# --- sockets ----------------------------------------------------------------------------------


def device(name: str, path: str | None = None, **more: object) -> DeviceOptions:
    return DeviceOptions("--device", "null", name=name, socket_path=path, **more)  # type: ignore[arg-type]


A, B, C = Offered(3, "a", "/run/1"), Offered(4, "sock", "/run/b"), Offered(5, "x", "/run/x")


def test_a_socket_is_for_the_device_of_its_name_or_path_or_the_only_one():
    devices = [device("a"), device("b", "/run/b"), device("c", "/run/c")]
    assert listeners_of(devices, [A, B]) == ({"a": 3, "b": 4}, [])
    assert without_socket(devices, {"b": 4}) == [devices[0]]
    assert listeners_of([device("dev0")], [C]) == ({"dev0": 5}, [])
    assert listeners_of([device("dev0", "/run/y")], [C]) == ({}, [C])
    assert listeners_of([device("a", "/run/1", is_client=True)], [A]) == ({}, [A])
    found, left = listeners_of(devices, [A, B, C])
    assert (found, left) == ({"a": 3, "b": 4}, [C])
    with pytest.raises(UsageError, match=r"the socket /run/x \(x\) is for no device.*a, b, c"):
        check_all_taken(devices, left)


def test_variables_that_are_not_for_this_process_are_left_alone():
    assert activation.take_listeners({}) == ()
    assert activation.take_listeners({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == ()


@pytest.mark.parametrize("n", ["", "x", "-1", "99999"])
def test_a_number_of_sockets_that_is_none_is_an_error(n):
    with pytest.raises(UsageError, match=r"LISTEN_FDS: .* is not a number from 0 to"):
        activation.take_listeners({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": n})


class Activated:
    """`vhostnet serve` as systemd would start it, with listening sockets from 3 on."""

    def __init__(
        self, systemd: Systemd, names: str, listening: list[socket.socket], *words: str
    ) -> None:
        # The shell puts the sockets where systemd does and keeps its pid.
        moves = " ".join(f"{3 + n}<&{sock.fileno()}" for n, sock in enumerate(listening))
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", f'LISTEN_PID=$$ exec "$@" {moves}', "sh", sys.executable,
             "-m", "vhostnet", "serve", *words],
            pass_fds=[sock.fileno() for sock in listening],
            env={**os.environ, "LISTEN_FDS": str(len(listening)), "LISTEN_FDNAMES": names,
                 "NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "1000000"},
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[list[socket.socket]]:
    socks = []
    for name in "ab":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / name))
        sock.listen()
        socks.append(sock)
    yield socks
    for sock in socks:
        sock.close()


def test_a_daemon_serves_the_sockets_of_systemd_and_tells_it_how_it_is(
    systemd, listening, tmp_path
):
    (tmp_path / "f").write_text(
        f'[device.vm1]\nbackend="null"\n[device.vm2]\nbackend="null"\nsocket="{tmp_path}/b"\n'
    )
    daemon = Activated(systemd, "vm1:other", listening, "--config", str(tmp_path / "f"))
    try:
        said = systemd.wait_for("READY=1")
        assert "STATUS=2 devices, 0 front-ends connected" in said
        systemd.wait_for("WATCHDOG=1")
        for name in "ab":
            with FrontEnd(str(tmp_path / name)) as front_end:
                front_end.negotiate()
                systemd.wait_for("STATUS=2 devices, 1 front-ends connected")
            systemd.wait_for("STATUS=2 devices, 0 front-ends connected")
        daemon.process.send_signal(signal.SIGHUP)
        said = systemd.wait_for("READY=1")
        assert "RELOADING=1" in said
        assert any(line.startswith("MONOTONIC_USEC=") for line in said)
    finally:
        status, err = daemon.stop()
    assert status == 0, err
    assert "STOPPING=1" in systemd.wait_for("STOPPING=1")
    assert "vm2: listening on" in err
    assert (tmp_path / "a").exists()  # it is systemd's
    assert (tmp_path / "b").exists()


def test_one_device_takes_the_one_socket_whatever_it_is_called(systemd, listening, tmp_path):
    daemon = Activated(systemd, "vhostnet.socket", listening[:1], "--backend", "null")
    try:
        systemd.wait_for("READY=1")
        with FrontEnd(str(tmp_path / "a")) as front_end:
            front_end.negotiate()
    finally:
        status, err = daemon.stop()
    assert status == 0, err


@pytest.mark.parametrize(
    ("names", "words", "status", "says"),
    [
        ("x:y", ["--backend", "null"], 2, "dev0: no socket of its name was handed over"),
        ("dev0:y", ["--backend", "null"], 2, "(y) is for no device: FileDescriptorName= must be"),
        ("a:b", ["--config", "FILE"], 3, "[device.vm1] socket is needed, or one from systemd"),
    ],
)
def test_sockets_that_do_not_fit_are_said_in_one_line(
    systemd, listening, tmp_path, names, words, status, says
):
    (tmp_path / "f").write_text('[device.vm1]\nbackend = "null"\n')
    given = [word.replace("FILE", str(tmp_path / "f")) for word in words]
    daemon = Activated(systemd, names, listening, *given)
    _, err = daemon.process.communicate(timeout=PATIENCE_S)
    assert daemon.process.returncode == status
    assert says in err
    assert err.count("\n") == 1


def test_a_descriptor_that_does_not_listen_is_refused(systemd):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        daemon = Activated(systemd, "dev0", [theirs], "--backend", "null")
        _, err = daemon.process.communicate(timeout=PATIENCE_S)
    assert daemon.process.returncode == 2
    assert "descriptor 3 (dev0) must be a listening unix stream socket" in err


def test_what_is_told_names_no_more_pings_than_are_asked_for():
    assert service_manager.PINGS >= 2  # sd_watchdog_enabled(3): half of the time, or less
