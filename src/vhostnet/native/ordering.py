"""Loads, stores and fences on memory that the guest or another thread can change.

Every function has two bodies: the Python one (used with NUMBA_DISABLE_JIT=1 and by the
control plane) and the LLVM one that kernels get.  This is the only file with atomics and
fences, so a port to another processor is right if this file is.

All values are signed 64-bit integers on the kernel's side and Python ints on the other:
mixed-width arithmetic differs between Numba and the interpreter, one width does not.
`addr` is always an address in our own process (hva).

"relaxed": one single load or store of that width, no ordering; "acquire": later reads stay
after it; "release": earlier writes stay before it.  The names of the barriers are Linux's.
"""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_mb_lock = threading.Lock()
_RELAX_S = 20e-6


def load_acquire_u16(addr: int) -> int:
    """Read a u16; later reads stay after it."""
    return ctypes.c_uint16.from_address(addr).value


def load_relaxed_u16(addr: int) -> int:
    """Read a u16 exactly once."""
    return ctypes.c_uint16.from_address(addr).value


def load_relaxed_i32(addr: int) -> int:
    """Read a signed 32-bit word exactly once."""
    return ctypes.c_int32.from_address(addr).value


def load_relaxed_i64(addr: int) -> int:
    """Read a 64-bit word exactly once, as signed."""
    return ctypes.c_int64.from_address(addr).value


def load_u8(addr: int) -> int:
    """Read a byte."""
    return ctypes.c_uint8.from_address(addr).value


def load_i64_at(addr: int, offset: int) -> int:
    """Read 64 bits at *addr* + *offset*, as signed; any alignment, no promise of reading once.

    For private memory, and for sums over memory of others.  A loop over *offset* becomes vector
    instructions.
    """
    return ctypes.c_int64.from_address(addr + offset).value


def store_release_u16(addr: int, value: int) -> None:
    """Write a u16; earlier writes are visible before it."""
    ctypes.c_uint16.from_address(addr).value = value


def store_relaxed_u16(addr: int, value: int) -> None:
    """Write a u16 in one store."""
    ctypes.c_uint16.from_address(addr).value = value


def store_relaxed_u32(addr: int, value: int) -> None:
    """Write a u32 in one store."""
    ctypes.c_uint32.from_address(addr).value = value


def store_i64(addr: int, value: int) -> None:
    """Write 64 bits of private memory."""
    ctypes.c_int64.from_address(addr).value = value


def store_release_i64(addr: int, value: int) -> None:
    """Write 64 bits; earlier reads and writes are done before it."""
    ctypes.c_int64.from_address(addr).value = value


def store_u8(addr: int, value: int) -> None:
    """Write a byte."""
    ctypes.c_uint8.from_address(addr).value = value


def atomic_or_u8(addr: int, bits: int) -> None:
    """Set bits of a byte that other processes set bits of too."""
    with _mb_lock:
        cell = ctypes.c_uint8.from_address(addr)
        cell.value |= bits


def atomic_swap_i64(addr: int, value: int) -> int:
    """Write 64 bits that other threads write too; returns what was there.  A full barrier."""
    with _mb_lock:
        cell = ctypes.c_int64.from_address(addr)
        old, cell.value = cell.value, value
    return old


def cpu_relax() -> None:
    """Say that this is a spin loop: the sibling thread may have the core's units."""


def cpu_relax_for_lock() -> None:
    """`cpu_relax`, where another thread of ours holds what we spin for.

    The interpreter's threads have one lock together, which a spinning one lets go of after 5 ms:
    the one that is waited for would hardly get on.
    """
    time.sleep(_RELAX_S)


def smp_mb() -> None:
    """Full barrier: no load or store crosses it."""
    with _mb_lock:  # an uncontended lock is an atomic exchange: a full barrier on every CPU
        pass


def smp_rmb() -> None:
    """Loads before it stay before loads after it."""


def smp_wmb() -> None:
    """Stores before it stay before stores after it."""


