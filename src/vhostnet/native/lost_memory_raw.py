"""Memory whose file was cut short under us: the fault costs the mapping, not the process.

Theory of operation
-------------------
Whoever shares a file with us can truncate it at any time.  Touching a page of the mapping that
is beyond the new end is then a SIGBUS, in whichever thread touches it: a worker in compiled code
without the GIL, or control in the middle of a memmove.  No check of ours can come before it.

So all shared mappings are listed in a table, and a signal handler, once installed, looks the
faulting address up there:

LISTED    `list_mapping` .. `unlist_mapping`; a fault in it maps anonymous zero pages over all of it
    Operations:  the faulting instruction is repeated and reads zeros; the alarm is raised
    Caveats:     from then on `is_lost`; what the device does with zeros means nothing, and
                 whoever hears the alarm has to end the session that shared the file
otherwise     a bug, or a signal that somebody sent: the action of before the installation is
              restored and gets it (by default the process ends, with a core dump)

The handler is machine code of Numba's `cfunc`: no interpreter, no GIL, no lock, no allocation;
loads, stores, mmap and write.  It finds the table by the name of a symbol, which, unlike an
address, survives Numba's disk cache.

Only control changes the table.  An entry counts while its `start` is not 0, which is written
last and cleared first; the handler reads `start` before and after `end`.  A pair that it reads
like this was mapped while the faulting thread's own mapping was, so it holds the faulting
address only if it is the right one: a mapping does not end while a thread can touch it.

Source: sigaction(2), mmap(2) on SIGBUS.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import signal
import threading
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, types
from numba.extending import intrinsic

from vhostnet.errors import HostError

from . import _jit  # noqa: F401  (it says where machine code is cached)
from .ordering import HANDLER_LOAD, HANDLER_STORE, smp_mb

#: vm.max_map_count is 65530, if nobody has changed it: more mappings than this there cannot be.
MAX_MAPPINGS = 1 << 16
_WORD = 8
# words of the table's head: entries ever used, alarm eventfd, address of the saved action,
# a 1 to write to the eventfd
_N, _ALARM, _SAVED, _ONE, _HEAD = 0, 1, 2, 3, 4
# words of an entry
_START, _END, _LOST, _ENTRY = 0, 1, 2, 3
_SYMBOL = "vhostnet_shared_mappings"

# siginfo_t and struct sigaction as 64-bit glibc has them
_SI_CODE, _SI_ADDR = 8, 16
_SA_FLAGS, _SIGACTION_SIZE = 136, 152
_SA_SIGINFO, _SA_ONSTACK = 4, 0x08000000
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_OVER = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
_RW = mmap.PROT_READ | mmap.PROT_WRITE
_PAGE = mmap.PAGESIZE
_SIGBUS = int(signal.SIGBUS)

_table = np.zeros(_HEAD + MAX_MAPPINGS * _ENTRY, np.int64)
_saved_action = np.zeros(_SIGACTION_SIZE, np.uint8)
_table[_ALARM] = -1
_table[_SAVED] = _saved_action.ctypes.data
_table[_ONE] = 1
binding.add_symbol(_SYMBOL, _table.ctypes.data)
_libc = ctypes.CDLL(None, use_errno=True)
_lock = threading.Lock()
_entry_of: dict[int, int] = {}
_free: list[int] = []


def _table_factory() -> Any:
    @intrinsic
    def table_hva(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            module = builder.module
            if _SYMBOL in module.globals:
                symbol = module.globals[_SYMBOL]
            else:
                symbol = ir.GlobalVariable(module, ir.IntType(8), _SYMBOL)
            return builder.ptrtoint(symbol, ir.IntType(64))

        return types.int64(), codegen

    return table_hva


_table_hva = _table_factory()
_i32, _i64 = types.int32, types.int64
_c_mmap: Any = types.ExternalFunction("mmap", _i64(_i64, _i64, _i32, _i32, _i32, _i64))
_c_write: Any = types.ExternalFunction("write", _i64(_i32, _i64, _i64))
_c_sigaction: Any = types.ExternalFunction("sigaction", _i32(_i32, _i64, _i64))
_c_raise: Any = types.ExternalFunction("raise", _i32(_i32))
_c_errno_location: Any = types.ExternalFunction("__errno_location", _i64())
_load_i32, _load_i64 = HANDLER_LOAD
_store_i32, _store_i64 = HANDLER_STORE


def _on_sigbus(signum, info, _context):  # type: ignore[no-untyped-def]
    errno_hva = _c_errno_location()
    errno_before = _load_i32(errno_hva)
    table = _table_hva()
    address = _load_i64(info + _SI_ADDR)
    is_fault = _load_i32(info + _SI_CODE) > 0  # not sent by a process
    is_mended = False
    if is_fault:
        for k in range(_load_i64(table + _N * _WORD)):
            entry = table + (_HEAD + k * _ENTRY) * _WORD
            start = _load_i64(entry + _START * _WORD)
            end = _load_i64(entry + _END * _WORD)
            is_stable = start != 0 and start == _load_i64(entry + _START * _WORD)
            if is_stable and start <= address < end:
                is_mended = _c_mmap(start, end - start, _RW, _OVER, -1, 0) == start
                if not is_mended:  # memory is accounted strictly: then only what is touched
                    page = address & -_PAGE
                    is_mended = _c_mmap(page, _PAGE, _RW, _OVER, -1, 0) == page
                _store_i64(entry + _LOST * _WORD, 1)
                _c_write(_load_i64(table + _ALARM * _WORD), table + _ONE * _WORD, _WORD)
                break
    if not is_mended:
        _c_sigaction(signum, _load_i64(table + _SAVED * _WORD), 0)
        if not is_fault:  # nothing will be repeated: send it again
            _c_raise(signum)
    _store_i32(errno_hva, errno_before)


@functools.cache
def handler_hva() -> int:
    """The handler's address: loaded from the cache, or compiled (0.2 s)."""
    compiled: Any = cfunc(types.void(_i32, _i64, _i64), cache=True)(_on_sigbus)
    handler_hva.keep = compiled  # type: ignore[attr-defined]
    return int(compiled.address)


