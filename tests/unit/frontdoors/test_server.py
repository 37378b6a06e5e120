"""Connections over real unix sockets, with a fake device behind them.

Everything runs in this thread: `Rig.settle` turns the loop until there is nothing left to do.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_device import FakeDevice
from serve_process import PATIENCE_S
from vhostnet.errors import EXIT_BUG, EXIT_OK, EXIT_PEER, HostError, UsageError
from vhostnet.frontdoors import acceptor, connection, listening_socket, vhost_user_server
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.listening_socket import ListeningSocket, check_free
from vhostnet.frontdoors.peer_log import PeerLog
from vhostnet.frontdoors.vhost_user_server import (
    ConnectingDoor,
    DeviceServer,
    ListeningDoor,
    inherited_socket,
)
from vhostnet.protocol.vhost_user_codec import encode_message

U64 = struct.Struct("=Q")
GET_FEATURES = encode_message(1, 0x1)
SET_OWNER = encode_message(3, 0x1)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Rig:
    """A device server on a socket, and front-ends to connect to it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.loop = Loop()
        self.device = FakeDevice()
        self.finished: list[int] = []
        self.server = self.new_server()
        self.front_ends: list[socket.socket] = []

    def new_server(self, **options: bool) -> DeviceServer:
        return DeviceServer(
            self.loop, self.device, "dev0", on_finished=self.finished.append, **options
        )

    def listen(self, **options: bool) -> None:
        self.server = self.new_server(**options)
        self.server.open(ListeningDoor(self.server, ListeningSocket(self.path, 0o600)))

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.front_ends.append(sock)
        sock.settimeout(PATIENCE_S)
        sock.connect(self.path)
        return sock

    def settle(self, turns: int = 5) -> None:
        """Turn the loop: all that is there by now is handled."""
        for _ in range(turns):
            self.loop.run_once(0.01)

    def settle_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, "it does not come"
            self.loop.run_once(0.01)

    def ask(self, sock: socket.socket, message: bytes) -> bytes:
        sock.sendall(message)
        sock.setblocking(False)
        reply = b""

        def received() -> bool:
            nonlocal reply
            try:
                reply = sock.recv(4096)
            except BlockingIOError:
                return False
            return True

        self.settle_until(received)
        return reply

    def is_closed(self, sock: socket.socket) -> bool:
        sock.settimeout(0.01)
        try:
            while sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True
        return True

    def close(self) -> None:
        self.server.close()
        for sock in self.front_ends:
            sock.close()
        self.loop.close()


@pytest.fixture
def rig(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Rig]:
    caplog.set_level(logging.INFO)
    before = open_fds()
    rig = Rig(tmp_path / "s")
    yield rig
    rig.close()
    assert open_fds() == before
    assert not os.path.exists(rig.path)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def send_fds(sock: socket.socket, message: bytes, fds: list[int]) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    sock.sendmsg([message], [rights])


def test_a_front_end_is_served_and_the_next_one_too(rig, caplog):
    rig.listen()
    me = f"pid {os.getpid()}"
    for n in (1, 2, 3):
        sock = rig.connect()
        assert U64.unpack(rig.ask(sock, GET_FEATURES)[12:])[0] == rig.device.get_features()
        sock.close()
        rig.settle_until(lambda: not rig.device.is_session_open)
        assert rig.device.sessions == n
    assert lines(caplog)[:2] == [
        f"dev0: front-end {me} connected",
        f"dev0: front-end {me} disconnected",
    ]
    assert rig.device.pid == os.getpid()


def test_a_message_may_come_byte_by_byte_and_many_at_once(rig):
    rig.listen()
    sock = rig.connect()
    for byte in SET_OWNER:
        sock.send(bytes([byte]))
        rig.settle(1)
    sock.sendall(SET_OWNER * 600)
    assert len(rig.ask(sock, GET_FEATURES)) == 20
    assert rig.device.names().count("set_owner") == 601


def test_descriptors_reach_the_message_they_were_sent_with_in_a_burst(rig):
    rig.listen()
    sock = rig.connect()
    with open("/dev/null") as null:
        inode = os.fstat(null.fileno()).st_rdev
        sock.sendall(SET_OWNER)
        send_fds(sock, encode_message(12, 1, U64.pack(1)), [null.fileno()])
        send_fds(sock, encode_message(13, 1, U64.pack(0)), [null.fileno()])
        sock.sendall(encode_message(13, 1, U64.pack(0x102)))
    rig.settle()
    assert [call[:2] for call in rig.device.calls] == [
        ("set_owner",),
        ("set_vring_kick", 1),
        ("set_vring_call", 0),
        ("set_vring_call", 2),
    ]
    assert len(rig.device.owned) == 2
    assert all(os.fstat(fd).st_rdev == inode for fd in rig.device.owned)
    assert not any(os.get_inheritable(fd) for fd in rig.device.owned)


