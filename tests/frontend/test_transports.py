"""Transports: every verb as bytes, errors as VerbError, descriptors given back."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beds import PretendedBackend

from vhostnet.errors import PeerError
from vhostnet.protocol.vhost_user_codec import encode_message
from vhostnet.uapi import vhost
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.vhost import IotlbMsg, VringAddr
from vhostnet_frontend import (
    Conversions,
    DirtyLog,
    GuestMemory,
    InProcessTransport,
    IoctlTransport,
    NoSuchVerb,
    RegionSpec,
    Transport,
    VerbError,
    VhostUserTransport,
)
from vhostnet_frontend.vhost_user_transport import PROTOCOL_FEATURES

ADDR = VringAddr(1, 0, 0x1000, 0x3000, 0x2000, 0)
LOG = 1 << vu.VHOST_USER_PROTOCOL_F_LOG_SHMFD
ACK = 1 << vu.VHOST_USER_PROTOCOL_F_REPLY_ACK
MISS = IotlbMsg(0x1000, 0, 0, vhost.VHOST_ACCESS_RO, vhost.VHOST_IOTLB_MISS)


# --- the character device -----------------------------------------------------------------------


class Ioctls:
    """Takes the place of fcntl.ioctl: writes down, answers with bytes of the caller's choice."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bytes | int]] = []
        self.reply: bytes | None = None
        self.errno = 0

    def __call__(self, _fd: int, number: int, arg: bytearray | int, _mutate: bool = True) -> int:
        self.calls.append((number, arg if isinstance(arg, int) else bytes(arg)))
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        if self.reply is not None and isinstance(arg, bytearray):
            arg[:] = self.reply
        return 0


@pytest.fixture
def ioctls(monkeypatch: pytest.MonkeyPatch) -> Ioctls:
    made = Ioctls()
    monkeypatch.setattr(fcntl, "ioctl", made)
    return made


@pytest.fixture
def device() -> Iterator[IoctlTransport]:
    made = IoctlTransport(os.open("/dev/null", os.O_RDWR))
    yield made
    made.close()


def u32(*numbers: int) -> bytes:
    return b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in numbers)


def u64(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)


ADDR_BYTES = u32(1, 0) + u64(0x1000, 0x3000, 0x2000, 0)
SETTERS: list[tuple[str, Callable[[Transport], None], int, bytes | int]] = [
    ("features", lambda t: t.set_features(5), 0x4008AF00, u64(5)),
    ("backend features", lambda t: t.set_backend_features(2), 0x4008AF25, u64(2)),
    ("array", lambda t: t.set_features_array([1, 2]), 0x4008AF83, u64(2, 1, 2)),
    ("owner", lambda t: t.set_owner(), 0xAF01, 0),
    ("reset", lambda t: t.reset_owner(), 0xAF02, 0),
    ("num", lambda t: t.set_vring_num(1, 256), 0x4008AF10, u32(1, 256)),
    ("base", lambda t: t.set_vring_base(1, 7), 0x4008AF12, u32(1, 7)),
    (
        "addr",
        lambda t: t.set_vring_addr(ADDR),
        0x4028AF11,
        u32(1, 0) + u64(0x1000, 0x3000, 0x2000, 0),
    ),
    ("kick", lambda t: t.set_vring_kick(0, 9), 0x4008AF20, u32(0, 9)),
    ("call", lambda t: t.set_vring_call(0, 9), 0x4008AF21, u32(0, 9)),
    ("err", lambda t: t.set_vring_err(1, None), 0x4008AF22, u32(1, -1)),
    ("log fd", lambda t: t.set_log_fd(None), 0x4004AF07, u32(-1)),
    ("busyloop", lambda t: t.set_busyloop(1, 50), 0x4008AF23, u32(1, 50)),
    ("backend", lambda t: t.set_backend(1, 4), 0x4008AF30, u32(1, 4)),
    ("no backend", lambda t: t.set_backend(1, None), 0x4008AF30, u32(1, -1)),
]


@pytest.mark.parametrize(
    ("call", "number", "argument"), [s[1:] for s in SETTERS], ids=[s[0] for s in SETTERS]
)
def test_a_verb_is_this_ioctl(
    ioctls: Ioctls,
    device: IoctlTransport,
    call: Callable[[Transport], None],
    number: int,
    argument: bytes | int,
) -> None:
    call(device)
    assert ioctls.calls == [(number, argument)]


