"""Files of others: which are looked at, which are closed by somebody who has time."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vhostnet.errors import PeerError
from vhostnet.frontdoors import foreign_file
from vhostnet.frontdoors.foreign_file import harmless


def same_file(one: int, other: int) -> bool:
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino, a.st_rdev) == (b.st_dev, b.st_ino, b.st_rdev)


def a_tap() -> int:
    try:
        return os.open("/dev/net/tun", os.O_RDWR)
    except OSError as e:
        pytest.skip(str(e))


def a_packet_socket() -> int:
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).detach()
    except PermissionError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("make", [lambda: os.eventfd(0), a_tap, a_packet_socket])
def test_what_is_of_use_is_let_through(make: Callable[[], int]) -> None:
    fd = make()
    assert harmless(fd) == fd
    os.close(fd)


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.open(__file__, os.O_RDONLY),
        lambda: os.open("/dev/zero", os.O_RDONLY),
        lambda: os.open(Path(__file__).parent, os.O_RDONLY),
        lambda: os.open(__file__, os.O_PATH),
        lambda: socket.socket().detach(),
        lambda: socket.socket(socket.AF_UNIX).detach(),
        lambda: os.pipe()[0],
        lambda: os.memfd_create("x"),
        lambda: os.pidfd_open(os.getpid()),
    ],
)
def test_for_all_else_something_stands_in(make: Callable[[], int]) -> None:
    fd = make()
    stand_in = harmless(fd)
    assert stand_in != fd
    null = os.open(os.devnull, os.O_RDONLY)
    assert same_file(stand_in, null)
    assert fcntl.fcntl(stand_in, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    for opened in (stand_in, null):
        os.close(opened)


def lingering() -> tuple[int, list[socket.socket]]:
    """A socket whose close takes a minute: its peer does not read what is still to be sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    client.setblocking(False)
    try:
        while True:
            client.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    return client.detach(), [listener, peer]


def closers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "closing"]


def test_a_close_that_waits_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_file, "_closing", threading.BoundedSemaphore(1))
    fd, others = lingering()
    before = set(closers())
    stand_in = harmless(fd)
    waiting = set(closers()) - before
    assert len(waiting) == 1, "the close is over: nothing was shown"
    with pytest.raises(PeerError, match="too many files"):
        harmless(os.open(__file__, os.O_RDONLY))
    eventfd = os.eventfd(0)
    assert harmless(eventfd) == eventfd
    for end in others:  # what was not read makes it a reset
        end.close()
    for thread in waiting:
        thread.join(30)
        assert not thread.is_alive()
    os.close(harmless(os.open(__file__, os.O_RDONLY)))
    for opened in (stand_in, eventfd):
        os.close(opened)


def test_what_is_no_socket_has_no_address_family() -> None:
    ends = os.pipe()
    try:
        assert foreign_file.domain_of(ends[0]) == -1
    finally:
        for fd in ends:
            os.close(fd)
