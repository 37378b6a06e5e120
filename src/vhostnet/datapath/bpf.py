"""Classic BPF, as tcpdump's filters are compiled to, over bytes in private memory.

A program has been checked (`check_program`) before it is run: jumps go forward and stay within, so
it ends; memory words exist; it ends with a return.  A load beyond the bytes that are there refuses
the packet, as in Linux.

Source: Linux net/core/filter.c, uapi/linux/bpf_common.h; the BSD packet filter paper, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vhostnet.native._jit import helper
from vhostnet.native.ordering import load_i64_at, load_u8, store_i64

#: struct sock_filter (uapi/linux/filter.h).
SOCK_FILTER = np.dtype([("code", "<u2"), ("jt", "u1"), ("jf", "u1"), ("k", "<u4")])
SOCK_FILTER_SIZE = SOCK_FILTER.itemsize
BPF_MAXINSNS = 4096
BPF_MEMWORDS = 16

# classes, the lowest three bits
BPF_LD, BPF_LDX, BPF_ST, BPF_STX = 0, 1, 2, 3
BPF_ALU, BPF_JMP, BPF_RET, BPF_MISC = 4, 5, 6, 7
# of loads: size, and mode
_W, _H, _B = 0x00, 0x08, 0x10
_IMM, _ABS, _IND, _MEM, _LEN, _MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
# of the rest: where the operand comes from
_X, _A = 0x08, 0x10
_ADD, _SUB, _MUL, _DIV, _OR, _AND = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50
_LSH, _RSH, _NEG, _MOD, _XOR = 0x60, 0x70, 0x80, 0x90, 0xA0
_JA, _JEQ, _JGT, _JGE, _JSET = 0x00, 0x10, 0x20, 0x30, 0x40
_TXA = 0x80
_U32 = 0xFFFFFFFF
_BAD = -1


def check_program(program: Any) -> None:
    """Raise ValueError unless *program*, SOCK_FILTER[], may be run.

    Source: Linux bpf_check_classic().
    """
    n = len(program)
    if not 0 < n <= BPF_MAXINSNS:
        raise ValueError(f"{n} instructions, must be 1 to {BPF_MAXINSNS}")
    for at, (code, jt, jf, k) in enumerate(program.tolist()):
        kind = code & 7
        furthest = 0
        if kind == BPF_JMP:
            furthest = k if code & 0xF0 == _JA else max(jt, jf)
        if at + 1 + furthest >= n and kind != BPF_RET:
            raise ValueError(f"instruction {at} leaves the program")
        is_memory = kind in (BPF_ST, BPF_STX) or (kind in (BPF_LD, BPF_LDX) and code & 0xE0 == _MEM)
        if is_memory and k >= BPF_MEMWORDS:
            raise ValueError(f"instruction {at} uses memory word {k}")


def program_of(instructions: Sequence[tuple[int, int, int, int]]) -> Any:
    """SOCK_FILTER[] of (code, jt, jf, k), checked."""
    program = np.array(list(instructions), SOCK_FILTER)
    check_program(program)
    return program


@helper
def _load(data_hva: int, size: int, at: int, code: int) -> int:
    """A big-endian word, half-word or byte; negative if it is not there."""
    width = 4 if code & 0x18 == _W else 2 if code & 0x18 == _H else 1
    if at < 0 or at + width > size:
        return _BAD
    value = 0
    for k in range(width):
        value = value << 8 | load_u8(data_hva + at + k)
    return value


@helper
def _alu(code: int, a: int, operand: int) -> int:
    """A op operand in 32 bits; negative for a division by zero."""
    op = code & 0xF0
    if op == _ADD:
        result = a + operand
    elif op == _SUB:
        result = a - operand
    elif op == _MUL:
        result = a * operand
    elif op == _DIV or op == _MOD:
        if operand == 0:
            return _BAD
        result = a // operand if op == _DIV else a % operand
    elif op == _OR:
        result = a | operand
    elif op == _AND:
        result = a & operand
    elif op == _LSH:
        result = a << operand if operand < 32 else 0
    elif op == _RSH:
        result = a >> operand if operand < 32 else 0
    elif op == _NEG:
        result = -a
    else:
        result = a ^ operand
    return result & _U32


@helper
def _jumps(code: int, a: int, operand: int) -> bool:
    op = code & 0xF0
    if op == _JEQ:
        return a == operand
    if op == _JGT:
        return a > operand
    if op == _JGE:
        return a >= operand
    return a & operand != 0


@helper
def run_filter(
    program_hva: int, n: int, memory_hva: int, data_hva: int, size: int, wire_len: int
) -> int:
    """How many bytes of a packet the filter wants; 0: it is not wanted.

    Args:
        program_hva: SOCK_FILTER[n], checked.
        memory_hva: i8[BPF_MEMWORDS], scratch.
        data_hva: the packet's first *size* bytes of *wire_len*.
    """
    a = 0
    x = 0
    at = 0
    while at < n:
        word = load_i64_at(program_hva, at * SOCK_FILTER_SIZE)
        code = word & 0xFFFF
        k = word >> 32 & _U32
        kind = code & 7
        at += 1
        if kind == BPF_RET:
            return a if code & 0x18 == _A else k
        if kind == BPF_LD or kind == BPF_LDX:
            mode = code & 0xE0
            if mode == _IMM:
                value = k
            elif mode == _LEN:
                value = wire_len
            elif mode == _MEM:
                value = load_i64_at(memory_hva, 8 * (k & 15))
            elif mode == _MSH:
                value = _load(data_hva, size, k, _B)
                if value >= 0:
                    value = 4 * (value & 15)
            else:
                value = _load(data_hva, size, k + x if mode == _IND else k, code)
            if value < 0:
                return 0
            if kind == BPF_LD:
                a = value
            else:
                x = value
        elif kind == BPF_ST:
            store_i64(memory_hva + 8 * (k & 15), a)
        elif kind == BPF_STX:
            store_i64(memory_hva + 8 * (k & 15), x)
        elif kind == BPF_ALU:
            a = _alu(code, a, x if code & _X else k)
            if a < 0:
                return 0
        elif kind == BPF_JMP:
            if code & 0xF0 == _JA:
                at += k
            elif _jumps(code, a, x if code & _X else k):
                at += word >> 16 & 0xFF
            else:
                at += word >> 24 & 0xFF
        elif code & 0xF8 == _TXA:
            a = x
        else:
            x = a
    return 0
