"""Requests of /dev/cuse in, replies out; the test is the kernel, and a caller's memory."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostnet.errors import PeerError
from vhostnet.protocol.cuse_ioctl import IoctlArgument
from vhostnet.protocol.cuse_session import POLL_READABLE, CuseSession
from vhostnet.uapi import fuse, vhost
from vhostnet.uapi.wire import Layout

TID = 4711


@dataclass
class FakeFile:
    """Answers as it is told."""

    messages: list[bytes] = field(default_factory=list)
    has_iotlb: bool = True
    released: int = 0
    ioctl_is: Callable[[IoctlArgument, int], int] = lambda _memory, _argument: 0
    tids: list[int] = field(default_factory=list)

    def ioctl(self, tid: int, memory: IoctlArgument, number: int, argument: int) -> int:  # noqa: ARG002
        self.tids.append(tid)
        return self.ioctl_is(memory, argument)

    def read(self, size: int) -> bytes:
        if size < 72:
            return b""
        if not self.messages:
            raise PeerError("nothing", errno.EAGAIN)
        return self.messages.pop(0)

    def would_sleep_for_ever(self) -> bool:
        return not self.has_iotlb

    def write(self, data: bytes) -> int:
        if len(data) < 40:
            raise PeerError("short")
        return 72

    def readable(self) -> bool:
        return bool(self.messages)

    def release(self) -> None:
        self.released += 1


class Kernel:
    """The other end of /dev/cuse."""

    def __init__(self, initialise: bool = True) -> None:
        self.files: list[FakeFile] = []
        self.sent: list[bytes] = []
        self.session = CuseSession("vhost-net", self._open, self.sent.append)
        self.unique = 0
        if initialise:
            self.request(fuse.CUSE_INIT, fuse.CUSE_INIT_IN, fuse.CuseInitIn(7, 38, 0, 1))
            assert self.answer()[0] == 0

    def _open(self, fh: int, tid: int) -> FakeFile:
        assert fh > 0
        assert tid == TID
        self.files.append(FakeFile())
        return self.files[-1]

    def request(
        self, opcode: int, layout: Layout | None = None, body: object = None, data: bytes = b""
    ) -> int:
        self.unique += 2
        payload = (layout.pack(body) if layout is not None else b"") + data
        header = fuse.InHeader(40 + len(payload), opcode, self.unique, 0, 0, 0, TID, 0, 0)
        self.session.receive(fuse.IN_HEADER.pack(header) + payload)
        return self.unique

    def answer(self) -> tuple[int, int, bytes]:
        """The oldest message of ours: (error, unique, payload)."""
        reply = self.sent.pop(0)
        head = fuse.OUT_HEADER.unpack(reply)
        assert head.len == len(reply)
        return head.error, head.unique, reply[16:]

    def only_answer(self) -> tuple[int, bytes]:
        error, unique, payload = self.answer()
        assert unique == self.unique
        assert not self.sent
        return error, payload

    def open(self) -> tuple[int, FakeFile]:
        self.request(fuse.FUSE_OPEN, fuse.OPEN_IN, fuse.OpenIn(2, 0))
        error, payload = self.only_answer()
        assert error == 0
        out = fuse.OPEN_OUT.unpack(payload)
        assert out.open_flags == fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE
        return out.fh, self.files[-1]

    def ioctl(
        self, fh: int, number: int, argument: int, data: bytes = b"", room: int = 0
    ) -> tuple[int, bytes]:
        body = fuse.IoctlIn(fh, fuse.FUSE_IOCTL_UNRESTRICTED, number, argument, len(data), room)
        self.request(fuse.FUSE_IOCTL, fuse.IOCTL_IN, body, data)
        return self.only_answer()

    def call(
        self, fh: int, number: int, argument: int, memory: dict[int, bytes]
    ) -> tuple[int, int]:
        """ioctl(2) as the kernel does it; returns (result or -errno, rounds)."""
        data, room, into_caller = b"", 0, []
        for rounds in range(1, 6):
            error, payload = self.ioctl(fh, number, argument, data, room)
            if error:
                return error, rounds
            out = fuse.IOCTL_OUT.unpack(payload)
            rest = payload[16:]
            if not out.flags & fuse.FUSE_IOCTL_RETRY:
                assert len(rest) <= room
                self._store(memory, into_caller, rest)
                return out.result, rounds
            pieces = [fuse.IOCTL_IOVEC.unpack(rest, 16 * k) for k in range(len(rest) // 16)]
            assert len(pieces) == out.in_iovs + out.out_iovs
            from_caller = pieces[: out.in_iovs]
            into_caller = [(p.base, p.len) for p in pieces[out.in_iovs :]]
            data = b""
            for p in from_caller:
                if len(memory.get(p.base, b"")) < p.len:
                    return -errno.EFAULT, rounds
                data += memory[p.base][: p.len]
            room = sum(size for _, size in into_caller)
        raise AssertionError("it never ends")

    def _store(self, memory: dict[int, bytes], where: list[tuple[int, int]], data: bytes) -> None:
        for base, size in where:
            memory[base] = data[:size] + memory.get(base, b"")[len(data[:size]) :]
            data = data[size:]


def test_nothing_is_answered_before_the_device_exists() -> None:
    kernel = Kernel(initialise=False)
    kernel.request(fuse.FUSE_OPEN, fuse.OPEN_IN, fuse.OpenIn(2, 0))
    assert kernel.only_answer() == (-errno.ENOSYS, b"")
    assert not kernel.session.is_registered


def test_another_protocol_ends_the_session() -> None:
    kernel = Kernel(initialise=False)
    with pytest.raises(PeerError, match=r"FUSE 8\.1"):
        kernel.request(fuse.CUSE_INIT, fuse.CUSE_INIT_IN, fuse.CuseInitIn(8, 1, 0, 1))
    assert kernel.only_answer() == (-errno.EPROTO, b"")


def test_each_open_is_a_device_of_its_own_until_its_release() -> None:
    kernel = Kernel()
    (first, file_1), (second, file_2) = kernel.open(), kernel.open()
    assert first != second
    assert kernel.session.n_open == 2
    kernel.request(fuse.FUSE_RELEASE, fuse.RELEASE_IN, fuse.ReleaseIn(first, 0, 0, 0))
    assert kernel.only_answer() == (0, b"")
    assert (file_1.released, file_2.released) == (1, 0)
    assert kernel.ioctl(first, vhost.VHOST_SET_OWNER, 0) == (-errno.EBADF, b"")
    kernel.session.close()
    assert (file_1.released, file_2.released) == (1, 1)


def test_an_open_that_is_refused_leaves_no_file() -> None:
    sent: list[bytes] = []

    def refuse(_fh: int, _tid: int) -> FakeFile:
        raise PeerError("too many", errno.ENFILE)

    kernel = Kernel()
    session = CuseSession("vhost-net", refuse, sent.append)
    kernel.session = session
    kernel.sent = sent
    kernel.request(fuse.CUSE_INIT, fuse.CUSE_INIT_IN, fuse.CuseInitIn(7, 38, 0, 1))
    kernel.answer()
    kernel.request(fuse.FUSE_OPEN, fuse.OPEN_IN, fuse.OpenIn(2, 0))
    assert kernel.only_answer() == (-errno.ENFILE, b"")
    assert session.n_open == 0


# --- ioctl ------------------------------------------------------------------------------------


def test_a_call_without_argument_takes_one_round() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    assert kernel.call(fh, vhost.VHOST_SET_OWNER, 0, {}) == (0, 1)
    assert file.tids == [TID]


def test_an_argument_that_is_read_takes_two_rounds() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    seen = []

    def verb(memory: IoctlArgument, argument: int) -> int:
        index = memory.read(argument, 4)
        seen.append((index, memory.read(argument, 8)))
        return 3

    file.ioctl_is = verb
    state = bytes(range(8))
    assert kernel.call(fh, vhost.VHOST_SET_VRING_NUM, 0x1000, {0x1000: state}) == (3, 2)
    assert seen == [(state[:4], state)]


def test_an_unknown_number_is_asked_for_no_more_than_is_read() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    file.ioctl_is = lambda memory, argument: memory.read(argument, 4)[0]
    assert kernel.call(fh, 0xC123AFFF, 0x1000, {0x1000: b"\7\0\0\0"}) == (7, 2)
    assert kernel.call(fh, 0xC123AFFF, 0x1000, {}) == (-errno.EFAULT, 1)


def test_a_memory_table_takes_three_rounds_whatever_its_number_says() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    table = (3).to_bytes(8, "little") + bytes(range(96))

    def verb(memory: IoctlArgument, argument: int) -> int:
        n = memory.read(argument, 8)[0]
        assert memory.read(argument + 8, 32 * n) == table[8:]
        return 0

    file.ioctl_is = verb
    assert kernel.call(fh, vhost.VHOST_SET_MEM_TABLE, 0x1000, {0x1000: table}) == (0, 3)
    assert kernel.call(fh, vhost.VHOST_SET_MEM_TABLE, 0x1000, {0x1000: table[:50]})[0] < 0


@pytest.mark.parametrize(
    ("number", "rounds"),
    [(vhost.VHOST_GET_VRING_BASE, 2), (vhost.VHOST_GET_VRING_BUSYLOOP_TIMEOUT, 2)],
)
def test_what_is_read_and_written_back_takes_two_rounds(number: int, rounds: int) -> None:
    kernel = Kernel()
    fh, file = kernel.open()

    def verb(memory: IoctlArgument, argument: int) -> int:
        memory.write(argument, memory.read(argument, 8)[::-1])
        return 0

    file.ioctl_is = verb
    memory = {0x1000: b"abcdefgh"}
    assert kernel.call(fh, number, 0x1000, memory) == (0, rounds)
    assert memory == {0x1000: b"hgfedcba"}


def test_a_features_array_is_written_behind_its_head() -> None:
    kernel = Kernel()
    fh, file = kernel.open()

    def verb(memory: IoctlArgument, argument: int) -> int:
        count = int.from_bytes(memory.read(argument, 8), "little")
        memory.write(argument + 8, b"x" * 8 * count)
        return 0

    file.ioctl_is = verb
    memory = {0x1000: (2).to_bytes(8, "little")}
    assert kernel.call(fh, vhost.VHOST_GET_FEATURES_ARRAY, 0x1000, memory) == (0, 3)
    assert memory[0x1008] == b"x" * 16
    memory = {0x1000: bytes(8)}
    assert kernel.call(fh, vhost.VHOST_GET_FEATURES_ARRAY, 0x1000, memory) == (0, 2)


def test_memory_that_changes_between_two_rounds_is_asked_for_anew() -> None:
    kernel = Kernel()
    fh, file = kernel.open()

    def verb(memory: IoctlArgument, argument: int) -> int:
        count = memory.read(argument, 8)[0]
        memory.write(argument + 8, b"x" * 8 * count)
        return 0

    file.ioctl_is = verb
    number = vhost.VHOST_GET_FEATURES_ARRAY
    error, payload = kernel.ioctl(fh, number, 0x1000, (5).to_bytes(8, "little"), 16)
    assert error == 0
    assert fuse.IOCTL_OUT.unpack(payload).flags == fuse.FUSE_IOCTL_RETRY
    assert fuse.IOCTL_IOVEC.unpack(payload, 16 + 16) == fuse.IoctlIovec(0x1008, 40)


@pytest.mark.parametrize("argument", [0, 1 << 47, (1 << 64) - 4, (1 << 64) - 1])
def test_an_address_that_nobody_has_is_a_fault(argument: int) -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    file.ioctl_is = lambda memory, at: len(memory.read(at, 8))
    assert kernel.call(fh, vhost.VHOST_SET_FEATURES, argument, {})[0] == -errno.EFAULT
    file.ioctl_is = lambda memory, at: memory.write(at + 8, bytes(8)) or 0  # type: ignore[func-returns-value]
    result, _ = kernel.call(fh, vhost.VHOST_GET_FEATURES, argument, {})
    assert result == (-errno.EFAULT if argument > 1 << 63 else 0)


def test_an_argument_larger_than_the_kernel_takes_is_refused() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    file.ioctl_is = lambda memory, at: len(memory.read(at, 1 << 20))
    assert kernel.ioctl(fh, vhost.VHOST_SET_FEATURES, 0x1000) == (-errno.ENOMEM, b"")


def test_a_refusal_keeps_its_errno() -> None:
    kernel = Kernel()
    fh, file = kernel.open()

    def verb(_memory: IoctlArgument, _argument: int) -> int:
        raise PeerError("no", errno.ENOBUFS)

    file.ioctl_is = verb
    assert kernel.ioctl(fh, vhost.VHOST_SET_VRING_NUM, 1) == (-errno.ENOBUFS, b"")


# --- read, write, poll --------------------------------------------------------------------------


def read(kernel: Kernel, fh: int, *, size: int = 72, nonblock: bool = False) -> int:
    flags = fuse.O_NONBLOCK if nonblock else 0
    body = fuse.ReadIn(fh, 0, size, 0, 0, flags)
    return kernel.request(fuse.FUSE_READ, fuse.READ_IN, body)


def test_a_read_that_must_not_wait_is_told_so() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    read(kernel, fh, nonblock=True)
    assert kernel.only_answer() == (-errno.EAGAIN, b"")
    file.has_iotlb = False
    read(kernel, fh, nonblock=True)
    assert kernel.only_answer() == (-errno.EAGAIN, b"")


def test_a_read_with_little_room_returns_nothing_at_once() -> None:
    kernel = Kernel()
    fh, _ = kernel.open()
    read(kernel, fh, size=71)
    assert kernel.only_answer() == (0, b"")


def test_reads_wait_in_order_for_what_comes() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    uniques = [read(kernel, fh) for _ in range(3)]
    assert not kernel.sent
    file.messages += [b"a" * 72, b"b" * 72]
    kernel.session.wake(fh)
    assert kernel.answer() == (0, uniques[0], b"a" * 72)
    assert kernel.answer() == (0, uniques[1], b"b" * 72)
    assert not kernel.sent
    kernel.session.wake(99)  # closed long ago
    assert not kernel.sent


def test_a_read_that_would_sleep_for_ever_is_refused() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    file.has_iotlb = False
    read(kernel, fh)
    assert kernel.only_answer() == (-errno.EBADFD, b"")


def test_a_sleeping_read_is_refused_when_its_iotlb_goes() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    unique = read(kernel, fh)

    def verb(_memory: IoctlArgument, _argument: int) -> int:
        file.has_iotlb = False
        return 0

    file.ioctl_is = verb
    kernel.request(
        fuse.FUSE_IOCTL, fuse.IOCTL_IN, fuse.IoctlIn(fh, 2, vhost.VHOST_RESET_OWNER, 0, 0, 0)
    )
    assert kernel.answer() == (-errno.EBADFD, unique, b"")
    assert kernel.answer()[:2] == (0, kernel.unique)


def test_a_signal_ends_the_read_that_it_is_for_and_no_other() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    first, second = read(kernel, fh), read(kernel, fh)
    kernel.request(fuse.FUSE_INTERRUPT, fuse.INTERRUPT_IN, fuse.InterruptIn(first))
    assert kernel.answer() == (-errno.EINTR, first, b"")
    kernel.request(fuse.FUSE_INTERRUPT, fuse.INTERRUPT_IN, fuse.InterruptIn(first))
    kernel.request(fuse.FUSE_INTERRUPT, fuse.INTERRUPT_IN, fuse.InterruptIn(12345))
    assert not kernel.sent
    file.messages.append(b"m" * 72)
    kernel.session.wake(fh)
    assert kernel.answer() == (0, second, b"m" * 72)


def test_a_write_returns_no_more_than_was_written() -> None:
    kernel = Kernel()
    fh, _ = kernel.open()
    for size, taken in ((40, 40), (72, 72), (100, 72)):
        body = fuse.WriteIn(fh, 0, size, 0, 0, 0)
        kernel.request(fuse.FUSE_WRITE, fuse.WRITE_IN, body, bytes(size))
        assert kernel.only_answer() == (0, fuse.WRITE_OUT.pack(fuse.WriteOut(taken)))
    kernel.request(fuse.FUSE_WRITE, fuse.WRITE_IN, fuse.WriteIn(fh, 0, 8, 0, 0, 0), bytes(8))
    assert kernel.only_answer() == (-errno.EINVAL, b"")


def poll(kernel: Kernel, fh: int, *, waits: bool) -> int:
    flags = fuse.FUSE_POLL_SCHEDULE_NOTIFY if waits else 0
    kernel.request(fuse.FUSE_POLL, fuse.POLL_IN, fuse.PollIn(fh, 0xABCD, flags, 1))
    error, payload = kernel.only_answer()
    assert error == 0
    return fuse.POLL_OUT.unpack(payload).revents


def test_who_polls_is_woken_each_time() -> None:
    kernel = Kernel()
    fh, file = kernel.open()
    assert poll(kernel, fh, waits=False) == 0
    file.messages.append(b"m" * 72)
    kernel.session.wake(fh)
    assert not kernel.sent
    assert poll(kernel, fh, waits=True) == POLL_READABLE == 0x41
    for _ in range(2):
        kernel.session.wake(fh)
        wakeup = (0xABCD).to_bytes(8, "little")
        assert kernel.answer() == (fuse.FUSE_NOTIFY_POLL, 0, wakeup)
    file.messages.clear()
    kernel.session.wake(fh)
    assert not kernel.sent


def test_what_is_no_call_of_a_vhost_device_is_not_there() -> None:
    kernel = Kernel()
    for opcode in (fuse.FUSE_FLUSH, fuse.FUSE_FSYNC, 1, 77):
        kernel.request(opcode, data=bytes(64))
        assert kernel.only_answer() == (-errno.ENOSYS, b"")


def test_the_end_of_the_connection_releases_all() -> None:
    kernel = Kernel()
    kernel.open()
    kernel.request(fuse.FUSE_DESTROY)
    assert kernel.only_answer() == (0, b"")
    assert kernel.files[0].released == 1


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from([*fuse.OPCODE_NAMES, 1, 77]), st.binary(max_size=120)),
        max_size=12,
    )
)
def test_any_requests_get_at_most_one_answer_each(requests: list[tuple[int, bytes]]) -> None:
    kernel = Kernel()
    kernel.open()
    kernel.files[0].ioctl_is = lambda memory, argument: len(memory.read(argument, 8))
    answered: set[int] = set()
    for opcode, payload in requests:
        try:
            kernel.request(opcode, data=payload)
        except PeerError:
            continue
        while kernel.sent:
            _, unique, _ = kernel.answer()
            assert unique not in answered
            answered.add(unique)
    assert answered <= set(range(2, kernel.unique + 2, 2)) | {0}
