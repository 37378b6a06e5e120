"""The control socket over real sockets, with a daemon of no devices behind it.

Everything runs in this thread: `Rig.settle` turns the loop.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_process import PATIENCE_S
from vhostnet import events
from vhostnet.control import server as server_module
from vhostnet.control.server import ControlServer
from vhostnet.control.table import commands
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket

NEGOTIATE = b'{"execute": "qmp_capabilities"}'
QUERY = b'{"execute": "query-version", "id": %d}'


class EmptyDaemon:
    door = "test"

    def cards(self) -> list[Any]:
        return []


class Client:
    """A blocking socket that reads lines of JSON."""

    def __init__(self, rig: Rig, negotiate: bool = True) -> None:
        self._rig = rig
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(rig.path)
        self.socket.setblocking(False)
        self._buffer = b""
        assert "QMP" in self.read()
        if negotiate:
            assert self.ask(NEGOTIATE) == {"return": {}}

    def ask(self, data: bytes) -> Any:
        self.send(data)
        return self.read()

    def send(self, data: bytes) -> None:
        """All of it, with the loop turning."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                self._rig.loop.run_once(0.01)

    def read(self) -> Any:
        self._rig.settle(self._has_line)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _has_line(self) -> bool:
        try:
            data = self.socket.recv(65536)
            assert data, "the server has hung up"
            self._buffer += data
        except BlockingIOError:
            pass
        return b"\n" in self._buffer

    def is_hung_up(self) -> bool:
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.loop = Loop()
        self.server = ControlServer(
            self.loop, ListeningSocket(self.path, 0o600), EmptyDaemon(), commands(())
        )
        self.clients: list[Client] = []

    def client(self, negotiate: bool = True) -> Client:
        self.clients.append(Client(self, negotiate))
        return self.clients[-1]

    def settle(self, done: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, "nothing comes"
            self.loop.run_once(0.01)

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()
        self.server.close()
        self.loop.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    before = open_fds()
    rig = Rig(tmp_path / "control")
    yield rig
    rig.close()
    assert open_fds() == before
    assert not os.path.exists(rig.path)


def test_only_the_user_may_connect(rig):
    assert os.stat(rig.path).st_mode & 0o777 == 0o600


def test_a_command_is_answered(rig):
    answer = rig.client().ask(QUERY % 7)
    assert answer["id"] == 7
    assert answer["return"]["command"] == "test"


def test_events_reach_every_negotiated_client_from_any_thread(rig):
    one, two, early = rig.client(), rig.client(), rig.client(negotiate=False)
    teller = threading.Thread(target=lambda: events.tell("DEVICE_ADDED", device="dev9"))
    teller.start()
    teller.join()
    for client in (one, two):
        event = client.read()
        assert (event["event"], event["data"]) == ("DEVICE_ADDED", {"device": "dev9"})
        assert abs(event["timestamp"]["seconds"] - time.time()) < 60
    assert early.ask(NEGOTIATE) == {"return": {}}


def test_of_more_events_than_wait_the_newest_come_and_the_number_of_the_others(rig, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_EVENTS", 4)
    client = Client(rig)
    for turn in range(2):
        for number in range(7):
            events.tell("DEVICE_ADDED", device=f"dev{turn}.{number}")
        told = [client.read() for _ in range(5)]
        assert (told[0]["event"], told[0]["data"]) == ("EVENTS_LOST", {"count": 3})
        assert [one["data"]["device"] for one in told[1:]] == [
            f"dev{turn}.{n}" for n in range(3, 7)
        ]
    events.tell("DEVICE_ADDED", device="alone")
    assert client.read()["data"] == {"device": "alone"}
    client.socket.close()


def test_a_client_that_does_not_read_holds_up_nobody_and_is_not_answered_without_end(rig):
    greedy, other = rig.client(), rig.client()
    sent = 0
    commands = b'{"execute": "query-commands"}' * 64
    for _ in range(2000):
        try:
            sent += greedy.socket.send(commands)
        except BlockingIOError:
            rig.loop.run_once(0)
            if len(max(rig.server.clients, key=lambda c: len(c._unsent))._unsent) > 0:
                break
    for n in range(5):
        assert other.ask(QUERY % n)["id"] == n
    waiting = max(len(client._unsent) for client in rig.server.clients)
    most_of_a_turn = server_module.A_TURN // 29 * 8192
    assert waiting <= server_module.PENDING_HIGH + most_of_a_turn
    # once it reads, it is answered; what it has been sent makes sense to the last byte
    for _ in range(sent // len(commands)):
        assert isinstance(greedy.read()["return"], list)


def test_a_client_that_never_reads_its_events_is_hung_up_on(rig, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(server_module, "PENDING_MAX", 64 * 1024)
    stuck, other = rig.client(), rig.client()
    heard = 0
    for _ in range(10_000):
        events.tell("DEVICE_ADDED", device="x" * 100)
        rig.loop.run_once(0)
        heard += other.read()["event"] == "DEVICE_ADDED"
        if len(rig.server.clients) == 1:
            break
    assert heard > 100
    rig.settle(stuck.is_hung_up)
    assert "does not read its events" in caplog.text
    assert other.ask(QUERY % 1)["id"] == 1


def test_more_clients_than_there_may_be_are_refused(rig, caplog):
    for _ in range(server_module.MAX_CLIENTS):
        rig.client()
    before = open_fds()
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(rig.path)
        late.setblocking(False)
        rig.settle(lambda: "refused client" in caplog.text)
        assert late.recv(1) == b""
    assert open_fds() == before
    rig.clients.pop().socket.close()
    rig.settle(lambda: len(rig.server.clients) < server_module.MAX_CLIENTS)
    assert rig.client().ask(QUERY % 1)["id"] == 1


def test_nonsense_of_every_kind_from_many_clients_leaves_the_others_alone(rig):
    dice = random.Random(6)
    honest = rig.client()
    pieces = (
        b'{"execute": "query-commands"}',
        b'{"execute":',
        b"[" * 2000,
        b'{"a":' * 2000,
        b'"' * 99,
        b"\xff\xfe\x00\x80",
        b"9" * 5000,
        b'{"execute": "device-del", "arguments": {"device": "\\ud800"}}',
        b'{"execute": "log-set", "arguments": {"level": "\\u0000", "area": "vhostnet.\\n"}}',
        b"\n",
        b"}",
        b'{"execute": "qmp_capabilities"}',
    )
    for n in range(150):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(rig.path)
            sock.setblocking(False)
            data = b"".join(dice.choices(pieces, k=dice.randrange(1, 12)))
            data += dice.randbytes(dice.randrange(50))
            try:
                sock.send(data)
                rig.loop.run_once(0)
                sock.shutdown(dice.choice((socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR)))
            except OSError:
                pass
            rig.loop.run_once(0)
        assert honest.ask(QUERY % n)["id"] == n
    rig.settle(lambda: len(rig.server.clients) == 1)


def test_an_event_that_is_told_while_the_socket_closes_writes_to_nobodys_file(rig):
    listener = rig.server._on_event
    rig.server.close()
    listener(events.Event("DEVICE_ADDED", {}, 0.0))
    rig.server.close = lambda: None