def test_what_an_ioctl_writes_back_is_returned(ioctls: Ioctls, device: IoctlTransport) -> None:
    ioctls.reply = u64(0x33D008000)
    assert device.get_features() == device.get_backend_features() == 0x33D008000
    ioctls.reply = u32(1, 77)
    assert device.get_vring_base(1) == device.get_busyloop(1) == 77
    ioctls.reply = u64(2, 5, 6)
    assert device.get_features_array(2) == [5, 6]
    assert [number for number, _ in ioctls.calls] == [
        0x8008AF00,
        0x8008AF26,
        0xC008AF12,
        0x4008AF24,
        0x8008AF83,
    ]
    assert ioctls.calls[-1][1] == u64(2, 0, 0)


def test_a_memory_table_is_a_head_and_its_regions(ioctls: Ioctls, device: IoctlTransport) -> None:
    specs = [RegionSpec(4096, 0x1000, 0x7000), RegionSpec(8192, 0x2000, 0x9000)]
    with GuestMemory(specs, private=True) as memory:
        device.set_mem_table(memory.regions)
    table = u32(2, 0) + u64(0x1000, 4096, 0x7000, 0) + u64(0x2000, 8192, 0x9000, 0)
    assert ioctls.calls == [(0x4008AF03, table)]


def test_a_log_base_is_the_bitmaps_address(ioctls: Ioctls, device: IoctlTransport) -> None:
    log = DirtyLog(1 << 20)
    device.set_log_base(log)
    assert ioctls.calls == [(0x4008AF04, u64(log.uva))]
    log.close()


def test_an_ioctl_that_fails_is_a_verb_error(ioctls: Ioctls, device: IoctlTransport) -> None:
    ioctls.errno = errno.EBUSY
    with pytest.raises(VerbError, match="EBUSY: SET_OWNER") as failed:
        device.set_owner()
    assert failed.value.errno == errno.EBUSY


def test_a_device_that_is_not_a_vhost_device_says_enotty(device: IoctlTransport) -> None:
    with pytest.raises(VerbError) as failed:
        device.get_features()
    assert failed.value.errno == errno.ENOTTY
    with pytest.raises(VerbError) as failed:
        device.ioctl(0xAF77, b"anything")
    assert failed.value.errno == errno.ENOTTY


def test_a_device_that_does_not_exist_says_enoent() -> None:
    with pytest.raises(VerbError) as failed:
        IoctlTransport("/dev/no-such-device")
    assert failed.value.errno == errno.ENOENT


def test_iotlb_messages_are_72_bytes_both_ways() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device = IoctlTransport(ours.detach())
    with theirs:
        device.send_iotlb(IotlbMsg(0x1000, 0x2000, 0x7000, 3, vhost.VHOST_IOTLB_UPDATE))
        assert theirs.recv(100) == (
            u32(2, 0) + u64(0x1000, 0x2000, 0x7000) + b"\x03\x02" + bytes(6) + bytes(32)
        )
        assert device.receive_iotlb() is None
        theirs.send(u32(1, 0) + u64(0x1000, 0, 0) + b"\x01\x01" + bytes(38))
        assert device.receive_iotlb(1.0) == MISS
    device.close()


def test_numbers_and_structs_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/usr/include/linux/vhost.h").exists():
        pytest.skip("needs gcc and the kernel's headers")
    wanted = {
        name: n
        for name, n in vars(vhost).items()
        if name.startswith("VHOST_") and isinstance(n, int)
    }
    sizes = {
        "struct vhost_vring_state": vhost.VRING_STATE.size,
        "struct vhost_vring_file": vhost.VRING_FILE.size,
        "struct vhost_vring_addr": vhost.VRING_ADDR.size,
        "struct vhost_memory": vhost.MEMORY_HEAD.size,
        "struct vhost_memory_region": vhost.MEMORY_REGION.size,
        "struct vhost_iotlb_msg": vhost.IOTLB_MSG.size,
        "struct vhost_msg": vhost.MSG.size,
        "struct vhost_msg_v2": vhost.MSG.size,
    }
    lines = ["#include <stdio.h>", "#include <linux/vhost.h>", "int main(void) {"]
    for name in wanted:
        lines += [
            f"#ifdef {name}",
            f'printf("{name} %llu\\n", (unsigned long long){name});',
            "#endif",
        ]
    lines += [f'printf("{name}: %zu\\n", sizeof({name}));' for name in sizes]
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    source.write_text("\n".join([*lines, "return 0; }"]))
    subprocess.run([compiler, "-w", str(source), "-o", str(program)], check=True)
    said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    checked = 0
    for line in said.splitlines():
        if ": " in line:
            name, size = line.split(": ")
            assert sizes[name] == int(size), name
        else:
            name, number = line.split()
            assert wanted[name] == int(number), name
        checked += 1
    assert checked > 30


