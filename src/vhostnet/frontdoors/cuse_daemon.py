"""The daemon behind a CUSE device: from /dev/cuse to the last open file and the node's end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vhostnet.errors import EXIT_OK, HostError, reason_of
from vhostnet.frontdoors.cuse_channel import CuseChannel
from vhostnet.frontdoors.cuse_files import CuseFiles
from vhostnet.frontdoors.event_loop import READABLE, Loop
from vhostnet.frontdoors.peer_log import PeerLog
from vhostnet.protocol.cuse_session import CuseSession

if TYPE_CHECKING:  # it imports numba
    from vhostnet.frontdoors.vhost_ioctl import VhostFile

log = logging.getLogger("vhostnet")


class Node(Protocol):
    """Where the device appears; see `cuse_node.CuseNode`."""

    path: Path

    def prepare(self) -> None: ...

    def settle(self) -> None: ...

    def dress(self) -> None: ...

    def restore(self) -> None: ...


#: The kernel asks for CUSE_INIT as soon as /dev/cuse is open.
INIT_TIMEOUT_S = 10.0
#: udev has given the node its own mode and group by then.
UDEV_S = 2.0


def serve_cuse(
    loop: Loop,
    node: Node,
    cuse: int,
    make_device: Callable[[str], VhostFile],
    on_ready: Callable[[], None],
    *,
    memory_alarm: int | None = None,
    serving: Callable[[CuseFiles], AbstractContextManager[object]] = contextlib.nullcontext,
) -> int:
    """Serve the device until a signal comes.

    Args:
        node: where it appears.
        cuse: the open /dev/cuse, ours from now on.
        make_device: an instance of the driver for each open.
        on_ready: called when the node can be opened.
        memory_alarm: an eventfd that tells when an owner's memory file was cut short.
        serving: entered before the node appears, left when all files are closed: the control
            socket.

    Returns:
        The exit status.

    Raises:
        HostError: the device or its node cannot be made, or the kernel has ended it.
    """
    name = node.path.name
    gone = False

    def connection_ended() -> None:
        nonlocal gone
        gone = True
        loop.stop()

    loop.on_signals((signal.SIGTERM, signal.SIGINT), loop.stop)
    with contextlib.ExitStack() as undo:
        files = CuseFiles(make_device, loop, PeerLog(log, name, loop.call_later))
        undo.callback(files.close)
        undo.enter_context(serving(files))
        channel = CuseChannel(cuse)
        undo.callback(channel.close)
        with _aside(node, channel):
            session = CuseSession(name, files.open, channel.send)
            undo.callback(session.close)  # before the channel: callers get their answers
            files.wake = session.wake
            channel.connect(session.receive)
            _register(channel, session, node)
            channel.watch(loop, connection_ended)
            if memory_alarm is not None:
                _watch_memory(loop, memory_alarm, files)
            loop.call_later(UDEV_S, lambda: _dress_again(node))
            on_ready()
            loop.run()
            session.close()
    if gone:
        raise HostError(f"/dev/cuse: the kernel has ended {name}'s connection")
    return EXIT_OK


@contextlib.contextmanager
def _aside(node: Node, channel: CuseChannel) -> Iterator[None]:
    """Keep what was there before aside for the length of the block."""
    node.prepare()
    try:
        yield
    finally:
        channel.close()  # the kernel takes its node away
        try:
            node.restore()
        except (OSError, HostError) as e:
            log.error("%s: what was there before is not restored: %s", node.path, reason_of(e))


def _register(channel: CuseChannel, session: CuseSession, node: Node) -> None:
    if not channel.wait_for_one(INIT_TIMEOUT_S) or not session.is_registered:
        raise HostError(f"/dev/cuse: the kernel does not ask for {node.path.name}'s registration")
    node.settle()
    log.info("%s is served", node.path)


def _dress_again(node: Node) -> None:
    try:
        node.dress()
    except (OSError, HostError) as e:
        log.warning("%s: %s", node.path, reason_of(e))


def _watch_memory(loop: Loop, alarm: int, files: CuseFiles) -> None:
    def check(_ready: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(alarm)
        files.check_memory()

    loop.watch(alarm, READABLE, check)
