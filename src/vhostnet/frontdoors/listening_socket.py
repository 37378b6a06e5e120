"""A unix socket file that belongs to us: made, replaced when stale, removed at the end."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import struct

from vhostnet.errors import HostError, UsageError

# sockaddr_un.sun_path has 108 bytes, the last one is the terminating zero.
MAX_PATH_SIZE = 107

# Front-ends that connect while one is served wait here only until we refuse them.
BACKLOG = 16

UCRED = struct.Struct("iII")  # struct ucred { pid_t pid; uid_t uid; gid_t gid; };


def peer_pid(sock: socket.socket) -> int | None:
    """The process at the other end, or None if it is outside of our PID namespace."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid: int = UCRED.unpack(raw)[0]
    return pid or None


def check_path(path: str) -> None:
    """Raise UsageError for a path that can not be a socket's address."""
    size = len(os.fsencode(path))
    if not size:
        raise UsageError("the socket path is empty")
    if size > MAX_PATH_SIZE:
        raise UsageError(
            f"socket path of {size} bytes, a unix socket allows {MAX_PATH_SIZE}: {path}"
        )


def check_free(path: str) -> bool:
    """Look whether a socket can be made at `path`.

    Returns:
        Whether a stale socket lies there, to be removed first.

    Raises:
        HostError: something is there that is no socket, or somebody listens on it.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", error.errno or 0) from error
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path}: exists and is no socket; not replacing it", errno.EEXIST)
    # A blocking connect would wait for ever behind a full backlog.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
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


def group_id(name: str) -> int:
    """The number of a group given by name or number, or UsageError."""
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"no group is called {name!r}") from None


class ListeningSocket:
    """A listening, non-blocking unix socket and its file.

    Args:
        path: where; a stale socket there is replaced.
        mode: permissions of the socket file.
        gid: its group, or None for the process's own.

    Raises:
        HostError: the path is in use, or the kernel refused.
    """

    def __init__(self, path: str, mode: int, gid: int | None = None) -> None:
        self.path = path
        # Device and inode of our file, once it exists: what `close` may remove.
        self._inode: tuple[int, int] | None = None
        check_path(path)
        is_stale = check_free(path)
        self.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        step = "removing a stale socket"
        try:
            if is_stale:
                os.unlink(path)
            step = "making the socket"
            self.socket.bind(path)
            self._inode = self._stat()
            # Between bind and listen nobody can connect: no moment with wrong permissions.
            step = f"setting mode {mode:o}"
            os.chmod(path, mode)
            if gid is not None:
                step = f"giving it to group {gid}"
                os.chown(path, -1, gid)
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.close()
            raise HostError(f"{path}: {step}: {error.strerror}", error.errno or 0) from error

    @classmethod
    def adopt(cls, fd: int) -> ListeningSocket:
        """A copy of a listening socket that somebody else has made, and whose file stays."""
        self = cls.__new__(cls)
        self._inode = None
        self.socket = socket.socket(fileno=os.dup(fd))
        self.socket.setblocking(False)
        self.path = str(self.socket.getsockname())
        return self

    def close(self) -> None:
        """Stop listening and remove the file, unless somebody else has replaced it."""
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        with contextlib.suppress(OSError):
            if self._inode is not None and self._inode == self._stat():
                os.unlink(self.path)

    def _stat(self) -> tuple[int, int]:
        status = os.lstat(self.path)
        return status.st_dev, status.st_ino
