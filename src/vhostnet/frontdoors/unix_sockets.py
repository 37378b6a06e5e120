"""Unix sockets by path: what the opener does for a sealed daemon."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import HostError

OPENER_SYSCALLS = (
    *("socket", "connect", "bind", "getsockopt", "lstat", "newfstatat"),
    *("chmod", "fchmodat", "chown", "fchownat", "unlink", "unlinkat"),
)

UCRED = struct.Struct("iII")  # struct ucred { pid_t pid; uid_t uid; gid_t gid; };


def peer_pid(sock: socket.socket) -> int | None:
    """The process at the other end, or None if it is outside of our PID namespace."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid: int = UCRED.unpack(raw)[0]
    return pid or None


@act(Policy.may_listen)
def look_for_socket(path: str) -> tuple[bool, list[int]]:
    """Whether a stale socket lies there, to be removed first.

    Raises:
        HostError: something is there that is no socket, or somebody listens on it.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False, []
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", error.errno or 0) from error
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path}: exists and is no socket; not replacing it", errno.EEXIST)
    # A blocking connect would wait for ever behind a full backlog.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True, []
        except BlockingIOError:
            raise HostError(f"{path}: in use, its owner is busy", errno.EADDRINUSE) from None
        except OSError as error:
            raise HostError(
                f"{path}: a socket is there, and whether it is in use can not be told: "
                f"{error.strerror}",
                error.errno or 0,
            ) from error
        # The credentials of a listening socket are those of the process that called listen.
        owner = peer_pid(probe)
        raise HostError(f"{path}: in use by process {owner or 'unknown'}", errno.EADDRINUSE)


@act(Policy.may_listen, Policy.has_made)
def bind_unix(path: str, mode: int, gid: int | None) -> tuple[list[int], list[int]]:
    """A socket of that name, whose owner is to call listen(2); a stale one is replaced.

    Args:
        gid: the file's group, or None for the process's own.

    Returns:
        Device and inode of its file, and the descriptor.

    Raises HostError; then nothing is left behind.
    """
    is_stale = look_for_socket(path)[0]
    inode: list[int] = []
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    step = "removing a stale socket"
    try:
        if is_stale:
            os.unlink(path)
        step = "making the socket"
        sock.bind(path)
        inode = _inode(path)
        # Before listen nobody can connect: no moment with wrong permissions.
        step = f"setting mode {mode:o}"
        os.chmod(path, mode)
        if gid is not None:
            step = f"giving it to group {gid}"
            os.chown(path, -1, gid)
    except BaseException as error:
        sock.close()
        if inode:
            remove_socket(path, *inode)
        if isinstance(error, OSError):
            raise HostError(f"{path}: {step}: {error.strerror}", error.errno or 0) from error
        raise
    return inode, [sock.detach()]


@act(Policy.may_remove)
def remove_socket(path: str, device: int, inode: int) -> tuple[None, list[int]]:
    """Remove the file, unless somebody else has replaced it."""
    with contextlib.suppress(OSError):
        if _inode(path) == [device, inode] and stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    return None, []


@act(Policy.may_connect)
def connect_unix(path: str) -> tuple[None, list[int]]:
    """A connected, non-blocking socket; OSError."""
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return None, [sock.detach()]


def _inode(path: str) -> list[int]:
    status = os.lstat(path)
    return [status.st_dev, status.st_ino]
