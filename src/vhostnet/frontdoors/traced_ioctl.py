"""An open file of the character device that writes down its calls, as strace would.

::

    # vhostnet trace 1: ioctl
    2026-11-22T17:03:22.123 file1 GET_FEATURES() = 0x...<MRG_RXBUF|...> <0.000012>
    2026-11-22T17:03:22.124 file1 SET_VRING_KICK(index=0, fd=24<anon_inode:[eventfd]>) = 0 <...>
    2026-11-22T17:03:22.125 file1 NET_SET_BACKEND(index=0, fd=9<dev/net/tun>) = -1 EFAULT (...)

What a call read of its caller's memory stands in the brackets, what it wrote there behind "=".
Through CUSE a call whose argument is not here yet is run again: only the last round is told.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence

from vhostnet.device.kernel_verbs import KernelVerbs
from vhostnet.errors import PeerError
from vhostnet.frontdoors.trace_file import TraceFile, file_of
from vhostnet.frontdoors.vhost_ioctl import Caller, VhostFile
from vhostnet.protocol.spelling import spell_form
from vhostnet.uapi import vhost
from vhostnet.uapi.vhost_user import NOTHING
from vhostnet.uapi.wire import Form

_MESSAGE = Form(vhost.MSG)


class _Listener:
    """A caller; keeps what was read and written at the argument, and the file behind its fd."""

    def __init__(self, caller: Caller, argument: int) -> None:
        self._caller = caller
        self._argument = argument
        self._read: dict[int, bytes] = {}
        self._written: dict[int, bytes] = {}
        self.file = ""

    @property
    def pid(self) -> int:
        return self._caller.pid

    @property
    def taken(self) -> bytes:
        """The bytes that were read, from the argument on."""
        return _joined(self._read)

    @property
    def given(self) -> bytes:
        """Those that were written; before them what they follow."""
        return _joined({**self._read, **self._written}) if self._written else b""

    def read(self, address: int, size: int) -> bytes:
        data = self._caller.read(address, size)
        at = address - self._argument
        if len(self._read.get(at, b"")) < size:  # a ring's index is read before the rest
            self._read[at] = data
        return data

    def write(self, address: int, data: bytes) -> None:
        self._caller.write(address, data)
        self._written[address - self._argument] = data

    def descriptor(self, fd: int) -> int:
        ours = self._caller.descriptor(fd)
        self.file = file_of(ours)
        return ours


class TracedFile(VhostFile):
    """As `VhostFile`.

    Args:
        trace: is told each call when it has been answered.
        who: what it calls the file.
    """

    def __init__(self, verbs: KernelVerbs, trace: TraceFile, who: str) -> None:
        super().__init__(verbs)
        self._trace = trace
        self._who = who
        self._tell("open()")

    def ioctl(self, caller: Caller, number: int, argument: int) -> int:
        """As `VhostFile.ioctl`."""
        listener = _Listener(caller, argument)
        begin = time.perf_counter()
        try:
            result = super().ioctl(listener, number, argument)
        except PeerError as error:
            self._tell(f"{_spell(number, listener)} = {_failure(error)}", begin)
            raise
        form = vhost.IOCTL_FORMS.get(number, Form(NOTHING))
        answer = spell_form(form, listener.given) or str(result)
        self._tell(f"{_spell(number, listener)} = {answer}", begin)
        return result

    def write(self, data: bytes) -> int:
        """As `VhostFile.write`."""
        begin = time.perf_counter()
        call = f"write({spell_form(_MESSAGE, data)})"
        try:
            result = super().write(data)
        except PeerError as error:
            self._tell(f"{call} = {_failure(error)}", begin)
            raise
        self._tell(f"{call} = {result}", begin)
        return result

    def read(self, size: int) -> bytes:
        """As `VhostFile.read`; that there is nothing to read is not told."""
        begin = time.perf_counter()
        data = super().read(size)
        self._tell(f"read({size}) = {spell_form(_MESSAGE, data)}", begin)
        return data

    def unread(self, messages: Sequence[bytes]) -> None:
        """As `VhostFile.unread`."""
        if messages:
            self._tell(f"unread() = {len(messages)} messages")
        super().unread(messages)

    def release(self) -> None:
        """As `VhostFile.release`."""
        self._tell("close()")
        super().release()

    def owner_is_gone(self) -> None:
        """As `VhostFile.owner_is_gone`."""
        self._tell("+++ the owner's process has ended +++")
        super().owner_is_gone()

    def _tell(self, text: str, begin: float | None = None) -> None:
        took = "" if begin is None else f" <{time.perf_counter() - begin:.6f}>"
        self._trace.tell(self._who, text + took)


def _spell(number: int, listener: _Listener) -> str:
    name = vhost.IOCTL_NAMES.get(number, f"ioctl_{number:#x}")
    form = vhost.IOCTL_FORMS.get(number, Form(NOTHING))
    remarks = {"fd": listener.file} if listener.file else None
    return f"{name}({spell_form(form, listener.taken, remarks)})"


def _failure(error: PeerError) -> str:
    return f"-1 {errno.errorcode.get(error.errno, error.errno)} ({error})"


def _joined(pieces: dict[int, bytes]) -> bytes:
    """The bytes from the argument on, as far as they are one piece."""
    data = b""
    for at, piece in sorted(pieces.items()):
        if at > len(data):
            break
        data = data[:at] + piece
    return data
