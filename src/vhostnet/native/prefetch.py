"""Ask for a cache line before it is needed: hints, which no program's meaning depends on.

A prefetch of any address is allowed, also of one that is not mapped: it is then nothing.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload


def prefetch_read(hva: int) -> None:
    """The line of *hva* will be read."""


def prefetch_write(hva: int) -> None:
    """The line of *hva* will be written: take it from whoever has it."""


def _prefetch_factory(write: bool) -> Any:
    @intrinsic
    def prefetch(typingctx: Any, hva: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            i32 = ir.IntType(32)
            pointer = ir.PointerType(ir.IntType(8))
            kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
            hint = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
            near, data = i32(3), i32(1)
            builder.call(hint, [builder.inttoptr(args[0], pointer), i32(int(write)), near, data])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return prefetch


_read = _prefetch_factory(False)
_write = _prefetch_factory(True)


# unannotated on purpose, as in `ordering`
@overload(prefetch_read)
def _ol_prefetch_read(hva):  # type: ignore[no-untyped-def]
    return lambda hva: _read(hva)


@overload(prefetch_write)
def _ol_prefetch_write(hva):  # type: ignore[no-untyped-def]
    return lambda hva: _write(hva)
