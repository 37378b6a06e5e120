"""A VM with Debian's kernel and without its vhost_net, in which `vhostnet chardev` runs."""

from __future__ import annotations

import base64
import json
import shlex
import sys
import time
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

from vhostnet.datapath import catalogue
from vhostnet.demo.accel import accelerator
from vhostnet.demo.guest_host import (
    LOAD,
    MOUNT,
    ROOT,
    host_guest_image,
    on_host_files,
    python_environment,
    warm_for_any_processor,
)
from vhostnet.demo.guest_image import guest_image
from vhostnet.demo.machine import Machine
from vhostnet.demo.qemu import GuestVM

TESTS = Path(__file__).parents[1]
NODE = "/dev/vhost-net"
#: Importing numba takes a processor that is emulated the better part of a minute.
START_S = 600.0


class Bed:
    """The VM.

    Attributes:
        guest: for shell commands.
    """

    def __init__(self, folder: Path, *, memory_mib: int = 2048) -> None:
        warm_for_any_processor(catalogue.kernels_for_character_device())
        image = host_guest_image(folder / "initramfs.cpio")
        machine = Machine(
            accelerator(guest_image()), memory_mib=memory_mib, smp=2, shares_root=True
        )
        self.guest = GuestVM(image, machine)
        self.guest.wait_for_shell()
        self.guest.check(f"{MOUNT} && {LOAD} cuse && {LOAD} tun && {LOAD} bridge")
        self.guest.check("mkdir -p /dev/pts /dev/shm")

    def __enter__(self) -> Bed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.guest.stop()

    def command(self, *words: str, paths: tuple[Path, ...] = ()) -> str:
        """The shell command that runs our Python in the VM, with these words."""
        environment = python_environment()
        sources = [environment["PYTHONPATH"], str(TESTS), *map(str, paths)]
        environment["PYTHONPATH"] = ":".join(sources)
        return on_host_files([sys.executable, *words], **environment)

    def run(self, *words: str, timeout: float = START_S) -> tuple[int, str]:
        """Run it; (exit status, output)."""
        return self.guest.run(self.command(*words), timeout)

    def result(self, *words: str, timeout: float = START_S) -> Any:
        """What a session of ours printed behind "RESULT "."""
        status, output = self.run(*words, timeout=timeout)
        assert status == 0, output[-3000:]
        line = next(x for x in output.splitlines() if x.startswith("RESULT "))[7:]
        if not line.startswith("{"):
            line = zlib.decompress(base64.b64decode(line)).decode()
        return json.loads(line)


class Chardev:
    """`vhostnet chardev`, running in the VM."""

    def __init__(self, bed: Bed, *options: str) -> None:
        self.bed = bed
        self._log, self._status, self._pid = (
            f"{ROOT}/run/chardev.{what}" for what in ("log", "status", "pid")
        )
        # `sh -c` says what its pid is, and then is the daemon
        words = ["-m", "vhostnet", "chardev", "--log-level", "debug", *options]
        inner = f"echo $$ > {self._pid}; exec {bed.command(*words)}"
        bed.guest.check(f"rm -f {self._log} {self._status} {self._pid}")
        bed.guest.check(
            f"(sh -c {shlex.quote(inner)} > {self._log} 2>&1; echo $? > {self._status}) &"
        )
        deadline = time.monotonic() + START_S
        while "is served" not in self.log():
            assert self.status() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.5)
        self.pid = int(bed.guest.check(f"cat {self._pid}"))

    def log(self) -> str:
        """What it has printed."""
        return self.bed.guest.run(f"cat {self._log} 2>/dev/null")[1]

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        said = self.bed.guest.run(f"cat {self._status} 2>/dev/null")[1].strip()
        return int(said) if said else None

    def n_descriptors(self) -> int:
        """How many it has open."""
        return int(self.bed.guest.check(f"ls /proc/{self.pid}/fd | wc -l"))

    def n_threads(self) -> int:
        """How many it has."""
        return int(self.bed.guest.check(f"ls /proc/{self.pid}/task | wc -l"))

    def end(self, signal: str = "TERM") -> int:
        """Send it a signal; returns its exit status."""
        self.bed.guest.check(f"kill -{signal} {self.pid}")
        deadline = time.monotonic() + START_S
        while (status := self.status()) is None:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)
        return status