# --- in this process ----------------------------------------------------------------------------


class FakeNet:
    """A device that refuses everything, in one of two ways."""

    def __init__(self) -> None:
        self.error: Exception = PeerError("no", errno.EBUSY)
        self.got: list[object] = []

    def set_features(self, features: int) -> None:
        self.got.append(features)
        raise self.error

    def set_vring_kick(self, index: int, fd: int) -> None:
        self.got.append((index, fd))
        if fd >= 0:
            os.close(fd)

    def set_mem_table(self, _table: object) -> None:
        raise self.error

    def reset_owner(self) -> None:
        pass


class Table:
    released = 0

    def release(self) -> None:
        self.released += 1


def test_a_devices_exception_becomes_its_errno() -> None:
    net, table = FakeNet(), Table()
    made = InProcessTransport(
        net,
        Conversions(lambda _regions: table, lambda addr: addr, lambda _i, _fd: None),
        features=7,
    )
    assert made.get_features() == 7
    with pytest.raises(VerbError) as failed:
        made.set_features(5)
    assert failed.value.errno == errno.EBUSY
    net.error = PeerError("no", errno.EFAULT)
    with pytest.raises(VerbError) as failed:
        made.set_mem_table([])
    assert failed.value.errno == errno.EFAULT
    assert table.released == 1
    net.error = KeyError("a bug")
    with pytest.raises(KeyError):
        made.set_features(5)
    with pytest.raises(NoSuchVerb):
        made.set_vring_num(0, 1)
    with pytest.raises(NoSuchVerb):
        made.set_vring_call(0, 1)


def test_the_device_owns_a_duplicate_of_each_descriptor() -> None:
    net = FakeNet()
    made = InProcessTransport(
        net, Conversions(lambda r: r, lambda addr: addr, lambda _i, _fd: None)
    )
    fd = os.eventfd(0)
    made.set_vring_kick(1, fd)
    made.set_vring_kick(1, None)
    assert net.got[0] != (1, fd)
    assert net.got[1] == (1, -1)
    os.close(fd)
    made.close()


# --- vhost-user ---------------------------------------------------------------------------------


@pytest.fixture
def pretended() -> Iterator[Callable[..., tuple[PretendedBackend, VhostUserTransport]]]:
    made: list[tuple[PretendedBackend, VhostUserTransport]] = []

    def make(**options: object) -> tuple[PretendedBackend, VhostUserTransport]:
        backend = PretendedBackend(**options)  # type: ignore[arg-type]
        front = VhostUserTransport(backend.front, timeout=5.0)
        front.negotiate()
        made.append((backend, front))
        return backend, front

    yield make
    for backend, front in made:
        front.close()
        backend.close()


def test_protocol_features_are_offered_and_wanted(pretended) -> None:
    backend, front = pretended(protocol_features=(1 << 64) - 1)
    assert front.protocol_features == PROTOCOL_FEATURES
    assert front.n_rings == 4
    assert backend.payloads("SET_PROTOCOL_FEATURES") == [u64(PROTOCOL_FEATURES)]


def test_a_back_end_without_bit_30_is_asked_for_nothing_more(pretended) -> None:
    backend, front = pretended(features=1 << 32)
    front.set_features(1 << 32)
    front.barrier()
    assert backend.names() == ["GET_FEATURES", "SET_FEATURES", "GET_FEATURES"]
    assert backend.payloads("SET_FEATURES") == [u64(1 << 32)]


def test_bit_30_is_the_transports_own_business(pretended) -> None:
    backend, front = pretended()
    assert front.get_features() == 1 << 32
    front.set_features(1 << 32)
    front.barrier()
    assert backend.payloads("SET_FEATURES") == [u64(1 << 32 | 1 << 30)]


