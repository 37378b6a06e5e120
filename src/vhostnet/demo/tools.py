"""Find the host's programs, and start them so that none outlives us.

Not here: what the programs are for.  Everyone in this package starts processes through
`spawn` or `output_of`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from vhostnet.errors import HostError

# The Debian package each program comes from: a message that names it can be acted upon.
PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "dnsmasq": "dnsmasq-base",
    "dpdk-testpmd": "dpdk-dev",
    "dpkg-deb": "dpkg",
    "ethtool": "ethtool",
    "gcc": "gcc",
    "ip": "iproute2",
    "iperf3": "iperf3",
    "ldd": "libc-bin",
    "nsenter": "util-linux",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "stdbuf": "coreutils",
    "taskset": "util-linux",
    "unshare": "util-linux",
}

# Without root, PATH often has no sbin, and `ip` and `ethtool` live there.
_EXTRA_PATH = ":/usr/local/sbin:/usr/sbin:/sbin"


def require(tool: str) -> str:
    """Return the path of `tool`.

    Raises:
        HostError: it is not installed; the message names the package.
    """
    path = shutil.which(tool, path=os.environ.get("PATH", os.defpath) + _EXTRA_PATH)
    if path is None:
        raise HostError(f"{tool} is missing: install the package {PACKAGES[tool]}")
    return path


def cache_dir(*parts: str) -> Path:
    """Return (and make) a folder below the user's cache folder for vhostnet."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as err:
        raise HostError("this user has no home: set XDG_CACHE_HOME to a folder") from err
    path = Path(base, "vhostnet", *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        why = f"cannot write the cache folder {path}: {err.strerror}"
        raise HostError(why, err.errno or 0) from err
    return path


def die_with_parent(argv: Sequence[str]) -> list[str]:
    """Wrap a command so that the kernel kills it when we die, whatever we die of.

    PR_SET_PDEATHSIG is set by a small program that then becomes the command; a `preexec_fn`
    would run Python code between fork and exec, which is unsafe beside threads.  The signal
    is tied to the *thread* that starts the command: start long-lived ones from the main thread.
    """
    return [require("setpriv"), "--pdeathsig", "KILL", "--", *argv]


def spawn(
    argv: Sequence[str],
    *,
    prefix: Sequence[str] = (),
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = subprocess.STDOUT,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a long-lived child that dies with us, deaf to the terminal's Ctrl-C.

    `prefix` moves it elsewhere first (see `netns.Namespace.prefix`).  Its own session keeps
    Ctrl-C for us alone, so that we can end the children in an orderly way.
    """
    return subprocess.Popen(
        [*prefix, *die_with_parent(argv)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def run_short(
    argv: Sequence[str],
    *,
    prefix: Sequence[str] = (),
    timeout: float = 60.0,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a short command to its end, whatever its exit status.

    Raises:
        HostError: it took longer than `timeout` seconds.
    """
    try:
        return subprocess.run(
            [*prefix, *die_with_parent(argv)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            cwd=cwd,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as err:
        raise HostError(f"{_name_of(argv)}: no end after {timeout:g} s") from err


def output_of(
    argv: Sequence[str],
    *,
    prefix: Sequence[str] = (),
    timeout: float = 60.0,
    cwd: Path | None = None,
) -> str:
    """Run a short command and return what it printed (stdout only).

    Raises:
        HostError: it failed or took too long; the message carries its last line.
    """
    done = run_short(argv, prefix=prefix, timeout=timeout, cwd=cwd)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit status {done.returncode}"
        raise HostError(f"{_name_of(argv)}: {why}")
    return done.stdout.decode(errors="replace")


def end(process: subprocess.Popen[bytes], grace: float = 3.0) -> int:
    """End a child: SIGTERM, then SIGKILL after `grace` seconds.  Returns its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    return process.wait()


def _name_of(argv: Sequence[str]) -> str:
    return " ".join([os.path.basename(argv[0]), *argv[1:]])
