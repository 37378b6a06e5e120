"""Filters in libpcap's language ("tcp port 80 and host 192.0.2.1"), compiled by libpcap itself.

It is loaded when a filter is asked for; nothing else here needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

from vhostnet.capture.pcapng import LINKTYPE_ETHERNET
from vhostnet.datapath.bpf import program_of
from vhostnet.errors import HostError, UsageError

_SONAMES = ("libpcap.so.0.8", "libpcap.so.1")
_SNAPLEN = 262144
_OPTIMIZE = 1
_NETMASK_UNKNOWN = 0xFFFFFFFF


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("n", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


def compile_filter(text: str) -> Any:
    """SOCK_FILTER[], empty for an empty text.

    Raises UsageError for what is no filter, HostError without libpcap.
    """
    if not text.strip():
        return program_of([(6, 0, 0, _SNAPLEN)])[:0]
    pcap = _libpcap()
    handle = ctypes.c_void_p(pcap.pcap_open_dead(LINKTYPE_ETHERNET, _SNAPLEN))
    program = _Program()
    try:
        failed = pcap.pcap_compile(
            handle, ctypes.byref(program), text.encode(), _OPTIMIZE, _NETMASK_UNKNOWN
        )
        if failed:
            why = ctypes.string_at(pcap.pcap_geterr(handle)).decode(errors="replace")
            raise UsageError(f"{text!r} is no filter: {why}")
        found = [program.instructions[k] for k in range(program.n)]
        result = program_of([(i.code, i.jt, i.jf, i.k) for i in found])
        pcap.pcap_freecode(ctypes.byref(program))
        return result
    finally:
        pcap.pcap_close(handle)


def load_libpcap() -> None:
    """Have libpcap, if it is there, for filters that come later."""
    with contextlib.suppress(HostError):
        _libpcap()


def _libpcap() -> Any:
    for name in _SONAMES:
        try:
            pcap = ctypes.CDLL(name)
        except OSError:
            continue
        pcap.pcap_open_dead.restype = ctypes.c_void_p
        pcap.pcap_geterr.restype = ctypes.c_void_p
        return pcap
    raise HostError("a filter needs libpcap (Debian's package libpcap0.8)")