def test_a_refusal_is_seen_with_reply_ack(pretended) -> None:
    backend, front = pretended(protocol_features=ACK, refuse=[vu.VHOST_USER_SET_VRING_NUM])
    with pytest.raises(VerbError, match="SET_VRING_NUM") as failed:
        front.set_vring_num(0, 3)
    assert failed.value.errno == errno.EREMOTEIO
    front.set_vring_base(0, 3)
    assert all(r.needs_reply for r in backend.requests[-2:])


def test_a_refusal_without_reply_ack_is_a_closed_connection(pretended) -> None:
    _, front = pretended(hang_up_on=[vu.VHOST_USER_SET_VRING_NUM])
    front.set_vring_num(0, 3)
    with pytest.raises(VerbError) as failed:
        front.barrier()
    assert failed.value.errno == errno.ECONNRESET


def test_a_ring_starts_enabled_and_with_its_kick_last(pretended) -> None:
    backend, front = pretended(protocol_features=ACK)
    kick, call = os.eventfd(0), os.eventfd(0)
    front.set_vring_num(1, 8)
    front.set_vring_kick(1, kick)
    front.set_vring_call(1, call)
    front.set_backend(1, 0)
    assert backend.names()[-4:] == [
        "SET_VRING_NUM",
        "SET_VRING_CALL",
        "SET_VRING_ENABLE",
        "SET_VRING_KICK",
    ]
    front.set_backend(1, 0)  # is running
    # a stop remembers the base; the next start tells all that the back-end forgot
    front.set_backend(1, None)
    assert front.get_vring_base(1) == 101
    before = len(backend.requests)
    front.set_backend(1, 0)
    assert [r.name for r in backend.requests[before:]] == [
        "SET_VRING_BASE",
        "SET_VRING_CALL",
        "SET_VRING_ENABLE",
        "SET_VRING_KICK",
    ]
    assert backend.payloads("SET_VRING_BASE") == [u32(1, 101)]
    front.set_vring_kick(1, None)  # at once: it runs
    assert backend.payloads("SET_VRING_KICK")[-1] == u64(0x101)
    os.close(kick)
    os.close(call)


def test_the_first_ring_that_starts_says_that_the_driver_is_there(pretended) -> None:
    """DPDK's back-end serves nobody without DRIVER_OK, once STATUS is negotiated."""
    status = 1 << vu.VHOST_USER_PROTOCOL_F_STATUS
    backend, front = pretended(protocol_features=status | ACK)
    front.set_backend(0, 0)
    front.set_backend(1, 0)
    assert backend.names()[-5:] == [
        "SET_STATUS",
        *["SET_VRING_ENABLE", "SET_VRING_KICK"] * 2,
    ]
    assert backend.payloads("SET_STATUS") == [u64(15)]


def test_memory_is_shared_by_descriptor(pretended) -> None:
    backend, front = pretended(protocol_features=ACK | 1 << 15)
    with GuestMemory([RegionSpec(4096, 0x1000, 0x7000)], canaries=True) as memory:
        (region,) = memory.regions
        front.set_mem_table(memory.regions)
        front.add_mem_reg(region)
        front.rem_mem_reg(region)
        wire = u64(0x1000, 4096, 0x7000, region.offset)
        assert backend.payloads("SET_MEM_TABLE") == [u32(1, 0) + wire]
        assert backend.payloads("ADD_MEM_REG") == backend.payloads("REM_MEM_REG") == [u64(0) + wire]
        assert len(backend.fds) == 2
        assert os.path.sameopenfile(region.fd, backend.fds[0])
    with GuestMemory(4096, private=True) as memory, pytest.raises(VerbError) as failed:
        front.set_mem_table(memory.regions)
    assert failed.value.errno == errno.EINVAL
    assert front.get_max_mem_slots() == 32


def test_a_dirty_log_is_shared_by_descriptor(pretended) -> None:
    backend, front = pretended(protocol_features=LOG)
    log = DirtyLog(1 << 20)
    front.set_log_base(log)
    front.set_log_fd(log.fd)
    front.barrier()
    assert backend.payloads("SET_LOG_BASE") == [u64(log.size, log.offset)]
    assert len(backend.fds) == 2
    log.close()


