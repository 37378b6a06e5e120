"""The root file system of a machine that Debian's systemd runs, from packages; never installed.

systemd, udev and what they depend on are downloaded, unpacked and kept, as the demo's kernel is.
Our daemon is where an administrator would put it: below /opt, which the units may read (they see
no home).  Python, the packages that it needs and our sources are this machine's, bound there.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import llvmlite

import vhostnet
from vhostnet.demo.guest_host import PROCESSOR
from vhostnet.demo.guest_kernel import _private_lists
from vhostnet.demo.tools import cache_dir, output_of, require
from vhostnet.errors import HostError

#: With their dependencies; the libraries are Python's and numpy's.
PACKAGES = (
    "systemd",
    "udev",
    "apparmor",
    "base-passwd",
    "iproute2",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
)
_NEEDED = ("numba", "llvmlite", "numpy", "prometheus_client")
_SITE = Path(llvmlite.__file__).resolve().parents[1]
#: Place in the machine -> place here.
BOUND = {
    "/opt/python": Path(sys.base_prefix).resolve(),
    "/opt/vhostnet/src": Path(vhostnet.__file__).resolve().parents[1],
    "/opt/vhostnet/tests": Path(__file__).resolve().parents[1],
    **{
        f"/opt/vhostnet/packages/{folder.name}": folder
        for name in _NEEDED
        for folder in (_SITE / name, _SITE / f"{name}.libs")
        if folder.is_dir()
    },
}
#: -S: what this machine's `site` does is none of that one's business.
INTERPRETER = f"/opt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]} -S"
ENVIRONMENT = {
    "PYTHONPATH": "/opt/vhostnet/src:/opt/vhostnet/packages:/opt/vhostnet/tests",
    "LD_LIBRARY_PATH": "/opt/python/lib",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def debian_root() -> Path:
    """The unpacked packages, from the cache or fetched first (25 MB).

    Raises:
        HostError: they cannot be fetched.
    """
    place = cache_dir("guest") / ("systemd-" + "-".join(PACKAGES))
    if place.exists():
        return place
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache_dir("guest")) as name:
        room = Path(name)
        try:
            _download(room, [])
        except HostError:
            _download(room, _private_lists())
        tree = room / "tree"
        for package in sorted(room.glob("archives/*.deb")):
            output_of([require("dpkg-deb"), "-x", str(package), str(tree)])
        for file in ("passwd", "group"):
            shutil.copy(tree / f"usr/share/base-passwd/{file}.master", tree / "etc" / file)
        try:
            os.rename(tree, place)
        except OSError:
            if not place.exists():  # else another process was faster, and has the same
                raise
    return place


def _download(room: Path, options: list[str]) -> None:
    """Download the packages with all that they depend on: as apt sees it, nothing is installed."""
    (room / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    (room / "status").touch()
    mine = [f"Dir::State::status={room / 'status'}", f"Dir::Cache={room}"]
    mine += ["Debug::NoLocking=1", "APT::Sandbox::User=root"]
    for one in mine:
        options = [*options, "-o", one]
    words = ["-y", "-qq", "--no-install-recommends", "--download-only", "install", *PACKAGES]
    output_of([require("apt-get"), *options, *words], timeout=300)


def python(*words: str) -> str:
    """The shell command that runs our Python in the machine."""
    assigned = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    return f"{assigned} {INTERPRETER} {shlex.join(words)}"


def binding(root: str = "", here: str = "") -> list[str]:
    """Shell commands that put this machine's folders where they belong.

    Args:
        root: of the machine.
        here: this machine's.
    """
    lines = []
    for inside, outside in BOUND.items():
        source, target = shlex.quote(f"{here}{outside}"), shlex.quote(f"{root}{inside}")
        lines += [f"mkdir -p {target}", f"mount --bind {source} {target}"]
    return lines


def warm_for_the_units(processor: dict[str, str] = PROCESSOR) -> Path:
    """Compile what a card on a TAP needs, half a minute if it is new; the cache's folder.

    The cache knows sources by their paths, so this runs in a mount namespace where they have
    those that they have in the machine.

    Args:
        processor: what numba is told to compile for; the one that is emulated.

    Raises:
        HostError: there are no namespaces, or it failed.
    """
    program = (
        "from vhostnet.datapath import catalogue\n"
        "catalogue.warm(catalogue.kernels_for('coalescing-tap'))\n"
        "print(catalogue.CACHE_DIR)\n"
    )
    lines = ["set -e", "mount -t tmpfs none /opt", *binding(), python("-c", program)]
    done = subprocess.run(
        [require("unshare"), "--user", "--map-root-user", "--mount", "sh", "-c", "\n".join(lines)],
        env={
            **os.environ,
            **processor,
            "CACHE_DIRECTORY": str(cache_dir("guest", "systemd-kernels")),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise HostError(f"kernels for the units: {' '.join(done.stderr.splitlines()[-1:])}")
    return Path(done.stdout.strip())
