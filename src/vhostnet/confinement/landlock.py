"""Landlock: no path can be opened, changed or executed any more, whatever the root is.

Rules follow descriptors and not paths, so what was opened before, or is passed by the opener,
works.
"""

from __future__ import annotations

import errno

from . import kernel_raw as kernel
from .stage import Missing

#: ABI -> number of rights on files that it knows (struct landlock_ruleset_attr, handled_access_fs).
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
_NET_SINCE, _NET = 4, 0b11  # binding and connecting TCP
_SCOPED_SINCE, _SCOPED = 6, 0b11  # abstract sockets of others, signals to others


def refuse_all() -> str:
    """Put the calling thread, and those that it makes, under a rule set without rules; Missing."""
    try:
        abi = kernel.landlock_abi()
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise Missing("this kernel has no landlock (Linux 5.13 has)") from None
        if error.errno == errno.EOPNOTSUPP:
            raise Missing("landlock is not among this kernel's lsm=") from None
        raise Missing(f"landlock: {error.strerror}") from None
    rights = max(n for since, n in _FILE_RIGHTS.items() if since <= abi)
    net = _NET if abi >= _NET_SINCE else 0
    scoped = _SCOPED if abi >= _SCOPED_SINCE else 0
    size = 24 if scoped else 16 if net else 8
    try:
        kernel.landlock_refuse((1 << rights) - 1, net, scoped, size)
    except OSError as error:
        raise Missing(f"landlock: {error.strerror}") from None
    about = ["files", *(["TCP"] if net else []), *(["abstract sockets, signals"] if scoped else [])]
    return f"{', '.join(about)} (ABI {abi})"
