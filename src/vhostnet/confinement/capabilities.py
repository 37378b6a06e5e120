"""Capabilities: none for the sealed process, or nearly; a few for the opener."""

from __future__ import annotations

import contextlib
import errno

from . import kernel_raw as kernel
from .stage import Missing

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_NET_ADMIN, CAP_SYS_NICE = 0, 1, 3, 12, 23
CAP_KILL, CAP_SYS_PTRACE, CAP_MKNOD, CAP_CHECKPOINT_RESTORE = 5, 19, 27, 40
_NAMES = {CAP_KILL: "KILL", CAP_SYS_PTRACE: "SYS_PTRACE"}
_MAX = 64


def keep_only(mask: int = 0) -> str:
    """Drop all others from all sets, of the calling thread; Missing."""
    bounded = True
    for number in range(_MAX):
        if mask >> number & 1:
            continue
        try:
            kernel.prctl(kernel.PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the kernel's last one was before
                break
            bounded = False
    with contextlib.suppress(OSError):  # before Linux 4.3 there is no such set
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    _, permitted, _ = kernel.capabilities()
    try:
        kernel.set_capabilities(permitted & mask)
    except OSError as error:
        raise Missing(f"capset: {error.strerror}") from None
    held = ", ".join(name for number, name in _NAMES.items() if permitted & mask >> number & 1)
    # without CAP_SETPCAP; what it bounds is exec, which gains nothing any more
    return (held or "none") + ("" if bounded else "; the bounding set could not be changed")
