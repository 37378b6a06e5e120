"""Namespaces of our own, and a root with nothing in it.

What is gone: every path (but /proc/self/fd), the host's interfaces and abstract sockets, System V
objects, and the meaning of capabilities outside. What was opened before stays usable: a TAP belongs
to the network that it was opened in.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from . import kernel_raw as kernel
from .stage import Missing

_OTHERS = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
_HARMLESS = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
#: One of these there always is; what is mounted there is seen by nobody else.
_MOUNT_POINTS = ("/tmp", "/run", "/var", "/dev", "/mnt")


def leave_host() -> str:
    """Enter new namespaces, user too if that is possible; Missing."""
    threads = _threads()
    uid, gid = os.geteuid(), os.getegid()
    names = "user, mount, network, ipc, uts"
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | _OTHERS)
    except OSError as error:
        if error.errno == errno.EINVAL and threads > 1:
            raise Missing(f"{threads - 1} threads of libraries run already") from None
        names = names.removeprefix("user, ")
        try:
            kernel.unshare(_OTHERS)
        except OSError:
            raise Missing(f"unshare: {error.strerror}: no user namespaces here") from None
    else:
        _map_ourselves(uid, gid)
    try:
        _empty_root()
    except OSError as error:
        raise Missing(f"{names} hold; the root is not empty: {error.strerror}") from None
    return f"{names}; an empty root"


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # without /proc it is not told; then the kernel's answer has to do
        return 1


def _map_ourselves(uid: int, gid: int) -> None:
    """Our ids stay what they were; all others are nobody's."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        # without a map our ids look like nobody's, which nothing here minds
        with contextlib.suppress(OSError):
            Path(f"/proc/self/{name}").write_text(text)


def _empty_root() -> None:
    kernel.mount("none", "/", "none", kernel.MS_REC | kernel.MS_PRIVATE)
    root = next(path for path in _MOUNT_POINTS if os.path.isdir(path))
    kernel.mount("vhostnet", root, "tmpfs", _HARMLESS, "size=4k,nr_inodes=8,mode=755")
    fds = f"{root}/proc/self/fd"
    os.makedirs(fds)
    kernel.mount(f"/proc/{os.getpid()}/fd", fds, "none", kernel.MS_BIND)
    again = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | _HARMLESS
    kernel.mount("none", root, "none", again)
    os.chdir(root)
    kernel.root_is_here()
