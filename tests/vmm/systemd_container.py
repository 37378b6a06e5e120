"""The machine of `systemd_machine` without a processor of its own: namespaces, this kernel.

An emulated processor is some twenty times slower; how long things take is seen here.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from systemd_files import files, links
from systemd_root import binding, debian_root, warm_for_the_units

from vhostnet.demo.guest_host import PROCESSOR
from vhostnet.demo.qemu import GuestError
from vhostnet.demo.tools import require, run_short, spawn
from vhostnet.errors import HostError

BOOT_S = 120.0
_NODES = {"null": "1 3", "zero": "1 5", "full": "1 7", "random": "1 8", "urandom": "1 9"}
_TUN = "10 200"
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Container:
    """systemd in namespaces.  Use as a context manager.

    Args:
        watchdog_s: see `systemd_files.files`.

    Raises:
        HostError: we may not, or this machine has no second version of cgroups.
    """

    def __init__(self, *, watchdog_s: int) -> None:
        if os.geteuid() != 0:
            raise HostError("needs root")
        self._stack = contextlib.ExitStack()
        try:
            self._start(watchdog_s)
        except BaseException:
            self.stop()
            raise

    def _start(self, watchdog_s: int) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="systemd-")))
        store = folder / "store"
        for path, (mode, content) in files(watchdog_s, PROCESSOR).items():
            place = Path(f"{store}{path}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
            place.chmod(mode)
        for path, target in links().items():
            Path(f"{store}{path}").symlink_to(target)
        self._cgroup = _cgroup2() / f"vhostnet-test-{os.getpid()}"
        self._cgroup.mkdir()
        self._stack.callback(_remove, self._cgroup)
        script = "\n".join(["set -e", *_lines(folder, store)])
        into = f"echo $$ > {self._cgroup}/cgroup.procs; exec {require('unshare')} "
        self._log = folder / "log"
        with self._log.open("wb") as log:
            words = ["sh", "-c", into + shlex.join([*_NAMESPACES, "sh", "-c", script])]
            self._process = spawn(words, stdout=log)
        self._stack.callback(self._end)
        deadline = time.monotonic() + BOOT_S
        while not self._is_up():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise HostError(f"systemd does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.1)

    def _is_up(self) -> bool:
        with contextlib.suppress(GuestError):
            return self.run("systemctl is-system-running")[1].strip() in ("running", "degraded")
        return False

    def _first(self) -> int | None:
        """systemd's pid here."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = children.read_text().split() if children.exists() else []
        return int(found[0]) if found else None

    def run(self, command: str, timeout: float = 60.0) -> tuple[int, str]:
        """As `GuestVM.run`."""
        first = self._first()
        if first is None:
            raise GuestError("systemd has ended, or not begun")
        inside = f"export PATH={_PATH}; cd /; {command}"
        words = [require("nsenter"), f"--target={first}", "--all", "--root", "sh", "-c", inside]
        try:
            done = run_short(words, timeout=timeout)
        except HostError as error:
            raise GuestError(str(error)) from error
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

    def check(self, command: str, timeout: float = 60.0) -> str:
        """As `GuestVM.check`."""
        status, output = self.run(command, timeout)
        if status != 0:
            raise GuestError(f"{command}: status {status}: {output.strip()}")
        return output

    def seen_from_here(self, path: Path) -> Path:
        """Where a file of its is, outside of it."""
        return Path(f"/proc/{self._first()}/root{path}")

    def stop(self) -> None:
        """End it, with all that runs in it."""
        self._stack.close()

    def _end(self) -> None:
        first = self._first()
        if first is not None:
            os.kill(first, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        self._process.kill()
        self._process.wait()


def _lines(folder: Path, store: Path) -> list[str]:
    """The shell commands that put the root together and give it to systemd."""
    new, over = folder / "new", folder / "over"
    cache = f"{new}/var/cache/vhostnet/vhostnet/kernels"
    busybox = require("busybox")
    lines = [
        "mount --make-rprivate /",
        f"mkdir -p {new} {over}",
        f"mount -t tmpfs over {over}",
        f"mkdir {over}/upper {over}/work",
        f"mount -t overlay -o lowerdir={debian_root()},upperdir={over}/upper,workdir={over}/work "
        f"overlay {new}",
        *binding(str(new)),
        f"mkdir -p {cache} {new}/proc {new}/sys {new}/dev {new}/run {new}/tmp",
        f"cp -a {warm_for_the_units()} {cache}/",
        f"cp {busybox} {new}/bin/busybox",
        f"chroot {new} /bin/busybox --install -s /bin",
        f"cp -a {store}/. {new}/",
        f"mount -t proc proc {new}/proc",
        f"mount --bind {new}/proc/sys {new}/proc/sys",
        f"mount -o remount,ro,bind {new}/proc/sys",
        f"mount -t sysfs -o ro sys {new}/sys",
        f"mount -t cgroup2 cgroup {new}/sys/fs/cgroup",
        f"mount -t tmpfs -o mode=755 dev {new}/dev",
        f"mkdir {new}/dev/net {new}/dev/pts {new}/dev/shm",
        f"mknod -m 666 {new}/dev/net/tun c {_TUN}",
    ]
    lines += [f"mknod -m 666 {new}/dev/{name} c {number}" for name, number in _NODES.items()]
    lines += [
        f"mount -t devpts -o newinstance,ptmxmode=0666 pts {new}/dev/pts",
        f"cd {new}",
        "pivot_root . .",
        "umount -l .",
        f"exec chroot . /bin/busybox env -i container=other PATH={_PATH} /lib/systemd/systemd",
    ]
    return lines


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(","):
            return Path(place)
    raise HostError("there is no cgroup2 that may be written")


def _remove(cgroup: Path) -> None:
    """Remove the (empty) tree; what was killed may take a moment to leave it."""
    deadline = time.monotonic() + 60.0
    while cgroup.exists():
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
