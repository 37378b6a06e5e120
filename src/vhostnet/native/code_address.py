"""Machine code that kernels call by its address, instead of having it within them.

What is seldom run (a capture) stays out of the twenty-odd specialisations of the data path: it is
compiled once, and a kernel that does not run it pays for the test that says so.  In the interpreted
lane an address is a number in a table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic, overload

from ._jit import JIT_ENABLED

#: All such functions take so many 64-bit integers, and return one.
N_ARGUMENTS = 6
_SIGNATURE = types.int64(*[types.int64] * N_ARGUMENTS)
_kept: list[Any] = []


@functools.cache
def code_address(fn: Callable[[int, int, int, int, int, int], int]) -> int:
    """Where the machine code of *fn* is: loaded from the cache, or compiled; it stays there."""
    if not JIT_ENABLED:
        _kept.append(fn)
        return len(_kept)
    compiled: Any = cfunc(_SIGNATURE, cache=True)(fn)
    _kept.append(compiled)
    return int(compiled.address)


def call_code(address: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    """Call what `code_address` gave."""
    result: int = _kept[address - 1](a, b, c, d, e, f)
    return result


def _call_factory() -> Any:
    @intrinsic
    def call(typingctx: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            word = ir.IntType(64)
            kind = ir.FunctionType(word, [word] * N_ARGUMENTS)
            return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

        return types.int64(*[types.int64] * (1 + N_ARGUMENTS)), codegen

    return call


_call = _call_factory()


@overload(call_code)
def _ol_call_code(address, a, b, c, d, e, f):  # type: ignore[no-untyped-def]
    return lambda address, a, b, c, d, e, f: _call(address, a, b, c, d, e, f)
