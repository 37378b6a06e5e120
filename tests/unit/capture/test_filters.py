"""Classic BPF against libpcap's own interpreter, and what may not be run at all."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostnet.capture.filters import _libpcap, compile_filter
from vhostnet.datapath.bpf import BPF_MEMWORDS, program_of, run_filter
from vhostnet.errors import HostError, UsageError
from vhostnet.native._jit import kernel

EXPRESSIONS = (
    "ip",
    "tcp port 80",
    "udp and host 192.0.2.1",
    "ip6 and tcp dst port 443",
    "vlan and ip",
    "greater 100",
    "ip[0] & 0xf != 5",
    "ether[0] & 1 = 0 and ip proto 6",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "not arp and (net 10.0.0.0/8 or portrange 1000-2000)",
    "len - 14 > 46 and ip[2:2] / 3 > 20",
    "icmp or icmp6",
)


@pytest.fixture(scope="module")
def pcap() -> Any:
    try:
        return _libpcap()
    except HostError as err:
        pytest.skip(str(err))


@functools.cache
def compiled(expression: str) -> Any:
    return compile_filter(expression)


@kernel
def _run(program_hva: int, n: int, memory_hva: int, data_hva: int, size: int, wire: int) -> int:
    return run_filter(program_hva, n, memory_hva, data_hva, size, wire)


def ours(program: Any, packet: bytes, wire_len: int) -> int:
    memory = np.zeros(BPF_MEMWORDS, np.int64)
    data = np.frombuffer(packet + bytes(8), np.uint8)
    address = program.ctypes.data
    return int(
        _run(address, len(program), memory.ctypes.data, data.ctypes.data, len(packet), wire_len)
    )


def theirs(pcap: Any, program: Any, packet: bytes, wire_len: int) -> int:
    pcap.bpf_filter.restype = ctypes.c_uint
    address = ctypes.c_void_p(program.ctypes.data)
    return int(pcap.bpf_filter(address, packet, wire_len, len(packet)))


ETHERNET = st.sampled_from(["0800", "86dd", "8100 0001 0800", "0806"]).map(bytes.fromhex)
IP = st.sampled_from(
    [
        "4500 0054 0000 4000 4006 0000 c0000201 c0000202 0050 03e8 00000000 00000000 5002",
        "4600 0054 0000 0000 4011 0000 c0000201 0a000001 01010101 0035 0400",
        "4500 0054 0000 2001 4006 0000 c0000201 c0000202",
        "4500 0054 0000 0000 4001 0000 c0000201 c0000202 0800",
        "6000 0000 0014 0640" + "20" * 32 + "01bb 01bb",
        "",
    ]
).map(bytes.fromhex)


@given(
    st.sampled_from(EXPRESSIONS),
    ETHERNET,
    IP,
    st.binary(max_size=120),
    st.integers(0, 300),
    st.integers(0, 60),
)
def test_it_decides_as_libpcap_does(
    pcap: Any, expression: str, kind: bytes, ip: bytes, rest: bytes, more: int, cut: int
) -> None:
    packet = bytes(12) + kind + ip + rest
    packet = packet[: len(packet) - cut]
    program = compiled(expression)
    wire_len = len(packet) + more
    assert ours(program, packet, wire_len) == theirs(pcap, program, packet, wire_len)


#: All of class ALU, by constant and by X; libpcap ends the process for -X, which nobody makes.
OPERATIONS = [c | x for c in range(0x04, 0xB4, 0x10) for x in (0, 8) if c | x != 0x8C]


@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2**32 - 1)), max_size=8),
    st.binary(min_size=8, max_size=8),
)
def test_arithmetic_is_of_32_bits(
    pcap: Any, operations: list[tuple[int, int]], packet: bytes
) -> None:
    safe = [(code, k % 31 + 1 if code & 0xF0 in (0x60, 0x70) else k or 1) for code, k in operations]
    constant = [(code & ~8 if code & 0xF0 in (0x60, 0x70) else code, k) for code, k in safe]
    program = program_of(
        [
            (0x20, 0, 0, 0),  # ld [0]
            (0x07, 0, 0, 0),  # tax
            (0x20, 0, 0, 4),  # ld [4]
            *((code, 0, 0, k) for code, k in constant),
            (0x16, 0, 0, 0),  # ret a
        ]
    )
    assert ours(program, packet, 8) == theirs(pcap, program, packet, 8)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ([], "0 instructions"),
        ([(0x28, 0, 0, 12)], "leaves the program"),
        ([(0x15, 1, 0, 1), (6, 0, 0, 1)], "leaves the program"),
        ([(0x05, 0, 0, 2**32 - 1), (6, 0, 0, 1)], "leaves the program"),
        ([(0x02, 0, 0, 16), (6, 0, 0, 1)], "memory word 16"),
        ([(0x60, 0, 0, 99), (6, 0, 0, 1)], "memory word 99"),
    ],
)
def test_a_program_that_could_do_harm_is_not_run(
    program: list[tuple[int, int, int, int]], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        program_of(program)


@pytest.mark.usefixtures("pcap")
def test_what_libpcap_refuses_is_said_with_its_words() -> None:
    with pytest.raises(UsageError, match=r"'prot 80' is no filter: .*syntax error"):
        compile_filter("prot 80")


def test_no_filter_is_an_empty_program() -> None:
    assert len(compile_filter("")) == 0
