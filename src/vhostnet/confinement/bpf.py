"""An assembler for classic BPF, as far as a seccomp filter needs it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# linux/bpf_common.h
LD_W_ABS = 0x20
JEQ_K = 0x15
JGE_K = 0x35
JSET_K = 0x45
JA = 0x05
AND_K = 0x54
RSH_K = 0x74
RET_K = 0x06

#: struct sock_filter: code, jt, jf, k
_INSTRUCTION = struct.Struct("=HBBI")
_MAX_JUMP = 255
#: Where a jump without a label goes.
_NEXT = ""


@dataclass(frozen=True, slots=True)
class _Step:
    code: int
    k: int
    then: str = _NEXT
    otherwise: str = _NEXT


class Assembler:
    """Steps and labels; labels lie ahead of the jumps to them."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """What comes now is called *name*."""
        self._labels[name] = len(self._steps)

    def load(self, offset: int) -> None:
        """Take the 32-bit word at *offset* of struct seccomp_data."""
        self._steps.append(_Step(LD_W_ABS, offset))

    def shift_right(self, bits: int) -> None:
        self._steps.append(_Step(RSH_K, bits))

    def mask(self, bits: int) -> None:
        self._steps.append(_Step(AND_K, bits))

    def if_equal(self, k: int, then: str = _NEXT, otherwise: str = _NEXT) -> None:
        self._steps.append(_Step(JEQ_K, k, then, otherwise))

    def if_at_least(self, k: int, then: str = _NEXT, otherwise: str = _NEXT) -> None:
        """Unsigned."""
        self._steps.append(_Step(JGE_K, k, then, otherwise))

    def if_any_bit(self, k: int, then: str = _NEXT, otherwise: str = _NEXT) -> None:
        self._steps.append(_Step(JSET_K, k, then, otherwise))

    def jump(self, label: str) -> None:
        self._steps.append(_Step(JA, 0, label))

    def finish(self, k: int) -> None:
        """End the filter with the verdict *k*."""
        self._steps.append(_Step(RET_K, k))

    def assemble(self) -> bytes:
        """The instructions.  Raises ValueError for a jump that cannot be made."""
        return b"".join(self._instruction(at, step) for at, step in enumerate(self._steps))

    def _instruction(self, at: int, step: _Step) -> bytes:
        then, otherwise = (self._distance(at, name) for name in (step.then, step.otherwise))
        if step.code == JA:
            return _INSTRUCTION.pack(JA, 0, 0, then)
        if max(then, otherwise) > _MAX_JUMP:
            raise ValueError(f"step {at} jumps further than {_MAX_JUMP} instructions")
        return _INSTRUCTION.pack(step.code, then, otherwise, step.k)

    def _distance(self, at: int, label: str) -> int:
        distance = 0 if label == _NEXT else self._labels[label] - at - 1
        if distance < 0:
            raise ValueError(f"step {at} jumps back to {label}")
        return distance