def test_descriptors_that_nobody_wants_are_closed_while_the_session_lives(rig):
    rig.listen()
    sock = rig.connect()
    assert rig.ask(sock, encode_message(16, 0x1, U64.pack(1 << 3)) + GET_FEATURES)
    before = open_fds()
    with open("/dev/null") as null:
        for _ in range(20):
            send_fds(sock, encode_message(3, 0x9), [null.fileno()] * 5)
            assert rig.ask(sock, b"")[12:] == U64.pack(1)
    assert open_fds() == before


def test_garbage_a_thousand_times_is_survived_and_does_not_flood_the_log(rig, caplog):
    rig.listen()
    before = open_fds()
    with open("/dev/null") as null:
        for n in range(1000):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(rig.path)
            send_fds(sock, struct.pack("=III", n, n % 16 & ~1, 1 << n % 32), [null.fileno()])
            rig.loop.run_once(0)
            rig.loop.run_once(0)
            sock.close()
            if n % 8 == 0:
                rig.settle(1)
    rig.settle_until(lambda: not rig.device.is_session_open)
    assert open_fds() == before
    assert rig.device.calls == []
    rig.server.log.flush()
    assert len(lines(caplog)) < 60
    assert any("more like this)" in line for line in lines(caplog))
    assert len(rig.ask(rig.connect(), GET_FEATURES)) == 20


def test_a_broken_rule_closes_the_session_with_a_line_that_names_message_and_rule(rig, caplog):
    rig.listen()
    sock = rig.connect()
    sock.sendall(encode_message(5, 1, bytes(7)))
    rig.settle()
    assert rig.is_closed(sock)
    assert lines(caplog)[-1] == (
        "dev0: closed the session: SET_MEM_TABLE: payload of 7 bytes, must be 8 or more"
    )


def test_a_refusal_by_ack_is_logged_and_the_session_goes_on(rig, caplog):
    rig.listen()
    sock = rig.connect()
    rig.ask(sock, encode_message(16, 0x9, U64.pack(1 << 3)))
    assert rig.ask(sock, encode_message(26, 0x9, bytes(16))) == encode_message(26, 5, U64.pack(1))
    assert (
        lines(caplog)[-1] == "dev0: refused CREATE_CRYPTO_SESSION: this back-end does not offer it"
    )
    assert len(rig.ask(sock, GET_FEATURES)) == 20


@pytest.mark.parametrize("n_fds", [33, 34, 100])
def test_more_descriptors_than_legal_end_the_session_and_are_closed(rig, caplog, n_fds):
    rig.listen()
    sock = rig.connect()
    rig.settle()
    before = open_fds()
    with open("/dev/null") as null:
        send_fds(sock, encode_message(3, 1), [null.fileno()] * n_fds)
    rig.settle()
    assert rig.is_closed(sock)
    assert open_fds() == before - 1
    assert "file descriptors" in lines(caplog)[-1]


def test_a_bug_in_a_handler_is_logged_with_its_traceback_and_the_daemon_lives(rig, caplog):
    rig.listen()
    sock = rig.connect()
    rig.device.failure = ZeroDivisionError("oops")
    sock.sendall(SET_OWNER)
    rig.settle()
    assert rig.is_closed(sock)
    bug = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(bug) == 1
    assert bug[0].exc_info is not None
    rig.device.failure = None
    assert len(rig.ask(rig.connect(), GET_FEATURES)) == 20


def test_a_peer_that_does_not_read_loses_its_session(rig, caplog):
    rig.listen()
    sock = rig.connect()
    sock.setblocking(False)
    deadline = time.monotonic() + PATIENCE_S
    while rig.device.sessions == 0 or rig.device.is_session_open:
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            sock.send(GET_FEATURES * 100)
        rig.loop.run_once(0.01)
    assert "replies are not being read" in lines(caplog)[-1]


def test_a_peer_that_reads_late_gets_all_of_its_replies(rig):
    rig.listen()
    sock = rig.connect()
    # The kernel accounts for each small reply as for a large one: a few hundred fill a socket.
    n = 1000
    sock.sendall(GET_FEATURES * n)
    rig.settle(30)
    assert rig.server.connection is not None
    sock.setblocking(False)
    received = bytearray()

    def have_all() -> bool:
        with contextlib.suppress(BlockingIOError):
            received.extend(sock.recv(65536))
        return len(received) == 20 * n

    rig.settle_until(have_all)
    assert len(received) == 20 * n


