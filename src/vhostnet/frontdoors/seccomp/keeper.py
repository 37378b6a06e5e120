"""What answers when the supervisor has died: a small process that does nothing until then.

Without it every trapped call of the tree would wait, or fail, for ever.  With it all calls go
on, but those about the device: ENODEV, unless they take a ring's backend away.  It is forked
before anything large is loaded, and shares with the supervisor the memory in which the call lies
that was being answered.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import socket

from vhostnet.errors import HostError, PeerError
from vhostnet.frontdoors.foreign_process import CallerIsGone, ForeignThread
from vhostnet.uapi.vhost import VHOST_NET_SET_BACKEND, VRING_FILE

from .abi import Architecture
from .listener_raw import Listener, Notification
from .path_calls import ARGUMENTS, OPENS, PathCalls, as_int

#: What the supervisor sends at the end, so that we know that it has not died.
FAREWELL = b"end"
LISTENER = b"listener"


def keep(
    channel: socket.socket, slot: mmap.mmap, architecture: Architecture, paths: PathCalls
) -> None:
    """Wait for the supervisor's end, or for its death and then for the tree's end.

    Args:
        channel: from the supervisor: the listener, then nothing, then FAREWELL or its death.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    message, fds, _, _ = socket.recv_fds(channel, 64, 1)
    if message != LISTENER or not fds:
        return
    if channel.recv(64) == FAREWELL:
        return
    serve(Listener(fds[0], slot), architecture, paths)


def serve(listener: Listener, architecture: Architecture, paths: PathCalls) -> None:
    """Answer until nobody is left."""
    left = listener.unanswered()
    if left is not None:
        _answer(listener, architecture, paths, left)
    poll = select.poll()
    poll.register(listener.fd, select.POLLIN)
    while not any(events & select.POLLHUP for _, events in poll.poll()):
        call = listener.receive()
        if call is not None:
            _answer(listener, architecture, paths, call)


def _answer(
    listener: Listener, architecture: Architecture, paths: PathCalls, call: Notification
) -> None:
    with (
        contextlib.suppress(CallerIsGone, HostError),
        ForeignThread(call.tid, lambda: listener.still_waits(call.id)) as thread,
    ):
        if _is_ours(architecture.names[call.nr], paths, thread, call):
            listener.answer(call.id, 0 if _takes_away(thread, call) else -errno.ENODEV)
        else:
            listener.proceed(call.id)


def _takes_away(thread: ForeignThread, call: Notification) -> bool:
    """Whether the call takes a backend away: that has happened already.  QEMU insists on it."""
    if call.args[1] & 0xFFFFFFFF != VHOST_NET_SET_BACKEND:
        return False
    try:
        return VRING_FILE.unpack(thread.read(call.args[2], VRING_FILE.size)).fd == -1
    except CallerIsGone:
        raise
    except PeerError:
        return False


def _is_ours(name: str, paths: PathCalls, thread: ForeignThread, call: Notification) -> bool:
    if name in ARGUMENTS:
        return name in OPENS and paths.names_node(thread, name, call.args)
    if name != "ioctl":
        return False  # a socket whose other end is gone knows what to say
    try:
        kind = os.readlink(f"/proc/{thread.tid}/fd/{as_int(call.args[0])}")
    except OSError:
        return False
    # All others have their own word for an ioctl of vhost's, and no socket has any.
    return kind.startswith("socket:") and call.args[1] >> 8 & 0xFF == 0xAF