def _load(bits: int, order: str, signed: bool) -> Any:
    @intrinsic
    def load(typingctx: Any, addr: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ptr = builder.inttoptr(args[0], ir.PointerType(ir.IntType(bits)))
            if order == "plain":
                value = builder.load(ptr, align=1)
            else:
                value = builder.load_atomic(ptr, order, bits // 8)
            if bits == 64:
                return value
            widen = builder.sext if signed else builder.zext
            return widen(value, ir.IntType(64))

        return types.int64(types.int64), codegen

    return load


def _store(bits: int, order: str) -> Any:
    @intrinsic
    def store(typingctx: Any, addr: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ptr = builder.inttoptr(args[0], ir.PointerType(ir.IntType(bits)))
            value = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
            if order == "plain":
                builder.store(value, ptr, align=1)
            else:
                builder.store_atomic(value, ptr, order, bits // 8)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return store


def _load_at_factory() -> Any:
    @intrinsic
    def load_at(typingctx: Any, addr: Any, offset: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # a pointer and an offset: LLVM does not see through an integer made a pointer
            base = builder.inttoptr(args[0], ir.PointerType(ir.IntType(8)))
            at = builder.gep(base, [args[1]])
            return builder.load(builder.bitcast(at, ir.PointerType(ir.IntType(64))), align=1)

        return types.int64(types.int64, types.int64), codegen

    return load_at


def _or_factory() -> Any:
    @intrinsic
    def atomic_or(typingctx: Any, addr: Any, bits: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ptr = builder.inttoptr(args[0], ir.PointerType(ir.IntType(8)))
            builder.atomic_rmw("or", ptr, builder.trunc(args[1], ir.IntType(8)), "monotonic")
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return atomic_or


def _swap_factory() -> Any:
    @intrinsic
    def atomic_swap(typingctx: Any, addr: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ptr = builder.inttoptr(args[0], ir.PointerType(ir.IntType(64)))
            return builder.atomic_rmw("xchg", ptr, args[1], "seq_cst")

        return types.int64(types.int64, types.int64), codegen

    return atomic_swap


def _fence(order: str) -> Any:
    @intrinsic
    def fence(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.fence(order)
            return context.get_dummy_value()

        return types.void(), codegen

    return fence


def _relax_factory() -> Any:
    @intrinsic
    def relax(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # intrinsics, not inline assembly: Numba loads no assembly parser
            if platform.machine() == "x86_64":
                kind = ir.FunctionType(ir.VoidType(), [])
                pause = builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind)
                builder.call(pause, [])
            elif platform.machine() == "aarch64":
                kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
                hint = builder.module.declare_intrinsic("llvm.aarch64.hint", (), kind)
                builder.call(hint, [ir.IntType(32)(1)])  # YIELD
            return context.get_dummy_value()

        return types.void(), codegen

    return relax


_relax = _relax_factory()
_atomic_or_u8 = _or_factory()
_atomic_swap_i64 = _swap_factory()
_load_i64_at = _load_at_factory()
_load_acquire_u16 = _load(16, "acquire", False)
_load_relaxed_u16 = _load(16, "monotonic", False)
_load_relaxed_i32 = _load(32, "monotonic", True)
_load_relaxed_i64 = _load(64, "monotonic", True)
_load_u8 = _load(8, "plain", False)
_store_release_u16 = _store(16, "release")
_store_relaxed_u16 = _store(16, "monotonic")
_store_relaxed_u32 = _store(32, "monotonic")
_store_i64 = _store(64, "plain")
_store_u8 = _store(8, "plain")
_store_release_i64 = _store(64, "release")
_store_relaxed_i32 = _store(32, "monotonic")
_store_relaxed_i64 = _store(64, "monotonic")
#: What a signal handler may use, (32, 64 bits): these compile in the interpreted lane too.  A
#: handler runs in the thread that its loads and stores are ordered for; acquire is for those
#: of control's.
HANDLER_LOAD = (_load_relaxed_i32, _load(64, "acquire", True))
HANDLER_STORE = (_store_relaxed_i32, _store_relaxed_i64)
_mb = _fence("seq_cst")
_rmb = _fence("acquire")
_wmb = _fence("release")


# The stubs are unannotated on purpose: numba compares signatures, annotations included,
# with those of the implementation they return.
@overload(load_acquire_u16)
def _ol_load_acquire_u16(addr):  # type: ignore[no-untyped-def]
    return lambda addr: _load_acquire_u16(addr)


@overload(load_relaxed_u16)
def _ol_load_relaxed_u16(addr):  # type: ignore[no-untyped-def]
    return lambda addr: _load_relaxed_u16(addr)


@overload(load_relaxed_i32)
def _ol_load_relaxed_i32(addr):  # type: ignore[no-untyped-def]
    return lambda addr: _load_relaxed_i32(addr)


@overload(load_relaxed_i64)
def _ol_load_relaxed_i64(addr):  # type: ignore[no-untyped-def]
    return lambda addr: _load_relaxed_i64(addr)


@overload(load_u8)
def _ol_load_u8(addr):  # type: ignore[no-untyped-def]
    return lambda addr: _load_u8(addr)


@overload(load_i64_at)
def _ol_load_i64_at(addr, offset):  # type: ignore[no-untyped-def]
    return lambda addr, offset: _load_i64_at(addr, offset)


@overload(store_release_u16)
def _ol_store_release_u16(addr, value):  # type: ignore[no-untyped-def]
    return lambda addr, value: _store_release_u16(addr, value)


@overload(store_relaxed_u16)
def _ol_store_relaxed_u16(addr, value):  # type: ignore[no-untyped-def]
    return lambda addr, value: _store_relaxed_u16(addr, value)


@overload(store_relaxed_u32)
def _ol_store_relaxed_u32(addr, value):  # type: ignore[no-untyped-def]
    return lambda addr, value: _store_relaxed_u32(addr, value)


@overload(store_i64)
def _ol_store_i64(addr, value):  # type: ignore[no-untyped-def]
    return lambda addr, value: _store_i64(addr, value)


@overload(store_release_i64)
def _ol_store_release_i64(addr, value):  # type: ignore[no-untyped-def]
    return lambda addr, value: _store_release_i64(addr, value)


@overload(store_u8)
def _ol_store_u8(addr, value):  # type: ignore[no-untyped-def]
    return lambda addr, value: _store_u8(addr, value)


@overload(atomic_or_u8)
def _ol_atomic_or_u8(addr, bits):  # type: ignore[no-untyped-def]
    return lambda addr, bits: _atomic_or_u8(addr, bits)


@overload(atomic_swap_i64)
def _ol_atomic_swap_i64(addr, value):  # type: ignore[no-untyped-def]
    return lambda addr, value: _atomic_swap_i64(addr, value)


@overload(cpu_relax)
def _ol_cpu_relax():  # type: ignore[no-untyped-def]
    return lambda: _relax()


@overload(cpu_relax_for_lock)
def _ol_cpu_relax_for_lock():  # type: ignore[no-untyped-def]
    return lambda: _relax()


@overload(smp_mb)
def _ol_smp_mb():  # type: ignore[no-untyped-def]
    return lambda: _mb()


@overload(smp_rmb)
def _ol_smp_rmb():  # type: ignore[no-untyped-def]
    return lambda: _rmb()


@overload(smp_wmb)
def _ol_smp_wmb():  # type: ignore[no-untyped-def]
    return lambda: _wmb()