def test_a_second_front_end_is_refused_while_the_first_one_lives(rig, caplog):
    rig.listen()
    first = rig.connect()
    rig.settle()
    second = rig.connect()
    rig.settle()
    me = os.getpid()
    assert rig.is_closed(second)
    assert lines(caplog)[-1] == f"dev0: refused front-end pid {me}: pid {me} is connected"
    assert len(rig.ask(first, GET_FEATURES)) == 20


def test_a_second_front_end_is_served_if_the_first_one_has_gone_unnoticed(rig):
    rig.listen()
    first = rig.connect()
    rig.settle()
    second = rig.connect()
    first.close()
    # Both are ready at once; whichever the selector names first, the second must be served.
    assert len(rig.ask(second, GET_FEATURES)) == 20
    assert rig.device.sessions == 2


def test_a_one_off_server_ends_with_its_first_session(rig):
    rig.listen(is_one_off=True)
    rig.connect().close()
    rig.settle_until(lambda: bool(rig.finished))
    assert rig.finished == [EXIT_OK]
    with pytest.raises(FileNotFoundError):
        rig.connect()


@pytest.mark.parametrize(
    ("failure", "message", "status"),
    [
        (None, encode_message(99, 1), EXIT_PEER),
        (ZeroDivisionError(), SET_OWNER, EXIT_BUG),
    ],
)
def test_a_one_off_server_says_who_broke_it(rig, failure, message, status):
    rig.listen(is_one_off=True)
    rig.device.failure = failure
    rig.connect().sendall(message)
    rig.settle_until(lambda: bool(rig.finished))
    assert rig.finished == [status]


def test_an_inherited_socket_is_served_and_ends_the_daemon(rig):
    ours, theirs = socket.socketpair()
    rig.front_ends.append(theirs)
    rig.server = rig.new_server(is_one_off=True)
    rig.server.offer(inherited_socket(ours.detach()))
    assert len(rig.ask(theirs, GET_FEATURES)) == 20
    theirs.close()
    rig.settle_until(lambda: bool(rig.finished))
    assert rig.finished == [EXIT_OK]


def test_only_a_connected_unix_stream_socket_can_be_inherited(tmp_path):
    listening = ListeningSocket(str(tmp_path / "s"), 0o600)
    with (
        open("/dev/null") as null,
        socket.socket(socket.AF_INET) as inet,
        socket.socket(socket.AF_UNIX) as idle,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
    ):
        for fd, error in (
            (null.fileno(), UsageError),
            (inet.fileno(), UsageError),
            (datagram.fileno(), UsageError),
            (listening.socket.fileno(), UsageError),
            (idle.fileno(), HostError),
            (999_999, UsageError),
        ):
            with pytest.raises(error):
                inherited_socket(fd)
    listening.close()


def test_a_client_waits_for_the_front_end_and_connects_again(rig, caplog, monkeypatch):
    monkeypatch.setattr(vhost_user_server, "RECONNECT_S", 0.02)
    rig.server.open(ConnectingDoor(rig.server, rig.path))
    rig.settle(15)
    assert [line for line in lines(caplog) if "waiting" in line] == [
        f"dev0: waiting for a front-end to listen on {rig.path}: No such file or directory"
    ]
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.bind(rig.path)
        qemu.listen()
        for n in (1, 2):
            rig.settle_until(lambda n=n: rig.device.sessions == n)
            sock, _ = qemu.accept()
            assert len(rig.ask(sock, GET_FEATURES)) == 20
            sock.close()
    rig.settle_until(lambda: lines(caplog)[-1].endswith("Connection refused"))
    os.unlink(rig.path)


def test_a_stale_socket_is_replaced(rig):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(rig.path)
        dead.listen()
    assert check_free(rig.path)
    rig.listen()
    assert len(rig.ask(rig.connect(), GET_FEATURES)) == 20


def test_a_live_socket_is_refused_with_its_owners_pid(tmp_path):
    path = str(tmp_path / "s")
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
            "s.listen(); print(flush=True); sys.stdin.read()",
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(HostError, match=f"in use by process {owner.pid}"):
            ListeningSocket(path, 0o600)
        owner.kill()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(HostError, match="is no socket"):
        ListeningSocket(str(path), 0o600)
    assert path.read_text() == "precious"