def install() -> int:
    """Handle SIGBUS from now on, in the whole process; harmless the second time.

    Returns:
        An eventfd, readable when a mapping was lost; ours, it stays open.

    Threads that touch shared memory must not block SIGBUS.  Raises HostError.
    """
    alarm = int(_table[_ALARM])
    if alarm >= 0:
        return alarm
    action = np.zeros(_SIGACTION_SIZE, np.uint8)
    action[:_WORD].view(np.int64)[0] = handler_hva()
    action[_SA_FLAGS : _SA_FLAGS + 4].view(np.int32)[0] = _SA_SIGINFO | _SA_ONSTACK
    _table[_ALARM] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    new, old = ctypes.c_void_p(action.ctypes.data), ctypes.c_void_p(_saved_action.ctypes.data)
    if _libc.sigaction(_SIGBUS, None, old) < 0 or _libc.sigaction(_SIGBUS, new, None) < 0:
        number = ctypes.get_errno()
        os.close(int(_table[_ALARM]))
        _table[_ALARM] = -1
        raise HostError(f"sigaction(SIGBUS): {os.strerror(number)}", number)
    return int(_table[_ALARM])


def list_mapping(hva: int, size: int) -> None:
    """Cover a mapping; raises HostError ENOMEM if there are too many."""
    with _lock:
        n = int(_table[_N])
        if not _free and n == MAX_MAPPINGS:
            raise HostError(f"more than {MAX_MAPPINGS} shared mappings", errno.ENOMEM)
        k = _free.pop() if _free else n
        at = _HEAD + k * _ENTRY
        _table[at + _END] = hva + size
        _table[at + _LOST] = 0
        smp_mb()  # `end` must be visible before `start`: from here on the entry counts
        _table[at + _START] = hva
        _table[_N] = max(n, k + 1)
        _entry_of[hva] = k


def unlist_mapping(hva: int) -> None:
    """Forget a mapping that nobody touches any more; before it is unmapped."""
    with _lock:
        k = _entry_of.pop(hva)
        _table[_HEAD + k * _ENTRY + _START] = 0
        smp_mb()  # before the range is unmapped, and another entry may have it
        _free.append(k)


def is_lost(hva: int) -> bool:
    """Whether zeros have taken the place of a mapping that is listed."""
    k = _entry_of.get(hva)
    return k is not None and bool(_table[_HEAD + k * _ENTRY + _LOST])
