"""`GuestVM`: a running guest.

Boot, run commands over a serial line, drive QEMU by QMP, end or kill it.  A context manager;
QEMU never outlives this process, whatever it dies of.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vhostnet.demo.console import Console, GuestError
from vhostnet.demo.guest_image import READY_LINE, GuestImage
from vhostnet.demo.machine import Machine, Nic, command_line
from vhostnet.demo.qmp import Qmp
from vhostnet.demo.tools import end, spawn
from vhostnet.errors import HostError

__all__ = ["GuestError", "GuestVM"]

#: Bounds against hanging.  An emulated guest boots in three seconds where nothing else runs, but
#: `vhostnet run` may have to compile the data path before QEMU begins.
BOOT_S, PATIENCE_S = 240.0, 60.0


class GuestVM:
    """One guest, from power-on to its end.

    Args:
        image: kernel and initramfs.
        machine: memory, CPUs, accelerator.
        nics: the network cards, eth0 first.
        prefix: where QEMU runs (`netns.Namespace.prefix`).

    Attributes:
        folder: holds console.log (the kernel's messages), qemu.log and the QMP socket; it is
            removed with the guest.
    """

    def __init__(
        self,
        image: GuestImage,
        machine: Machine,
        nics: Sequence[Nic] = (),
        *,
        prefix: Sequence[str] = (),
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="vhostnet-vm-")
        self.folder = Path(self._temporary.name)
        self.machine = machine
        self._qmp: Qmp | None = None
        try:
            argv = command_line(image, machine, tuple(nics))
            argv += ["-serial", f"file:{self.folder / 'console.log'}"]
            argv += ["-chardev", "stdio,id=shell,signal=off", "-serial", "chardev:shell"]
            argv += ["-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"]
            with (self.folder / "qemu.log").open("wb") as log:
                self.process = spawn(
                    argv,
                    prefix=prefix,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
        except BaseException:
            self._temporary.cleanup()
            raise
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._console = Console(
            self.process.stdin.fileno(), self.process.stdout.fileno(), self.diagnose
        )

    def wait_for_shell(self, timeout: float = BOOT_S) -> None:
        """Wait until the guest has booted, at power-on or after a reset.

        Raises:
            GuestError: it did not within `timeout` seconds, or QEMU ended.
        """
        self._console.expect(READY_LINE.encode() + b"\n", timeout)

    def run(self, command: str, timeout: float = PATIENCE_S) -> tuple[int, str]:
        """Run a shell command in the guest.

        Returns:
            Its exit status and what it printed, both streams together.

        Raises:
            GuestError: no answer in time, or QEMU ended.
        """
        return self._console.run(command, timeout)

    def check(self, command: str, timeout: float = PATIENCE_S) -> str:
        """Run a shell command that must succeed; returns what it printed.

        Raises:
            GuestError: its exit status is not 0; the message has its output.
        """
        status, output = self.run(command, timeout)
        if status != 0:
            raise GuestError(f"in the guest: {command}: status {status}: {output.strip()}")
        return output

    def add_address(self, index: int, address: str, *, mtu: int | None = None) -> None:
        """Bring up the guest's eth<index> with `address` (with prefix length)."""
        device = f"eth{index}"
        if mtu is not None:
            self.check(f"ip link set {device} mtu {mtu}")
        self.check(f"ip addr add {address} dev {device}; ip link set {device} up")

    def wait_until(
        self, command: str, timeout: float = PATIENCE_S, *, takes: float = PATIENCE_S
    ) -> None:
        """Run a shell command in the guest again and again until it succeeds.

        Args:
            takes: the most that one attempt may take, seconds.

        Raises:
            GuestError: it still failed after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            status, output = self.run(command, takes)
            if status == 0:
                return
            if time.monotonic() > deadline:
                raise GuestError(f"in the guest, for {timeout:g} s: {command}: {output.strip()}")
            time.sleep(0.1)

    def interact(self) -> None:
        """Give the guest's shell to the user's terminal until they leave it."""
        self._console.interact()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command, such as qmp("set_link", name="net0", up=False).

        Names go to QEMU as they are; one with a hyphen needs qmp("object-add", **{"qom-type": x}).
        """
        if self._qmp is None:
            self._qmp = Qmp(self.folder / "qmp")
        return self._qmp.call(command, **arguments)

    def console_log(self) -> str:
        """Return what the guest's kernel has printed."""
        return _text(self.folder / "console.log")

    def qemu_log(self) -> str:
        """Return what QEMU itself has said."""
        return _text(self.folder / "qemu.log")

    def diagnose(self) -> str:
        """Return one line on the guest's state, for messages about its silence."""
        status = self.process.poll()
        last = "; ".join(self.qemu_log().strip().splitlines()[-2:])
        kernel = "; ".join(self.console_log().strip().splitlines()[-2:])
        state = "QEMU runs" if status is None else f"QEMU ended with status {status}"
        return f"{state} (QEMU: {last or 'nothing'}) (kernel: {kernel or 'nothing'})"

    def kill(self) -> None:
        """End QEMU as a crash would: SIGKILL, no good-byes on any socket."""
        self.process.kill()
        self._clear()

    def stop(self) -> None:
        """End QEMU in an orderly way; kill it if it does not answer."""
        if self.process.poll() is None:
            try:
                self.qmp("quit")
                self.process.wait(5.0)
            except (HostError, subprocess.TimeoutExpired):
                self.process.kill()
        self._clear()

    def _clear(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        end(self.process)
        self._temporary.cleanup()

    def __enter__(self) -> GuestVM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
