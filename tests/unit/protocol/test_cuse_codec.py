"""Bytes of /dev/cuse: the structs against the compiler's, and whatever else may come."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostnet.errors import PeerError
from vhostnet.protocol import cuse_codec as codec
from vhostnet.uapi import fuse

STRUCTS = {
    "fuse_in_header": fuse.IN_HEADER,
    "fuse_out_header": fuse.OUT_HEADER,
    "cuse_init_in": fuse.CUSE_INIT_IN,
    "fuse_open_in": fuse.OPEN_IN,
    "fuse_open_out": fuse.OPEN_OUT,
    "fuse_release_in": fuse.RELEASE_IN,
    "fuse_read_in": fuse.READ_IN,
    "fuse_write_in": fuse.WRITE_IN,
    "fuse_write_out": fuse.WRITE_OUT,
    "fuse_ioctl_in": fuse.IOCTL_IN,
    "fuse_ioctl_iovec": fuse.IOCTL_IOVEC,
    "fuse_ioctl_out": fuse.IOCTL_OUT,
    "fuse_poll_in": fuse.POLL_IN,
    "fuse_poll_out": fuse.POLL_OUT,
    "fuse_notify_poll_wakeup_out": fuse.NOTIFY_POLL_WAKEUP_OUT,
    "fuse_interrupt_in": fuse.INTERRUPT_IN,
}
CONSTANTS = [
    *(name for name in vars(fuse) if name.split("_")[0] in ("FUSE", "FOPEN", "CUSE")),
    *("O_NONBLOCK", "POLLIN", "POLLRDNORM"),
]
#: Ours, or another in this header than in the one we are compatible with.
NOT_IN_THE_HEADER = {"FUSE_KERNEL_MINOR_VERSION", "FUSE_IOCTL_MAX_DATA", "CUSE_INIT_OUT_SPARE"}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Sizes and numbers as this machine's compiler reads its header."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/fuse.h").exists():
        pytest.skip("no compiler or no linux/fuse.h")
    lines = ["#include <stdio.h>", "#define _GNU_SOURCE", "#include <fcntl.h>"]
    lines += ["#define _XOPEN_SOURCE", "#include <poll.h>", "#include <stddef.h>"]
    lines += ["#include <linux/fuse.h>", "int main(void) {"]
    names = {f"sizeof(struct {name})" for name in (*STRUCTS, "cuse_init_out")}
    names |= {f"offsetof(struct {name}, {field})" for name, field in fields()}
    names |= {n for n in CONSTANTS if isinstance(getattr(fuse, n), int)} - NOT_IN_THE_HEADER
    lines += [f'printf("%s=%ld\\n", "{name}", (long)({name}));' for name in sorted(names)]
    room = tmp_path_factory.mktemp("header")
    (room / "ask.c").write_text("\n".join([*lines, "}", ""]))
    subprocess.run([compiler, "-o", room / "ask", room / "ask.c"], check=True)
    said = subprocess.run([room / "ask"], check=True, capture_output=True, text=True).stdout
    return {
        name: int(number)
        for name, _, number in (x.rpartition("=") for x in said.split("\n"))
        if name
    }


def fields() -> list[tuple[str, str]]:
    renamed = {("fuse_open_out", "backing_id"), ("fuse_in_header", "total_extlen")}
    return [
        (struct, field)
        for struct, layout in STRUCTS.items()
        for field in layout.cls.__slots__
        if (struct, field) not in renamed and field != "padding"
    ]


def offset_of(struct: str, field: str) -> int:
    """By packing a struct in which one field only is not zero."""
    layout = STRUCTS[struct]
    packed = layout.pack(layout.cls(**{f: int(f == field) for f in layout.cls.__slots__}))
    return packed.index(1)


def test_the_structs_are_the_headers(header: dict[str, int]) -> None:
    for struct, layout in STRUCTS.items():
        assert layout.size == header[f"sizeof(struct {struct})"], struct
    for struct, field in fields():
        where = header[f"offsetof(struct {struct}, {field})"]
        assert offset_of(struct, field) == where, (struct, field)
    init_out = fuse.CUSE_INIT_OUT.size + fuse.CUSE_INIT_OUT_SPARE
    assert init_out == header["sizeof(struct cuse_init_out)"]


def test_the_numbers_are_the_headers(header: dict[str, int]) -> None:
    compared = [n for n in CONSTANTS if n in header]
    assert len(compared) > 25
    assert {n: getattr(fuse, n) for n in compared} == {n: header[n] for n in compared}


def message(
    opcode: int, body: bytes = b"", *, length: int | None = None, extensions: int = 0
) -> bytes:
    size = fuse.IN_HEADER.size + len(body) if length is None else length
    return fuse.IN_HEADER.pack(fuse.InHeader(size, opcode, 7, 0, 1, 2, 3, extensions, 0)) + body


def test_a_request_has_its_struct_and_the_data_that_it_names() -> None:
    body = fuse.WRITE_IN.pack(fuse.WriteIn(5, 0, 3, 0, 0, 0)) + b"abc"
    request = codec.decode(message(fuse.FUSE_WRITE, body))
    assert request == codec.Request(fuse.FUSE_WRITE, 7, 3, fuse.WriteIn(5, 0, 3, 0, 0, 0), b"abc")
    assert request.name == "WRITE"


def test_extensions_of_a_newer_kernel_are_no_data() -> None:
    body = fuse.IOCTL_IN.pack(fuse.IoctlIn(5, 0, 1, 2, 0, 0)) + b"extended"
    request = codec.decode(message(fuse.FUSE_IOCTL, body, extensions=1))
    assert request.data == b""
    write = fuse.WRITE_IN.pack(fuse.WriteIn(5, 0, 3, 0, 0, 0)) + b"extended"
    with pytest.raises(PeerError, match="0 bytes of 3"):
        codec.decode(message(fuse.FUSE_WRITE, write, extensions=1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(39),
        message(fuse.FUSE_OPEN),
        message(fuse.FUSE_READ, bytes(39)),
        message(fuse.FUSE_WRITE, fuse.WRITE_IN.pack(fuse.WriteIn(1, 0, 9, 0, 0, 0)) + bytes(8)),
        message(fuse.FUSE_IOCTL, fuse.IOCTL_IN.pack(fuse.IoctlIn(1, 0, 0, 0, 1 << 31, 0))),
        message(fuse.FUSE_OPEN, bytes(8), length=47),
        message(fuse.FUSE_OPEN, bytes(8), length=49),
        message(fuse.FUSE_OPEN, bytes(8), extensions=2),
        message(fuse.FUSE_OPEN, bytes(8), extensions=0xFFFF),
    ],
)
def test_less_than_it_says_is_no_request(data: bytes) -> None:
    with pytest.raises(PeerError) as refused:
        codec.decode(data)
    assert refused.value.errno == errno.EIO
    assert codec.unique_of(data) == (7 if len(data) >= 40 and data[8] else 0)


@given(st.binary(max_size=200), st.sampled_from([*fuse.OPCODE_NAMES, 0, 1, 99]), st.booleans())
def test_any_bytes_are_a_request_or_a_peers_error(body: bytes, opcode: int, whole: bool) -> None:
    data = message(opcode, body) if whole else body
    try:
        request = codec.decode(data)
    except PeerError:
        return
    assert request.opcode == opcode
    assert len(request.data) <= len(body)


def test_an_errno_that_the_kernel_refuses_becomes_eio() -> None:
    for number in (0, -1, 512, 100000):
        reply = fuse.OUT_HEADER.unpack(codec.encode_error(9, number))
        assert reply == fuse.OutHeader(16, -errno.EIO, 9)
    assert fuse.OUT_HEADER.unpack(codec.encode_error(9, errno.EBADFD)).error == -77


@pytest.mark.parametrize(("theirs", "ours"), [(31, 31), (38, 31), (45, 31), (11, 11)])
def test_the_older_of_two_protocol_versions_is_spoken(theirs: int, ours: int) -> None:
    reply = codec.encode_init(1, fuse.CuseInitIn(7, theirs, 0, 1), "vhost-net")
    head = fuse.OUT_HEADER.unpack(reply)
    assert head == fuse.OutHeader(len(reply), 0, 1)
    out = fuse.CUSE_INIT_OUT.unpack(reply, 16)
    assert (out.major, out.minor) == (7, ours)
    assert out.flags == fuse.CUSE_UNRESTRICTED_IOCTL
    assert reply[16 + 72 :] == b"DEVNAME=vhost-net\0"


def test_another_major_version_is_refused() -> None:
    with pytest.raises(PeerError, match=r"FUSE 8\.0"):
        codec.encode_init(1, fuse.CuseInitIn(8, 0, 0, 0), "vhost-net")
