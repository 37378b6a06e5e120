"""Where packets go: `open_backend` turns an operator's words into a backend.

A backend here opens, configures and closes; the moving of bytes is the compiled half of the
same name in `datapath/via_*.py`, chosen by the type of the queue's record.  This module
imports no numba: the command line asks it about names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhostnet.errors import UsageError

if TYPE_CHECKING:
    from .backend import Backend

#: kind -> what the operator writes
BACKEND_SPECS = {
    "tap": "tap:NAME",
    "tap-fd": "tap-fd:N[+N...]",
    "null": "null[:checksum]",
    "loop": "loop",
    "gen": "gen:size=N",
    "port": "port:NAME",
}
#: `gen:size=imix`: seven small, four middling, one large, in an order in which none bunches.
IMIX_SIZES = (64, 594, 64, 64, 594, 64, 1514, 64, 594, 64, 64, 594)
GEN_SIZE_MIN, GEN_SIZE_MAX = 14, 65535


def check_spec(spec: str) -> tuple[str, str]:
    """Split `kind:argument`, refusing what no backend understands; nothing is opened."""
    kind, _, argument = spec.partition(":")
    forms = ", ".join(BACKEND_SPECS.values())
    if kind not in BACKEND_SPECS:
        raise UsageError(f"unknown backend {spec!r}; there are {forms}")
    if kind == "tap":
        if not argument or len(argument.encode()) > 15 or "/" in argument:
            raise UsageError(
                f"backend {spec!r}: tap:NAME takes an interface name of 1 to 15 characters"
            )
    elif kind == "tap-fd":
        if not argument or not all(part.isdecimal() for part in argument.split("+")):
            raise UsageError(
                f"backend {spec!r}: tap-fd:N takes descriptor numbers, one a queue pair, "
                "joined by '+'"
            )
    elif kind == "gen":
        key, _, value = argument.partition("=")
        if key != "size" or not (value.isdecimal() or value == "imix"):
            raise UsageError(f"backend {spec!r}: write gen:size=N, N the frame's bytes (or imix)")
        if value != "imix" and not GEN_SIZE_MIN <= int(value) <= GEN_SIZE_MAX:
            raise UsageError(
                f"backend {spec!r}: a frame has {GEN_SIZE_MIN} to {GEN_SIZE_MAX} bytes"
            )
    elif kind == "port":
        if not argument:
            raise UsageError(f"backend {spec!r}: port:NAME takes a name that two devices share")
    elif kind == "null":
        if argument not in ("", "checksum"):
            raise UsageError(f"backend {spec!r}: null takes only :checksum")
    elif argument:
        raise UsageError(f"backend {spec!r}: {kind} takes no argument")
    return kind, argument


def backend_kind(spec: str, coalesce: bool = True) -> str:
    """The kind of kernel that *spec* needs (`catalogue.kernels_for`)."""
    kind, _ = check_spec(spec)
    if kind in ("tap", "tap-fd"):
        return "coalescing-tap" if coalesce else "tap"
    return kind


def open_backend(
    spec: str, queue_pairs: int, fill_checksums: bool, coalesce: bool = True
) -> Backend:
    """Open what *spec* names, with one queue a queue pair; UsageError or HostError.

    Args:
        fill_checksums: towards the guest, complete partial checksums; with a TAP only.
        coalesce: merge a guest's TCP segments on their way into a TAP; else it means nothing.
    """
    kind, argument = check_spec(spec)
    if kind == "tap":
        from .tap import TapBackend

        return TapBackend.open(argument, queue_pairs, fill_checksums, coalesce)
    if kind == "tap-fd":
        from .tap import TapBackend

        return TapBackend.adopt(
            [int(part) for part in argument.split("+")], queue_pairs, fill_checksums, coalesce
        )
    if fill_checksums:
        raise UsageError(f"backend {spec!r}: --fill-checksums works with a TAP only")
    if kind == "null":
        from .memory_backends import NullBackend

        return NullBackend(queue_pairs, checksum=bool(argument))
    if kind == "loop":
        from .memory_backends import LoopBackend

        return LoopBackend(queue_pairs)
    if kind == "port":
        from .port import PortBackend

        return PortBackend(queue_pairs)
    from .memory_backends import GenBackend

    size = argument.partition("=")[2]
    return GenBackend(queue_pairs, *(IMIX_SIZES if size == "imix" else (int(size),)))