def test_iotlb_messages_go_one_way_and_come_the_other(pretended) -> None:
    backend, front = pretended(protocol_features=ACK | 1 << 5)
    update = IotlbMsg(0x1000, 0x2000, 0x7000, 3, vhost.VHOST_IOTLB_UPDATE)
    front.send_iotlb(update)
    assert backend.payloads("IOTLB_MSG") == [vhost.IOTLB_MSG.pack(update)]
    assert front.receive_iotlb() is None
    channel = backend.channel
    channel.sendall(encode_message(2, 0x9))  # CONFIG_CHANGE_MSG: not for us
    channel.sendall(encode_message(1, 0x9, vhost.IOTLB_MSG.pack(MISS)))
    assert front.receive_iotlb(1.0) == MISS
    assert channel.recv(40) == encode_message(2, 5, u64(1)) + encode_message(1, 5, u64(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.get_features_array(2),
        lambda t: t.set_features_array([1]),
        lambda t: t.get_backend_features(),
        lambda t: t.set_backend_features(1),
        lambda t: t.set_busyloop(0, 1),
        lambda t: t.get_busyloop(0),
        lambda t: t.set_log_fd(None),
        lambda t: t.set_log_base(None),
        lambda t: t.send_iotlb(MISS),
        lambda t: t.receive_iotlb(),
        lambda t: t.get_max_mem_slots(),
        lambda t: t.set_mtu(1500),
        lambda t: t.send_rarp(bytes(6)),
        lambda t: t.get_status(),
    ],
)
def test_what_cannot_be_said_is_no_such_verb(pretended, call) -> None:
    _, front = pretended()
    with pytest.raises(NoSuchVerb):
        call(front)


def test_the_rest_of_the_messages(pretended) -> None:
    backend, front = pretended(protocol_features=PROTOCOL_FEATURES)
    front.set_owner()
    front.set_mtu(9000)
    front.send_rarp(b"\x02\0\0\0\0\x01")
    front.set_status(15)
    assert front.get_status() == 15
    front.set_vring_addr(ADDR)
    front.set_vring_err(1, None)
    front.reset_owner()
    assert backend.payloads("NET_SET_MTU") == [u64(9000)]
    assert backend.payloads("SEND_RARP") == [b"\x02\0\0\0\0\x01\0\0"]
    assert backend.payloads("SET_VRING_ADDR") == [vhost.VRING_ADDR.pack(ADDR)]
    assert backend.payloads("SET_VRING_ERR") == [u64(0x101)]
    assert backend.names()[-1] == "RESET_DEVICE"


def test_a_wrong_reply_is_a_protocol_error() -> None:
    ours, theirs = socket.socketpair()
    front = VhostUserTransport(ours, timeout=1.0)
    with theirs:
        theirs.sendall(encode_message(2, 5, u64(0)))
        with pytest.raises(VerbError) as failed:
            front.get_features()
        assert failed.value.errno == errno.EPROTO
        theirs.sendall(encode_message(1, 7))
        with pytest.raises(VerbError) as failed:
            front.get_features()
        assert failed.value.errno == errno.EPROTO
    front.close()


def test_a_silent_back_end_is_a_timeout() -> None:
    ours, theirs = socket.socketpair()
    front = VhostUserTransport(ours, timeout=0.05)
    with theirs, pytest.raises(VerbError) as failed:
        front.get_features()
    assert failed.value.errno == errno.ETIMEDOUT
    front.close()


def test_the_front_end_may_listen(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            while sock.connect_ex(path):
                time.sleep(0.005)
            assert sock.recv(12) == encode_message(vu.VHOST_USER_GET_FEATURES, 1)
            sock.sendall(encode_message(vu.VHOST_USER_GET_FEATURES, 5, u64(1 << 32)))

    thread = threading.Thread(target=connect)
    thread.start()
    front = VhostUserTransport.listen(path)
    thread.join()
    assert front.name == path
    assert not os.path.exists(path)
    front.close()


def test_nobody_who_listens_or_connects_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with pytest.raises(VerbError) as failed:
        VhostUserTransport.connect(path, wait=0.05)
    assert failed.value.errno == errno.ENOENT
    with pytest.raises(VerbError) as failed:
        VhostUserTransport.listen(path, wait=0.05)
    assert failed.value.errno == errno.ETIMEDOUT


def test_anything_can_be_sent(pretended) -> None:
    backend, front = pretended()
    fd = os.eventfd(0)
    front.send(99, b"abc", [fd])
    front.send_bytes(encode_message(1, 1))
    assert front.receive().payload == u64(backend.features)
    assert [(r.number, r.payload) for r in backend.requests if r.number == 99] == [(99, b"abc")]
    assert len(backend.fds) == 1
    os.close(fd)
