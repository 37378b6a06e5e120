"""Run a command in which some system calls fail, as in a container.

python confined.py NUMBER,NUMBER,... ERRNO COMMAND ...
"""

from __future__ import annotations

import ctypes
import os
import sys

from vhostnet.confinement.bpf import Assembler
from vhostnet.frontdoors.seccomp import abi

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_RET_ERRNO = 0x00050000


class _Fprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine(numbers: list[int], code: int) -> None:
    """From now on these calls fail with *code*."""
    a = Assembler()
    a.load(abi.DATA_NR)
    for nr in numbers:
        a.if_equal(nr, "no")
    a.finish(abi.SECCOMP_RET_ALLOW)
    a.label("no")
    a.finish(_RET_ERRNO | code)
    program = a.assemble()
    prog = _Fprog(len(program) // 8, program)
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(prog)) == 0


if __name__ == "__main__":
    confine([int(word) for word in sys.argv[1].split(",")], int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
