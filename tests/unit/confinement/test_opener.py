"""The opener and who asks it: nobody who does not answer has either of them for himself."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from serve_process import wait_until
from vhostnet.confinement import acts, opener
from vhostnet.confinement.policy import Policy
from vhostnet.device import owner_files
from vhostnet.errors import HostError
from vhostnet.frontdoors import foreign_file, foreign_process

PATIENCE_S = 60.0
MAPPED = ("open_mapped_file", (1, 0, 4096, 0, 0))
ACTS_OF = (owner_files, foreign_process)


class Stalled:
    """An opener whose act on mapped files waits for somebody, and who asks it.

    Attributes:
        begun: a permit for each act that waits.
        go_on: let them all end, each with a descriptor.
    """

    def __init__(self, policy: Policy) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.asked = acts.Asked(ours)
        self._theirs = theirs
        ours.settimeout(0.2)
        self.channel = ours
        self._thread = threading.Thread(target=opener.serve, args=(theirs, policy, lambda: policy))
        self._thread.start()

    def act(self, *_: object) -> tuple[None, list[int]]:
        self.begun.release()
        assert self.go_on.wait(PATIENCE_S)
        return None, [os.eventfd(0)]

    def close(self) -> None:
        self.go_on.set()
        self.asked.close()
        beside = [thread for thread in threading.enumerate() if thread.name == "aside"]
        for thread in (self._thread, *beside):
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        self._theirs.close()


@pytest.fixture
def stalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stalled]:
    made = Stalled(Policy(processes=lambda _tid: True))
    real = acts.acts()["open_mapped_file"]
    monkeypatch.setitem(acts._acts, "open_mapped_file", dataclasses.replace(real, run=made.act))
    yield made
    made.close()


def given_up(stalled: Stalled) -> None:
    with pytest.raises(HostError, match="does not answer") as told:
        stalled.asked.ask(*MAPPED)
    assert told.value.errno == errno.ETIMEDOUT


def test_an_act_that_waits_keeps_no_other_waiting_and_its_answer_is_dropped(stalled) -> None:
    given_up(stalled)
    assert stalled.begun.acquire(timeout=PATIENCE_S)
    stalled.channel.settimeout(PATIENCE_S)
    assert stalled.asked.ask("find_process", (1,)) == (1, [])
    before = len(os.listdir("/proc/self/fd"))
    stalled.go_on.set()
    # answers come in any order: when this one is here, the late one may be in front of it
    value, fds = stalled.asked.ask(*MAPPED)
    assert value is None
    assert len(fds) == 1
    os.close(fds[0])

    def are_closed() -> bool:  # here, and by the threads that sent them
        assert stalled.asked.ask("find_process", (1,)) == (1, [])
        return len(os.listdir("/proc/self/fd")) == before

    wait_until(are_closed, "descriptors of late answers to be closed", PATIENCE_S)


def test_acts_that_wait_are_not_without_number(stalled, monkeypatch) -> None:
    monkeypatch.setattr(opener, "MAX_ASIDE", 1)
    other = Stalled(Policy(processes=lambda _tid: True))
    try:
        stalled.channel.settimeout(0.2)
        with pytest.raises(HostError, match="does not answer"):
            other.asked.ask(*MAPPED)
        other.channel.settimeout(PATIENCE_S)
        with pytest.raises(HostError, match="too many requests") as told:
            other.asked.ask(*MAPPED)
        assert told.value.errno == errno.EBUSY
    finally:
        stalled.go_on.set()
        other.close()


def test_who_serves_no_processes_starts_no_thread(monkeypatch) -> None:
    made = Stalled(Policy())
    made.channel.settimeout(PATIENCE_S)

    def fail(*_: object) -> bool:
        raise AssertionError("a thread")

    monkeypatch.setattr(opener, "_began_aside", fail)
    try:
        with pytest.raises(HostError, match="not one that this daemon serves"):
            made.asked.ask(*MAPPED)
    finally:
        made.close()


def test_where_a_device_was_found_is_looked_at_first_and_not_everything(monkeypatch) -> None:
    zero = os.stat("/dev/zero").st_rdev
    number = os.major(zero), os.minor(zero)
    tid = threading.get_native_id()
    monkeypatch.setattr(foreign_file, "_found_at", {})
    lowest = os.open("/dev/null", os.O_RDONLY)
    device = os.open("/dev/zero", os.O_RDONLY)
    try:
        assert foreign_file.has_open(tid, number)
        monkeypatch.setattr(foreign_file, "MAX_LOOKED_AT", 0)
        assert foreign_file.has_open(tid, number)
        os.dup2(lowest, device)
        assert not foreign_file.has_open(tid, number)
        monkeypatch.setattr(foreign_file, "_found_at", {})
        os.close(device)
        device = os.open("/dev/zero", os.O_RDONLY)
        assert not foreign_file.has_open(tid, number)
    finally:
        os.close(lowest)
        os.close(device)
