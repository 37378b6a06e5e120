"""The guest's shell over a serial port: for programs (`run`) and for people (`interact`).

Theory of operation: the shell reads commands from a raw, echo-less serial line that nobody
else writes to.  Each command is wrapped so that its output is followed by a marker that has
never been seen before, with the exit status; whatever precedes the marker is the output.
A command that outlives its time leaves the shell busy: the console then is unusable until the
guest is reset, and says so.
"""

from __future__ import annotations

import os
import secrets
import select
import shlex
import sys
import termios
import time
import tty
from collections.abc import Callable

from vhostnet.demo.guest_image import READY_LINE, SHELL_TTY
from vhostnet.errors import HostError

_LEAVE = b"\x1d"  # Ctrl-], as in telnet


class GuestError(HostError):
    """The guest (or QEMU) did not do what it should: it hangs, it died, it never came up."""


class Console:
    """A serial line: two pipe ends, and a way to ask whether QEMU is still there.

    Args:
        to_guest, from_guest: descriptors, which stay the caller's.
        diagnose: returns one line about why the guest may be silent.
    """

    def __init__(self, to_guest: int, from_guest: int, diagnose: Callable[[], str]) -> None:
        self._to_guest = to_guest
        self._from_guest = from_guest
        self._diagnose = diagnose
        self._buffer = b""

    def expect(self, marker: bytes, timeout: float) -> bytes:
        """Return all output up to `marker`, which is consumed.

        Raises:
            GuestError: it did not come in `timeout` seconds, or QEMU ended.
        """
        deadline = time.monotonic() + timeout
        while marker not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise GuestError(f"the guest is silent for {timeout:g} s: {self._diagnose()}")
            if select.select([self._from_guest], [], [], left)[0]:
                chunk = os.read(self._from_guest, 65536)
                if not chunk:
                    raise GuestError(f"QEMU ended: {self._diagnose()}")
                self._buffer += chunk
        before, _, self._buffer = self._buffer.partition(marker)
        return before

    def run(self, command: str, timeout: float) -> tuple[int, str]:
        """Run one shell command; returns its exit status and output (both streams)."""
        mark = f"=={secrets.token_hex(8)}=="
        # A shell of its own: a syntax error must not end the one that reads the line.
        line = f"sh -c {shlex.quote(command)} < /dev/null 2>&1; echo {mark} $?\n"
        self._send(line.encode())
        output = self.expect(mark.encode(), timeout)
        status = self.expect(b"\n", timeout)
        return int(status), output.decode(errors="replace")

    def interact(self) -> None:
        """Join the user's terminal with an interactive shell until it ends or Ctrl-].

        After Ctrl-] that shell still runs in the guest, and `run` can no longer be used.
        """
        shell = "stty -F TTY sane; exec setsid -c sh -i < TTY > TTY 2>&1\n"
        self._send(shell.replace("TTY", SHELL_TTY).encode())
        stdin = sys.stdin.fileno()
        before = termios.tcgetattr(stdin)
        tty.setraw(stdin)
        try:
            self._join(stdin)
        finally:
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)

    def _join(self, stdin: int) -> None:
        mark = READY_LINE.encode()
        tail = b""
        while True:
            ready = select.select([stdin, self._from_guest], [], [])[0]
            if stdin in ready:
                typed = os.read(stdin, 1024)
                if not typed or _LEAVE in typed:
                    return
                self._send(typed)
            if self._from_guest in ready:
                chunk = os.read(self._from_guest, 65536)
                if not chunk:
                    return
                tail = (tail + chunk)[-4096:]
                if mark in tail:
                    return
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()

    def _send(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._to_guest, data) :]
        except BrokenPipeError as err:
            raise GuestError(f"QEMU ended: {self._diagnose()}") from err
