"""A conversation that was recorded, said again: to our daemon, and to back-ends that differ."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_process import ServeProcess
from vhostnet.cli.main import main
from vhostnet.errors import EXIT_HOST, EXIT_OK, EXIT_PEER, EXIT_USAGE, PeerError
from vhostnet.protocol.vhost_user_codec import Codec, encode_message
from vhostnet.protocol.vhost_user_trace import (
    HEADING,
    Event,
    Exchange,
    read_exchange,
    read_trace,
    spell_exchange,
)
from vhostnet.uapi import vhost_user as vu
from vhostnet_frontend import DEFAULT_FEATURES, NetDriver, VhostUserTransport
from vhostnet_frontend.replay import Outcome, Replay, connections


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[ServeProcess, Path]]:
    trace = tmp_path / "trace"
    made = ServeProcess(tmp_path, "--backend", "null", "--trace", str(trace))
    try:
        yield made, trace
        made.check_and_stop()
    finally:
        made.kill()


def messages(trace: Path) -> list[list[Exchange]]:
    with trace.open() as file:
        return connections(read_trace(file), "dev0")


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_driver_said_is_said_again_and_answered_alike(
    daemon: tuple[ServeProcess, Path], packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server, trace = daemon
    features = DEFAULT_FEATURES | (1 << 34 if packed else 0)
    transport = VhostUserTransport.connect(server.socket)
    with NetDriver(transport, features=features) as driver:
        driver.send(bytes(64))
    server.wait_idle()
    recorded = trace.parent / "recorded"
    recorded.write_text(trace.read_text())

    assert main(["replay", str(recorded), "--socket-path", server.socket]) == EXIT_OK
    server.wait_idle()
    first, second = messages(trace)
    assert [part.number for part in second[:-1]] == [part.number for part in first]
    assert second[-1].number == vu.VHOST_USER_GET_FEATURES  # to see that it is alive
    for old, new in zip(first, second, strict=False):
        assert (new.flags, new.payload, len(new.fds)) == (old.flags, old.payload, len(old.fds))
        if old.number != vu.VHOST_USER_GET_VRING_BASE:  # nobody drove the rings this time
            assert new.answer == old.answer, old.name
    printed = capsys.readouterr().out.splitlines()
    assert "0 of them refusals" in printed[-1]
    assert "ring is broken" not in server.log()


class Pretended:
    """A back-end at the other end of a socket pair.

    Args:
        answers: request number to payload of its reply.
        refuses: request numbers that it acknowledges with 1.
        hangs_up_at: request number at which it closes.
    """

    def __init__(
        self, answers: dict[int, int], refuses: tuple[int, ...] = (), hangs_up_at: int = 0
    ) -> None:
        self.heard: list[tuple[int, int, bytes, int]] = []
        self.memory: list[bytes] = []
        self._answers, self._refuses, self._hangs_up_at = answers, refuses, hangs_up_at
        self._ours, self.theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        codec = Codec()
        with self._ours:
            while True:
                data, fds, _, _ = socket.recv_fds(self._ours, codec.wanted, 32)
                if not data:
                    return
                for request in codec.feed(data, fds):
                    if request.number == self._hangs_up_at:
                        return
                    self._hear(request.number, request.flags, request.payload, request.fds)

    def _hear(self, number: int, flags: int, payload: bytes, fds: list[int]) -> None:
        self.heard.append((number, flags, payload, len(fds)))
        for fd in fds:
            self.memory.append(os.pread(fd, 8, 0) if number == vu.VHOST_USER_SET_MEM_TABLE else b"")
            os.close(fd)
        if number in self._answers:
            body = vu.NUMBER.pack(vu.Number(self._answers[number]))
        elif flags & vu.VHOST_USER_NEED_REPLY_MASK:
            body = vu.NUMBER.pack(vu.Number(number in self._refuses))
        else:
            return
        self._ours.send(encode_message(number, 5, body))

    def run(self, *lines: str) -> list[Outcome]:
        """What becomes of these lines."""
        with contextlib.closing(Replay(self.theirs)) as replay:
            return list(replay.run([read_exchange(f"{line} <0.000001>") for line in lines]))


GET_FEATURES = "GET_FEATURES() = 0x140008001"
GET_PROTOCOL = "GET_PROTOCOL_FEATURES() = 0x9"
SET_PROTOCOL = "SET_PROTOCOL_FEATURES(0x9)"
FEATURES = vu.VHOST_USER_GET_FEATURES
PROTOCOL = vu.VHOST_USER_GET_PROTOCOL_FEATURES


def test_features_that_this_back_end_does_not_offer_are_not_acknowledged() -> None:
    other = Pretended({FEATURES: 0x100008000, PROTOCOL: 1})
    outcomes = other.run(
        GET_FEATURES, GET_PROTOCOL, SET_PROTOCOL, "SET_FEATURES(0x140000001, NEED_REPLY) = 0"
    )
    assert [outcome.is_other for outcome in outcomes] == [True, True, False, True]
    payloads = {number: payload for number, _, payload, _ in other.heard}
    assert payloads[vu.VHOST_USER_SET_FEATURES] == vu.NUMBER.pack(vu.Number(0x100000000))
    assert payloads[vu.VHOST_USER_SET_PROTOCOL_FEATURES] == vu.NUMBER.pack(vu.Number(1))
    flags = {number: flags for number, flags, _, _ in other.heard}
    assert flags[vu.VHOST_USER_SET_FEATURES] == 1, "asks for no ack: REPLY_ACK was not offered"


def test_messages_of_features_that_were_not_negotiated_are_left_out() -> None:
    other = Pretended({FEATURES: 1, PROTOCOL: 8})
    outcomes = other.run(GET_PROTOCOL, SET_PROTOCOL, "GET_QUEUE_NUM() = 2", "SET_OWNER()")
    assert [outcome.now is None for outcome in outcomes] == [False, False, True, False]
    assert outcomes[2].why == "MQ was not negotiated with this back-end"
    assert vu.VHOST_USER_GET_QUEUE_NUM not in [heard[0] for heard in other.heard]


def test_a_refusal_is_told() -> None:
    other = Pretended({FEATURES: 1, PROTOCOL: 9}, refuses=(vu.VHOST_USER_SET_VRING_NUM,))
    outcomes = other.run(
        GET_PROTOCOL,
        SET_PROTOCOL,
        "SET_VRING_NUM(index=0, num=256, NEED_REPLY) = 0",
        "SET_VRING_NUM(index=0, num=3, NEED_REPLY) = 1 (3 is no size)",
    )
    assert [outcome.is_refused for outcome in outcomes] == [False, False, True, False]


def test_a_back_end_that_hangs_up_is_named_with_the_message() -> None:
    other = Pretended({FEATURES: 1}, hangs_up_at=vu.VHOST_USER_SET_OWNER)
    with pytest.raises(PeerError, match=r"GET_FEATURES: the back-end hung up|SET_OWNER"):
        other.run(GET_FEATURES, "SET_OWNER()")


def test_memory_is_made_anew_with_empty_rings_at_their_base() -> None:
    region = (
        "SET_MEM_TABLE(nregions=1, [{guest_phys_addr=0x0, memory_size=0x1000,"
        " userspace_addr=0x7000, mmap_offset=0x0}], fds=[9])"
    )
    other = Pretended({FEATURES: 1 << 32})
    other.run(
        GET_FEATURES,
        "SET_FEATURES(0x100000000)",
        region,
        "SET_VRING_BASE(index=1, num=7)",
        "SET_VRING_ADDR(index=1, flags=0, desc_user_addr=0x7800, used_user_addr=0x7004,"
        " avail_user_addr=0x7000, log_guest_addr=0x0)",
        "SET_VRING_KICK(0x1, fds=[5])",
        region,
    )
    # the first table's memory may have its ring by now: nobody waited for it to be looked at
    assert other.memory[1:] == [b"", bytes.fromhex("0000 0700 0000 0700")]
    assert other.heard[-2][2] == other.heard[2][2]


def test_a_back_end_without_memory_slots_is_told_the_whole_table() -> None:
    def slot(verb: str, gpa: int, more: str = "") -> str:
        region = f"guest_phys_addr={gpa}, memory_size=4096, userspace_addr={gpa}, mmap_offset=0"
        return f"{verb}_MEM_REG(region={{{region}}}{more})"

    other = Pretended({FEATURES: 1, PROTOCOL: 8})
    outcomes = other.run(
        GET_PROTOCOL,
        SET_PROTOCOL,
        slot("ADD", 0, ", fds=[4], NEED_REPLY"),
        slot("ADD", 8192, ", fds=[4]"),
        slot("REM", 0),
        slot("REM", 8192),
    )
    tables = [payload for number, _, payload, _ in other.heard if number == 5]
    assert [int.from_bytes(table[:4], "little") for table in tables] == [1, 2, 1]
    assert tables[2][8:16] == (8192).to_bytes(8, "little")
    assert [fds for number, _, _, fds in other.heard if number == 5] == [1, 2, 1]
    assert outcomes[2].now is not None
    assert outcomes[2].now.answer == bytes(8)
    assert outcomes[5].now is None


def test_each_connection_is_said_by_itself() -> None:
    end = read_exchange("SET_OWNER() <0.000001>")
    said = [
        ("dev0", Event("connected: pid 1")),
        ("dev1", end),
        ("dev0", end),
        ("dev0", Event("disconnected")),
        ("dev0", Event("connected: pid 2")),
        ("dev0", end),
        ("dev0", end),
    ]
    assert [len(part) for part in connections(said, "dev0")] == [1, 2]
    assert connections([("dev1", end)], "dev1") == [[end]]


def test_mistakes_of_the_operator_have_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace"
    where = ["--socket-path", str(tmp_path / "nobody")]
    assert main(["replay", str(file), *where]) == EXIT_HOST
    file.write_text("something else\n")
    assert main(["replay", str(file), *where]) == EXIT_USAGE
    file.write_text(f"{HEADING}\n")
    assert main(["replay", str(file), *where]) == EXIT_USAGE
    line = spell_exchange(read_exchange("SET_OWNER() <0.000001>"))
    file.write_text(f"{HEADING}\nt dev0 {line}\n")
    assert main(["replay", str(file), *where, "--device", "dev1"]) == EXIT_USAGE
    assert main(["replay", str(file), *where]) == EXIT_HOST
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    for text, wanted in zip(
        lines,
        ["No such file", "line 1 is not", "nobody says", "'dev1' says nothing", "No such file"],
        strict=True,
    ):
        assert wanted in text
    assert EXIT_PEER not in (EXIT_HOST, EXIT_USAGE)
