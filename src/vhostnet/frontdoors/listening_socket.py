"""A unix socket file that belongs to us: made, replaced when stale, removed at the end."""

from __future__ import annotations

import contextlib
import grp
import os
import socket

from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import HostError, UsageError

from .unix_sockets import bind_unix, look_for_socket, remove_socket

SYSCALLS = ("listen", "getsockname", "getsockopt")

# Front-ends that connect while one is served wait here only until we refuse them.
BACKLOG = 16

# sockaddr_un.sun_path has 108 bytes, the last one is the terminating zero.
MAX_PATH_SIZE = 107


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
    return look_for_socket(path)[0]


def group_id(name: str) -> int:
    """The number of a group given by name or number, or UsageError."""
    return int(name) if name.isdecimal() else find_group(name)[0]


@act(Policy.may_look_up)
def find_group(name: str) -> tuple[int, list[int]]:
    """The number of a group, or UsageError."""
    try:
        return grp.getgrnam(name).gr_gid, []
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
        check_path(path)
        inode, [fd] = bind_unix(path, mode, gid)
        # Device and inode of our file: what `close` may remove.
        self._inode: list[int] | None = inode
        self.socket = socket.socket(fileno=fd)
        self.socket.setblocking(False)
        # By ourselves: a listening socket's credentials are those of who calls this.
        try:
            self.socket.listen(BACKLOG)
        except OSError as error:
            self.close()
            raise HostError(f"{path}: listening: {error.strerror}", error.errno or 0) from error

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
        if self._inode is not None:
            with contextlib.suppress(HostError):  # of an opener that has gone
                remove_socket(self.path, *self._inode)
