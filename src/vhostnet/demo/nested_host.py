"""A VM in the part of the host, running: our Python in it, and `vhostnet chardev`.

What such a VM is made of, and how its programs come to their files: `guest_host`.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from vhostnet.demo.accel import accelerator
from vhostnet.demo.guest_host import (
    LOAD,
    MOUNT,
    ROOT,
    host_guest_image,
    on_host_files,
    python_environment,
)
from vhostnet.demo.guest_image import guest_image
from vhostnet.demo.machine import Machine
from vhostnet.demo.qemu import GuestVM
from vhostnet.demo.tools import require
from vhostnet.errors import HostError

#: Importing numba takes a processor that is emulated the better part of a minute.
PATIENCE_S = 600.0
#: One for a worker, one for who keeps it busy.
N_PROCESSORS = 2
MEMORY_MIB = 2048


class NestedHost:
    """The VM, from power-on to its end; a context manager.

    Args:
        folder: takes its initramfs.
        modules: are loaded, of `guest_host.MODULES`.
        sources: folders that our Python imports from, beside its own.

    Attributes:
        guest: for shell commands.

    Raises:
        HostError: a program is missing, or it does not come up.
    """

    def __init__(
        self, folder: Path, modules: Sequence[str], *, sources: Sequence[Path] = ()
    ) -> None:
        self._sources = [str(path) for path in sources]
        image = host_guest_image(folder / "initramfs.cpio")
        machine = Machine(
            accelerator(guest_image()), memory_mib=MEMORY_MIB, smp=N_PROCESSORS, shares_root=True
        )
        self.guest = GuestVM(image, machine)
        try:
            self.guest.wait_for_shell()
            self.guest.check(MOUNT)
            for module in modules:
                self.guest.check(f"{LOAD} {module}")
            self.guest.check("mkdir -p /dev/pts /dev/shm")
        except BaseException:
            self.guest.stop()
            raise

    def __enter__(self) -> NestedHost:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.guest.stop()

    def command(self, *words: str) -> str:
        """The shell command that runs our Python in the VM, with these words."""
        environment = python_environment()
        environment["PYTHONPATH"] = ":".join([environment["PYTHONPATH"], *self._sources])
        return on_host_files([sys.executable, *words], **environment)

    def run(self, *words: str, timeout: float = PATIENCE_S) -> tuple[int, str]:
        """Run it; (exit status, output)."""
        return self.guest.run(self.command(*words), timeout)

    def tool(self, name: str, *arguments: str) -> str:
        """Run a program of this machine in the VM; returns what it printed.

        Raises:
            HostError: it is not installed here, or failed there.
        """
        return self.guest.check(on_host_files([require(name), *arguments]))


class Chardev:
    """`vhostnet chardev` in the VM, which has the module `cuse`; its node can be opened.

    Args:
        options: of its command line.

    Attributes:
        pid: in the VM.

    Raises:
        HostError: it ended before it was ready; the message has its last words.
    """

    def __init__(self, host: NestedHost, *options: str) -> None:
        self.host = host
        self._log, self._status, pid = (
            f"{ROOT}/run/chardev.{what}" for what in ("log", "status", "pid")
        )
        # `sh -c` says what its pid is, and then is the daemon
        inner = f"echo $$ > {pid}; exec {host.command('-m', 'vhostnet', 'chardev', *options)}"
        host.guest.check(f"rm -f {self._log} {self._status} {pid}")
        host.guest.check(
            f"(sh -c {shlex.quote(inner)} > {self._log} 2>&1; echo $? > {self._status}) &"
        )
        deadline = time.monotonic() + PATIENCE_S
        while "is served" not in self.log():
            self.check_running()
            if time.monotonic() > deadline:
                raise HostError(f"vhostnet chardev: not ready after {PATIENCE_S:g} s")
            time.sleep(0.5)
        self.pid = int(host.guest.check(f"cat {pid}"))

    def log(self) -> str:
        """What it has printed."""
        return self.host.guest.run(f"cat {self._log} 2>/dev/null")[1]

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        said = self.host.guest.run(f"cat {self._status} 2>/dev/null")[1].strip()
        return int(said) if said else None

    def check_running(self) -> None:
        """Raise HostError with its last words if it has ended."""
        status = self.status()
        if status is not None:
            last = " ".join(self.log().strip().splitlines()[-1:])
            raise HostError(f"vhostnet chardev ended with status {status}: {last}")

    def end(self, signal: str = "TERM") -> int:
        """Send it a signal; returns its exit status.

        Raises:
            HostError: it goes on.
        """
        self.host.guest.check(f"kill -{signal} {self.pid}")
        deadline = time.monotonic() + PATIENCE_S
        while (status := self.status()) is None:
            if time.monotonic() > deadline:
                raise HostError(f"vhostnet chardev does not end: {self.log()[-400:]}")
            time.sleep(0.2)
        return status
