"""Which calls the filter stops, by a small machine that runs it."""

from __future__ import annotations

import os

import pytest

from bpf_machine import verdict
from vhostnet.confinement.bpf import Assembler
from vhostnet.errors import HostError
from vhostnet.frontdoors.seccomp import abi
from vhostnet.frontdoors.seccomp.filter import program
from vhostnet.frontdoors.seccomp.path_calls import ARGUMENTS

RESERVED = range(992, 1024)
I386 = 0x40000003
AT_FDCWD = -100 & 0xFFFFFFFFFFFFFFFF
HIGH = 0xDEAD << 32
TRAP, GO_ON = True, False


@pytest.fixture(params=[abi.X86_64, abi.AARCH64], ids=lambda a: a.name)
def traps(request):
    architecture = request.param
    code = program(architecture, RESERVED)

    def ask(name: str, *args: int) -> bool:
        if name not in architecture.numbers:
            pytest.skip(f"{architecture.name} has no {name}")
        said = verdict(code, architecture.numbers[name], args, architecture.audit)
        assert said in (abi.SECCOMP_RET_ALLOW, abi.SECCOMP_RET_USER_NOTIF)
        return said == abi.SECCOMP_RET_USER_NOTIF

    return ask


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("open", (0x1000, os.O_RDWR), TRAP),
        ("open", (0x1000, os.O_RDONLY | os.O_DIRECTORY), GO_ON),
        ("openat", (AT_FDCWD, 0x1000, os.O_RDWR | os.O_CLOEXEC), TRAP),
        ("openat", (5, 0x1000, os.O_DIRECTORY), GO_ON),
        ("openat2", (AT_FDCWD, 0x1000, 0x2000, 24), TRAP),
        ("creat", (0x1000,), TRAP),
        ("stat", (0x1000, 0x2000), TRAP),
        ("lstat", (0x1000, 0x2000), TRAP),
        ("newfstatat", (AT_FDCWD, 0x1000, 0x2000, 0), TRAP),
        ("newfstatat", (3, 0x1000, 0x2000, abi.AT_EMPTY_PATH), GO_ON),
        ("newfstatat", (992, 0x1000, 0x2000, abi.AT_EMPTY_PATH), TRAP),
        ("newfstatat", (AT_FDCWD, 0x1000, 0x2000, abi.AT_EMPTY_PATH), TRAP),
        ("statx", (AT_FDCWD, 0x1000, 0, 0xFFF, 0x2000), TRAP),
        ("statx", (3, 0x1000, abi.AT_EMPTY_PATH, 0xFFF, 0x2000), GO_ON),
        ("statx", (1000, 0x1000, abi.AT_EMPTY_PATH, 0xFFF, 0x2000), TRAP),
        *[(name, (0x1000, 0x1000, 0), TRAP) for name in ARGUMENTS],
        ("execve", (0x1000, 0, 0), TRAP),
        ("execveat", (AT_FDCWD, 0x1000), TRAP),
        ("ioctl", (3, 0xAF01), TRAP),
        ("ioctl", (3, 0x4008AF12), TRAP),
        ("ioctl", (3, HIGH | 0x4008AF12), TRAP),
        ("ioctl", (3, 0x5401), GO_ON),
        ("ioctl", (3, 0xAF0001), GO_ON),
        ("ioctl", (3, 0xAF << 32), GO_ON),
        ("ioctl", (992, 0x5401), TRAP),
        ("ioctl", (1023, 0x5401), TRAP),
        ("ioctl", (1024, 0x5401), GO_ON),
        ("ioctl", (HIGH | 992, 0x5401), TRAP),
        *[
            (name, (fd,), expected)
            for name in ("read", "write", "readv", "writev", "fstat")
            for fd, expected in (
                (0, GO_ON),
                (991, GO_ON),
                (992, TRAP),
                (1023, TRAP),
                (1024, GO_ON),
                (0xFFFFFFFFFFFFFFFF, GO_ON),
                (HIGH | 992, TRAP),
                (HIGH | 3, GO_ON),
            )
        ],
    ],
)
def test_a_call_that_may_be_about_the_device_comes(traps, name, args, expected) -> None:
    assert traps(name, *args) == expected


@pytest.mark.parametrize("architecture", [abi.X86_64, abi.AARCH64], ids=lambda a: a.name)
def test_no_other_number_comes_whatever_its_arguments(architecture) -> None:
    code = program(architecture, RESERVED)
    for nr in set(range(600)) - set(architecture.names):
        args = (992, 0xAF01, 0, 0)
        assert verdict(code, nr, args, architecture.audit) == abi.SECCOMP_RET_ALLOW


@pytest.mark.parametrize("architecture", [abi.X86_64, abi.AARCH64], ids=lambda a: a.name)
def test_calls_of_another_architecture_go_on(architecture) -> None:
    code = program(architecture, RESERVED)
    for audit in {I386, abi.X86_64.audit, abi.AARCH64.audit, 0} - {architecture.audit}:
        for nr in range(600):
            assert verdict(code, nr, (992, 0xAF01), audit) == abi.SECCOMP_RET_ALLOW


def test_calls_of_x32_go_on() -> None:
    code = program(abi.X86_64, RESERVED)
    for nr in range(600):
        said = verdict(code, nr | abi.X32_SYSCALL_BIT, (992, 0xAF01), abi.X86_64.audit)
        assert said == abi.SECCOMP_RET_ALLOW


def test_a_processor_that_we_do_not_know_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(HostError, match="riscv64"):
        abi.native()


def test_structs_have_the_sizes_of_the_kernel() -> None:
    assert (abi.NOTIF.size, abi.NOTIF_RESP.size, abi.NOTIF_ADDFD.size) == (80, 24, 24)
    node = abi.NodeStat(5, 6, 0o20666, 10, 238, 99)
    assert len(abi.X86_64.stat_bytes(node)) == 144
    assert len(abi.AARCH64.stat_bytes(node)) == 128
    assert len(abi.statx_bytes(node)) == 256
    assert abi.SECCOMP_IOCTL_NOTIF_RECV == 0xC0502100
    assert abi.SECCOMP_IOCTL_NOTIF_SEND == 0xC0182101
    assert abi.SECCOMP_IOCTL_NOTIF_ID_VALID == 0x40082102
    assert abi.SECCOMP_IOCTL_NOTIF_ADDFD == 0x40182103
    assert abi.SECCOMP_IOCTL_NOTIF_SET_FLAGS == 0x40082104


def test_a_jump_goes_ahead_and_not_too_far() -> None:
    back = Assembler()
    back.label("here")
    back.finish(0)
    back.if_equal(1, "here")
    with pytest.raises(ValueError, match="back"):
        back.assemble()
    far = Assembler()
    far.if_equal(1, "there")
    for _ in range(256):
        far.load(0)
    far.label("there")
    far.finish(0)
    with pytest.raises(ValueError, match="255"):
        far.assemble()