def test_a_socket_that_cannot_listen_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    class Deaf(socket.socket):
        def listen(self, _backlog: int = 0) -> None:
            raise OSError(105, "No buffer space available")

    monkeypatch.setattr(listening_socket.socket, "socket", Deaf)
    with pytest.raises(HostError, match="listening: No buffer space") as raised:
        ListeningSocket(str(tmp_path / "s"), 0o600)
    assert raised.value.errno == 105
    assert list(tmp_path.iterdir()) == []


def test_the_socket_file_has_the_mode_that_was_asked_for(tmp_path):
    for mode in (0o600, 0o660, 0o666):
        listening = ListeningSocket(str(tmp_path / "s"), mode, os.getgid())
        assert os.stat(listening.path).st_mode & 0o777 == mode
        listening.close()
        assert not os.path.exists(listening.path)


def test_a_socket_file_that_somebody_else_has_made_meanwhile_is_not_removed(tmp_path):
    path = tmp_path / "s"
    listening = ListeningSocket(str(path), 0o600)
    path.unlink()
    path.write_text("theirs")
    listening.close()
    assert path.read_text() == "theirs"


def test_paths_that_no_socket_can_have_are_named(tmp_path):
    with pytest.raises(UsageError, match="allows 107"):
        ListeningSocket(f"{tmp_path}/{'x' * 108}", 0o600)
    with pytest.raises(HostError, match="No such file or directory"):
        ListeningSocket(f"{tmp_path}/none/s", 0o600)


def test_closing_the_server_ends_session_and_device_and_removes_the_socket(rig):
    rig.listen()
    sock = rig.connect()
    rig.settle()
    rig.server.close()
    assert rig.is_closed(sock)
    assert rig.device.is_closed
    assert not rig.device.is_session_open
    assert not os.path.exists(rig.path)


def test_a_device_that_can_not_close_its_session_or_itself_does_not_stop_the_daemon(rig, caplog):
    rig.listen(is_one_off=True)
    rig.connect()
    rig.settle()

    def fail() -> None:
        raise ZeroDivisionError

    rig.device.close_session = fail
    rig.front_ends[0].close()
    rig.settle_until(lambda: bool(rig.finished))
    rig.server.close()
    assert rig.finished == [EXIT_BUG]
    assert [record.exc_info is not None for record in caplog.records if record.levelno > 20] == [
        True,
        True,
    ]


def test_a_peer_that_leaves_without_reading_its_reply_has_disconnected(rig, caplog):
    rig.listen()
    sock = rig.connect()
    rig.settle()
    sock.sendall(GET_FEATURES)
    sock.shutdown(socket.SHUT_RD)
    rig.settle_until(lambda: not rig.device.is_session_open)
    assert lines(caplog)[-1].endswith("disconnected: Broken pipe")


def test_a_peer_that_leaves_in_the_middle_of_a_message_is_said_to(rig, caplog):
    rig.listen()
    sock = rig.connect()
    with open("/dev/null") as null:
        send_fds(sock, SET_OWNER[:5], [null.fileno()])
    sock.close()
    rig.settle_until(lambda: rig.device.sessions > 0 and not rig.device.is_session_open)
    assert lines(caplog)[-1].endswith("disconnected in the middle of a message")


