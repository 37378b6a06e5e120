"""--trace: what is written down of a conversation, whichever door it comes through."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_device import FEATURES, FakeDevice
from oracle.our_device import OurMemory
from unit.frontdoors.test_vhost_ioctl import AT, Caller
from vhostnet.device.kernel_verbs import KernelVerbs
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.trace_file import TraceFile
from vhostnet.frontdoors.traced_ioctl import TracedFile
from vhostnet.frontdoors.traced_session import TracedSession
from vhostnet.protocol.vhost_user_codec import Request
from vhostnet.protocol.vhost_user_trace import read_trace
from vhostnet.uapi import vhost
from vhostnet.uapi import vhost_user as vu


def said(path: Path) -> list[str]:
    """The lines without the first, without times, and what they take."""
    lines = path.read_text().splitlines()[1:]
    return [re.sub(r" <\d\.\d{6}>$", "", line.split(" ", 1)[1]) for line in lines]


# --- vhost-user ---------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> TraceFile:
    return TraceFile(str(tmp_path / "trace"))


def test_a_session_is_written_down_as_it_is_said(trace: TraceFile, tmp_path: Path) -> None:
    device = FakeDevice()
    reports: list[str] = []
    session = TracedSession(device, reports.append, trace, "dev0")
    session.handle(Request(vu.VHOST_USER_GET_FEATURES, 1))
    protocol = vu.NUMBER.pack(vu.Number(1 << vu.VHOST_USER_PROTOCOL_F_REPLY_ACK))
    session.handle(Request(vu.VHOST_USER_SET_PROTOCOL_FEATURES, 9, protocol))
    ours, theirs = os.pipe()
    try:
        kick = Request(vu.VHOST_USER_SET_VRING_KICK, 1, vu.NUMBER.pack(vu.Number(3)), [ours])
        session.handle(kick)
        pipe = os.readlink(f"/proc/self/fd/{theirs}")
    finally:
        os.close(theirs)
    session.handle(Request(vu.VHOST_USER_SET_FEATURES, 9, vu.NUMBER.pack(vu.Number(1 << 63))))
    with pytest.raises(PeerError):
        session.handle(Request(vu.VHOST_USER_SET_VRING_NUM, 1, b"\1"))
    lines = said(tmp_path / "trace")
    assert lines[:2] == [
        f"dev0 GET_FEATURES() = {FEATURES:#x}<MRG_RXBUF|PROTOCOL_FEATURES|VERSION_1>",
        "dev0 SET_PROTOCOL_FEATURES(0x8<REPLY_ACK>, NEED_REPLY) = 0",
    ]
    assert lines[2:] == [
        f"dev0 SET_VRING_KICK(0x3<3>, fds=[{ours}<{pipe}>])",
        "dev0 SET_FEATURES(0x8000000000000000<bit63>, NEED_REPLY) = 1 "
        "(features 0x8000000000000000 have bits never offered: 0x8000000000000000)",
        "dev0 SET_VRING_NUM(payload=01) = ? (payload of 1 bytes, must be 8)",
    ]
    assert reports == [
        "SET_FEATURES: features 0x8000000000000000 have bits never offered: 0x8000000000000000"
    ]
    with (tmp_path / "trace").open() as file:
        assert len(list(read_trace(file))) == 5
    device.close()


def test_a_bug_is_written_down_too(trace: TraceFile, tmp_path: Path) -> None:
    device = FakeDevice()
    device.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        TracedSession(device, print, trace, "dev0").handle(Request(vu.VHOST_USER_SET_OWNER, 1))
    assert said(tmp_path / "trace") == ["dev0 SET_OWNER() = ?"]


def test_a_full_disk_ends_the_trace_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trace = TraceFile("/dev/full")
    session = TracedSession(FakeDevice(), print, trace, "dev0")
    assert session.handle(Request(vu.VHOST_USER_GET_FEATURES, 1))
    assert [record.getMessage() for record in caplog.records] == [
        "--trace: /dev/full: No space left on device; the trace ends here"
    ]


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"--trace: .*/no/where: No such file"):
        TraceFile(str(tmp_path / "no" / "where"))


# --- ioctls -------------------------------------------------------------------------------------


class Opened:
    def __init__(self, path: Path) -> None:
        self.trace = TraceFile(str(path), of_ioctls=True)
        owner = OurMemory()
        owner.log = lambda _address: (0, 0)  # type: ignore[method-assign]
        verbs = KernelVerbs(VhostNet("test"), lambda _pid: owner)
        self.file = TracedFile(verbs, self.trace, "file 1")
        self.caller = Caller()

    def call(self, number: int, form: str = "", *words: int) -> None:
        with contextlib.suppress(PeerError):
            self.file.ioctl(self.caller, number, self.caller.put(form, *words))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path / "trace")
    yield made
    made.file.release()


def test_calls_are_written_down_with_what_was_read_and_written(
    opened: Opened, tmp_path: Path
) -> None:
    opened.call(vhost.VHOST_SET_OWNER)
    opened.call(vhost.VHOST_SET_FEATURES, "Q", 1 << 15 | 1 << 27)
    opened.call(vhost.VHOST_GET_BACKEND_FEATURES)
    opened.call(vhost.VHOST_SET_VRING_NUM, "II", 0, 256)
    opened.call(vhost.VHOST_SET_VRING_BASE, "II", 1, 7)
    opened.call(vhost.VHOST_GET_VRING_BASE, "II", 1, 99)
    opened.call(vhost.VHOST_SET_VRING_NUM, "II", 0, 3)
    opened.call(vhost.VHOST_SET_VRING_NUM, "II", 2, 4)
    event = os.eventfd(0)
    opened.call(vhost.VHOST_SET_VRING_CALL, "Ii", 0, event)
    os.close(event)
    opened.call(vhost.VHOST_SET_VRING_KICK, "Ii", 0, -1)
    opened.call(vhost.VHOST_SET_MEM_TABLE, "II4Q", 1, 1, 0, 1 << 20, 0x10000, 0)
    opened.call(0x1234, "II", 0, 0)
    lines = [line.removeprefix("file1 ") for line in said(tmp_path / "trace")]
    assert lines == [
        "open()",
        "SET_OWNER() = 0",
        "SET_FEATURES(0x8008000<MRG_RXBUF|VIRTIO_NET_HDR>) = 0",
        "GET_BACKEND_FEATURES() = 0x2<IOTLB_MSG_V2>",
        "SET_VRING_NUM(index=0, num=256) = 0",
        "SET_VRING_BASE(index=1, num=7) = 0",
        "GET_VRING_BASE(index=1, num=99) = index=1, num=7",
        "SET_VRING_NUM(index=0, num=3) = -1 EINVAL "
        "(ring 0: size 3 is not a power of two up to 32768)",
        "SET_VRING_NUM(payload=02000000) = -1 ENOBUFS (there is no ring 2)",
        f"SET_VRING_CALL(index=0, fd={event}<anon_inode:[eventfd]>) = 0",
        "SET_VRING_KICK(index=0, fd=-1) = 0",
        "SET_MEM_TABLE(nregions=1, padding=1) = -1 ENOTSUP (test: padding 0x1)",
        "ioctl_0x1234(more=00000000) = -1 ENOTTY (ioctl 0x1234 is not known)",
    ]


def test_the_end_of_a_file_is_written_down(opened: Opened, tmp_path: Path) -> None:
    opened.file.owner_is_gone()
    opened.file.release()
    assert said(tmp_path / "trace")[-2:] == [
        "file1 +++ the owner's process has ended +++",
        "file1 close()",
    ]


@pytest.mark.parametrize("number", vhost.IOCTL_FORMS, ids=vhost.IOCTL_NAMES.__getitem__)
def test_each_ioctl_reads_and_writes_what_is_declared(number: int, tmp_path: Path) -> None:
    """The forms, from which a trace is made, are those of the code that answers."""

    class Watching(Caller):
        def __init__(self) -> None:
            super().__init__()
            self.ends: list[int] = []

        def read(self, address: int, size: int) -> bytes:
            self.ends.append(address + size - AT)
            return super().read(address, size)

        def write(self, address: int, data: bytes) -> None:
            self.ends.append(address + len(data) - AT)
            super().write(address, data)

    opened = Opened(tmp_path / "trace")
    if number not in (vhost.VHOST_SET_OWNER, vhost.VHOST_SET_FORK_FROM_OWNER):
        opened.call(vhost.VHOST_SET_OWNER)
    caller = Watching()
    form = vhost.IOCTL_FORMS[number]
    items = 0 if form.items is None else form.items.size
    caller.put("I", 1 if items else 0)  # a count of one, or ring 0
    with contextlib.suppress(PeerError):
        opened.file.ioctl(caller, number, AT)
    opened.file.release()
    assert max(caller.ends, default=0) == form.head.size + items
