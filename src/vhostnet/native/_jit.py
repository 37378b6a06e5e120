"""The one place that knows how kernels are compiled, cached and chosen.

Theory of operation
-------------------
`kernel` is `numba.njit` with the project's flags.  Numba's own cache looks only at the file
that a function stands in: an edit of a constant or a callee in another file is not noticed
(numba#1833).  So the cache folder is named after a digest of every source file of the
package and of the versions that made the machine code; any edit starts an empty folder.

`family` makes one name with several bodies, chosen by the *type of record* in the first
argument: `backend_send(bk, ...)` is the TAP's when `bk` is a TAP record and the null
backend's when it is a NULL record.  Numba resolves the choice when it compiles, so a kernel
holds exactly one body and no branch; the interpreter (`NUMBA_DISABLE_JIT=1`) looks it up by
dtype at each call.  This, not closures, is how ring format, access to memory and backend
become parameters of the data path: a kernel that closes over another jitted function is
compiled anew in every process (numba#6264), one chosen by type is cached.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import llvmlite
import numba
import numpy as np
from numba import njit, types
from numba.extending import overload, register_jitable

from vhostnet.errors import HostError

P = ParamSpec("P")
R = TypeVar("R")


def _source_digest() -> str:
    h = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {np.__version__}".encode())
    root = Path(__file__).parent.parent
    rooms = (root / "native", root / "datapath", root / "uapi", root.parent / "vhostnet_frontend")
    for room in rooms:
        for path in sorted(room.rglob("*.py")):
            h.update(path.name.encode())
            h.update(path.read_bytes())
    return h.hexdigest()[:16]


def cache_root() -> Path:
    """The folder above all digests: $CACHE_DIRECTORY (systemd), $XDG_CACHE_HOME or ~/.cache.

    Raises:
        HostError: there is none of these.
    """
    base = os.environ.get("CACHE_DIRECTORY") or os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "vhostnet" / "kernels"
    except RuntimeError:
        raise HostError(
            "this user has no home for the kernels' cache: set XDG_CACHE_HOME to a folder"
        ) from None


def _made(folder: Path) -> Path:
    """Make a folder of our own; HostError says what to do where we may not."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise HostError(
            f"the kernels' cache {folder} cannot be written: set XDG_CACHE_HOME (or "
            "CACHE_DIRECTORY) to a folder that can"
        )
    return folder


_config: Any = numba.config
JIT_ENABLED = not _config.DISABLE_JIT
CACHE_DIR = cache_root() / (_source_digest() + ("-boundscheck" if _config.BOUNDSCHECK else ""))
if JIT_ENABLED:
    _made(CACHE_DIR)
_config.CACHE_DIR = str(CACHE_DIR)


#: Kernels allocate nothing, and Python holds what they are given while they run.  Without counting
#: references (two atomic operations a call with an array) 64-byte packets are 1.3 times as fast.
_KERNEL: Any = {"nogil": True, "cache": True, "boundscheck": None, "_nrt": False}
_HELPER: Any = {"_nrt": False}
_HOT: Any = {"_nrt": False, "forceinline": True}


def kernel(fn: Callable[P, R]) -> Callable[P, R]:
    """Compile *fn* without the GIL and keep the machine code on disk."""
    decorate: Any = njit
    compiled: Callable[P, R] = decorate(**_KERNEL)(fn)
    return compiled


def helper(fn: Callable[P, R]) -> Callable[P, R]:
    """Let kernels call *fn*: it becomes part of their machine code, with no cache entry."""
    callable_from_kernels: Callable[P, R] = register_jitable(**_HELPER)(fn)
    return callable_from_kernels


def hot(fn: Callable[P, R]) -> Callable[P, R]:
    """As `helper`, for what runs once a packet or more often: always inlined.

    The compiler by itself calls all but the smallest functions, and an array is seven words of
    arguments: on the way of a 64-byte packet that was half of the time.
    """
    callable_from_kernels: Callable[P, R] = register_jitable(**_HOT)(fn)
    return callable_from_kernels


class Family:
    """The bodies of one name; see the module's theory of operation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bodies: dict[np.dtype[Any], Callable[..., Any]] = {}
        self.hot: set[np.dtype[Any]] = set()

    def add(self, dtype: np.dtype[Any], fn: Callable[..., Any], *, is_hot: bool) -> None:
        """Register a plain function as the body for records of *dtype*."""
        if dtype in self.bodies:
            raise ValueError(f"{self.name} has a body for this record already")
        self.bodies[dtype] = fn
        if is_hot:
            self.hot.add(dtype)

    def for_numba(self, first: Any, *, is_hot: bool) -> Callable[..., Any] | None:
        """The body for a Numba type, or None (Numba then reports a typing error)."""
        record = first.dtype if isinstance(first, types.Array) else first
        for dtype, fn in self.bodies.items():
            if numba.from_dtype(dtype) == record and (dtype in self.hot) == is_hot:
                return fn
        return None


def family(stub: Callable[P, R]) -> Callable[P, R]:
    """Turn *stub* (a documented signature) into a name whose body the first record chooses.

    Bodies are added with `@implements(stub, DTYPE)`.
    """
    members = Family(stub.__name__)

    @functools.wraps(stub)
    def choose(*args: Any) -> Any:
        return members.bodies[args[0].dtype](*args)

    choose.family = members  # type: ignore[attr-defined]

    def resolve(*args):  # type: ignore[no-untyped-def]
        return members.for_numba(args[0], is_hot=False)

    def resolve_hot(*args):  # type: ignore[no-untyped-def]
        return members.for_numba(args[0], is_hot=True)

    overload(choose, strict=False, jit_options=_HELPER)(resolve)
    overload(choose, strict=False, jit_options=_HOT)(resolve_hot)
    return choose  # type: ignore[return-value]


def implements(
    name: Callable[..., Any], *dtypes: np.dtype[Any], is_hot: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as *name*'s body for records of any of *dtypes*.

    Args:
        is_hot: it is compiled as a `hot` function is, else as a `helper`.
    """
    members: Family = name.family  # type: ignore[attr-defined]

    def register(fn: Callable[P, R]) -> Callable[P, R]:
        for dtype in dtypes:
            members.add(dtype, fn, is_hot=is_hot)
        return fn

    return register
