"""What goes on behind one /dev/cuse: from CUSE_INIT to the last open file.  Sans-IO.

Theory of operation
-------------------
Requests come one by one (`receive`), each is answered at once by one reply (`send`), with one
exception: a read(2) that has to wait is *parked* until there is something (`wake`), its caller
gets a signal (INTERRUPT), or waiting has lost its sense (EBADFD).

A caller stays in its system call until it is answered, even if it is killed; so its thread id
stays its own while its request is handled here.

A file that was polled is known to the kernel by a number of the kernel's (`kh`); each time
something can be read, who polls it is woken.  Whether that is still so is for the kernel's next
POLL to ask.

An INTERRUPT for a request that is not parked is for one that has been answered meanwhile.

Source: Linux fs/fuse/cuse.c, file.c, dev.c; drivers/vhost/vhost.c vhost_chr_read_iter().
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from vhostnet.errors import PeerError
from vhostnet.uapi import fuse
from vhostnet.uapi.fuse import (
    CuseInitIn,
    InterruptIn,
    IoctlIn,
    OpenIn,
    PollIn,
    ReadIn,
    ReleaseIn,
    WriteIn,
)

from . import cuse_codec as codec
from .cuse_ioctl import IoctlArgument, NeedsMemory

POLL_READABLE = fuse.POLLIN | fuse.POLLRDNORM


class OpenFile(Protocol):
    """One open of the device, as the session needs it.  Every call may raise PeerError."""

    def ioctl(self, tid: int, memory: IoctlArgument, number: int, argument: int) -> int:
        """ioctl(2) by thread *tid*; may raise NeedsMemory and is then called again."""

    def read(self, size: int) -> bytes:
        """Without waiting: EAGAIN."""

    def would_sleep_for_ever(self) -> bool:
        """Whether a read that waits is to be refused, EBADFD."""

    def write(self, data: bytes) -> int:
        """How many bytes were taken; may be more than there were."""

    def readable(self) -> bool:
        """poll(2)."""

    def release(self) -> None:
        """Nobody has it open any more."""


@dataclass(slots=True)
class _Open:
    """One open file: parked reads by their unique number, and its name in the kernel."""

    file: OpenFile
    parked: dict[int, int] = field(default_factory=dict)
    kh: int | None = None


class CuseSession:
    """The device behind one /dev/cuse.

    Args:
        name: of the node, below /dev.
        open_file: (fh, tid of the opener) -> the device's file; PeerError.
        send: takes one message for the kernel.

    Attributes:
        is_registered: CUSE_INIT was answered.
    """

    def __init__(
        self, name: str, open_file: Callable[[int, int], OpenFile], send: Callable[[bytes], None]
    ) -> None:
        self.is_registered = False
        self._name = name
        self._open_file = open_file
        self._send = send
        self._files: dict[int, _Open] = {}
        self._next_fh = 1
        self._verbs: dict[int, Callable[[codec.Request], bytes | None]] = {
            fuse.CUSE_INIT: self._init,
            fuse.FUSE_OPEN: self._open,
            fuse.FUSE_RELEASE: self._release,
            fuse.FUSE_READ: self._read,
            fuse.FUSE_WRITE: self._write,
            fuse.FUSE_IOCTL: self._ioctl,
            fuse.FUSE_POLL: self._poll,
            fuse.FUSE_INTERRUPT: self._interrupt,
            fuse.FUSE_DESTROY: self._destroy,
        }

    @property
    def n_open(self) -> int:
        """Files that are open."""
        return len(self._files)

    def receive(self, message: bytes) -> None:
        """Handle what one read(2) of /dev/cuse brought.

        Raises:
            PeerError: it is no request, or the kernel's protocol is another one.
        """
        request = codec.decode(message)
        verb = self._verbs.get(request.opcode)
        if verb is None or (not self.is_registered and request.opcode != fuse.CUSE_INIT):
            self._send(codec.encode_error(request.unique, errno.ENOSYS))
            return
        try:
            reply = verb(request)
        except PeerError as e:
            reply = codec.encode_error(request.unique, e.errno)
            if e.errno == errno.EPROTO:
                self._send(reply)
                raise
        if reply is not None:
            self._send(reply)

    def wake(self, fh: int) -> None:
        """Something can be read from file *fh*: answer who waits."""
        opened = self._files.get(fh)
        if opened is None:  # closed meanwhile
            return
        self._serve_parked(opened)
        if opened.kh is not None and opened.file.readable():
            self._send(codec.encode_poll_wakeup(opened.kh))

    def close(self) -> None:
        """Release all files; what is parked the kernel ends with the connection."""
        files, self._files = self._files, {}
        for opened in files.values():
            opened.file.release()

    # --- one a request ------------------------------------------------------------------------

    def _init(self, request: codec.Request) -> bytes:
        assert isinstance(request.body, CuseInitIn)
        if self.is_registered:
            raise PeerError("a second CUSE_INIT")
        reply = codec.encode_init(request.unique, request.body, self._name)
        self.is_registered = True
        return reply

    def _open(self, request: codec.Request) -> bytes:
        assert isinstance(request.body, OpenIn)
        fh = self._next_fh
        self._files[fh] = _Open(self._open_file(fh, request.tid))
        self._next_fh += 1
        return codec.encode_open(request.unique, fh)

    def _opened(self, fh: int) -> _Open:
        try:
            return self._files[fh]
        except KeyError:
            raise PeerError(f"there is no open file {fh}", errno.EBADF) from None

    def _release(self, request: codec.Request) -> bytes:
        assert isinstance(request.body, ReleaseIn)
        opened = self._opened(request.body.fh)
        del self._files[request.body.fh]
        for unique in opened.parked:
            self._send(codec.encode_error(unique, errno.EBADF))
        opened.file.release()
        return codec.encode_reply(request.unique)

    def _read(self, request: codec.Request) -> bytes | None:
        body = request.body
        assert isinstance(body, ReadIn)
        opened = self._opened(body.fh)
        if body.flags & fuse.O_NONBLOCK:
            return codec.encode_reply(request.unique, opened.file.read(body.size))
        opened.parked[request.unique] = body.size
        self._serve_parked(opened)
        return None

    def _serve_parked(self, opened: _Open) -> None:
        """Answer the parked reads that can be, the oldest first."""
        for unique, size in list(opened.parked.items()):
            try:
                reply = codec.encode_reply(unique, opened.file.read(size))
            except PeerError as e:
                code = e.errno
                if code == errno.EAGAIN:
                    if not opened.file.would_sleep_for_ever():
                        return
                    code = errno.EBADFD
                reply = codec.encode_error(unique, code)
            del opened.parked[unique]
            self._send(reply)

    def _interrupt(self, request: codec.Request) -> None:
        """No reply of its own."""
        assert isinstance(request.body, InterruptIn)
        unique = request.body.unique
        for opened in self._files.values():
            if opened.parked.pop(unique, None) is not None:
                self._send(codec.encode_error(unique, errno.EINTR))

    def _write(self, request: codec.Request) -> bytes:
        assert isinstance(request.body, WriteIn)
        taken = self._opened(request.body.fh).file.write(request.data)
        return codec.encode_write(request.unique, min(taken, len(request.data)))

    def _ioctl(self, request: codec.Request) -> bytes:
        body = request.body
        assert isinstance(body, IoctlIn)
        opened = self._opened(body.fh)
        memory = IoctlArgument(body.cmd, body.arg, request.data, body.out_size)
        try:
            result = opened.file.ioctl(request.tid, memory, body.cmd, body.arg)
        except NeedsMemory as needs:
            return codec.encode_retry(request.unique, needs.into_us, needs.from_us)
        finally:
            self._serve_parked(opened)  # RESET_OWNER wakes sleepers
        return codec.encode_ioctl(request.unique, result, memory.written)

    def _poll(self, request: codec.Request) -> bytes:
        assert isinstance(request.body, PollIn)
        opened = self._opened(request.body.fh)
        if request.body.flags & fuse.FUSE_POLL_SCHEDULE_NOTIFY:
            opened.kh = request.body.kh
        return codec.encode_poll(request.unique, POLL_READABLE if opened.file.readable() else 0)

    def _destroy(self, request: codec.Request) -> bytes:
        self.close()
        return codec.encode_reply(request.unique)