def test_a_second_signal_ends_a_daemon_that_hangs_in_its_clean_up(tmp_path):
    code = (
        "import sys, time\n"
        "from fake_device import FakeDevice\n"
        "from vhostnet.frontdoors.event_loop import Loop\n"
        "from vhostnet.frontdoors.vhost_user_daemon import DaemonOptions, DeviceOptions, serve\n"
        "device = FakeDevice()\n"
        f"device.close = lambda: (print('closing', flush=True), time.sleep({PATIENCE_S}))\n"
        "options = DaemonOptions((DeviceOptions('--device', 'null', socket_path=sys.argv[1]),))\n"
        "serve(Loop(), options, [device], lambda: print('ready', flush=True))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S / 2) == -signal.SIGTERM
    assert not (tmp_path / "s").exists()


def test_a_socket_whose_owner_does_not_accept_is_in_use(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as owner, socket.socket(socket.AF_UNIX) as waiting:
        owner.bind(path)
        owner.listen(0)
        waiting.connect(path)
        with pytest.raises(HostError, match="in use, its owner is busy"):
            check_free(path)


def test_a_full_descriptor_table_pauses_accepting_instead_of_spinning(rig, caplog, monkeypatch):
    rig.listen()
    listening = rig.server._door._listening.socket
    accepts = rig.server._door._acceptor

    class Full:
        fileno = staticmethod(listening.fileno)
        close = staticmethod(listening.close)

        @staticmethod
        def accept() -> None:
            raise OSError(24, "Too many open files")

    monkeypatch.setattr(acceptor, "PAUSE_S", 0.1)
    accepts._listening = Full()
    sock = rig.connect()
    rig.settle(5)
    told = [line for line in lines(caplog) if "Too many" in line]
    assert set(told) == {"dev0: can not accept a front-end: Too many open files"}
    assert len(told) < 5, "once a turn"
    accepts._listening = listening
    assert len(rig.ask(sock, GET_FEATURES)) == 20


def test_128_devices_share_one_loop(tmp_path):
    loop, rigs = Loop(), []
    for n in range(128):
        device = FakeDevice()
        server = DeviceServer(loop, device, f"dev{n}")
        server.open(ListeningDoor(server, ListeningSocket(str(tmp_path / str(n)), 0o600)))
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(tmp_path / str(n)))
        sock.sendall(SET_OWNER)
        rigs.append((device, server, sock))
    deadline = time.monotonic() + PATIENCE_S
    while not all(device.calls for device, _, _ in rigs) and time.monotonic() < deadline:
        loop.run_once(0.01)
    assert all(device.names() == ["set_owner"] for device, _, _ in rigs)
    for _, server, sock in rigs:
        server.close()
        sock.close()
    loop.close()


def test_a_busy_front_end_does_not_keep_the_loop_to_itself(rig, monkeypatch):
    monkeypatch.setattr(connection, "CHUNKS_A_TURN", 8)
    rig.listen()
    sock = rig.connect()
    rig.settle()
    sock.sendall(SET_OWNER * 100)
    rig.loop.run_once(0)
    assert 0 < len(rig.device.calls) <= 8


def test_a_timer_runs_once_in_order_and_not_if_cancelled():
    loop, ran = Loop(), []
    loop.call_later(0.02, lambda: ran.append("late"))
    loop.call_later(0, lambda: ran.append("first"))
    loop.call_later(0.01, lambda: ran.append("never")).cancel()
    loop.call_later(0, lambda: 1 // 0)
    loop.call_later(0, lambda: ran.append("second"))
    deadline = time.monotonic() + PATIENCE_S
    while len(ran) < 3 and time.monotonic() < deadline:
        loop.run_once(0.1)
    loop.close()
    assert ran == ["first", "second", "late"]


def test_a_watcher_that_raises_is_watched_no_more(caplog):
    loop = Loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        loop.watch(ours.fileno(), 1, lambda _ready: 1 // 0)
        loop.run_once(0)
        loop.run_once(0)
        loop.unwatch(ours.fileno())
    loop.close()
    assert len(caplog.records) == 1


def test_a_descriptor_that_was_replaced_within_a_turn_gets_no_stale_event():
    loop, seen = Loop(), []
    pairs = [socket.socketpair() for _ in range(2)]
    for ours, theirs in pairs:
        theirs.send(b"x")

        def replace_the_other(_ready: int, ours: socket.socket = ours) -> None:
            seen.append("event")
            other = next(o for o, _ in pairs if o is not ours)
            loop.unwatch(other.fileno())
            loop.watch(other.fileno(), 1, lambda _ready: seen.append("stale"))

        loop.watch(ours.fileno(), 1, replace_the_other)
    loop.run_once(0)
    loop.close()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()
    assert seen == ["event"]


def test_a_signal_is_delivered_to_the_loop_and_then_has_its_default_action_again():
    loop, got = Loop(), []
    previous = signal.getsignal(signal.SIGUSR1)
    try:
        loop.on_signals((signal.SIGUSR1,), lambda: (got.append(1), loop.stop()))
        loop.call_later(0.01, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        loop.run()
        assert got == [1]
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR1, previous)
        loop.close()


def test_log_lines_beyond_the_burst_are_counted(caplog):
    caplog.set_level(logging.INFO)
    later: list[Callable[[], None]] = []
    log = PeerLog(logging.getLogger("vhostnet"), "dev0", lambda _s, fn: later.append(fn))
    for n in range(48):
        log.info(f"line {n}")
    assert len(later) == 1
    later.pop()()
    assert lines(caplog)[-1] == "dev0: line 47 (37 more like this)"
    assert len(lines(caplog)) == 11
    log.info("again")
    assert lines(caplog)[-1] == "dev0: again"
