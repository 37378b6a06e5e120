"""A guest in the part of the host: this machine's own files and programs, another kernel.

What needs root, devices and modules that this machine does not have is run in there: the root
file system is ours, read-only over 9p, with a tmpfs over it.  The distribution's full kernel is
needed for that (the small one has no 9p).

Kernels of the data path are compiled here, for a processor that has nothing special, since a
guest without KVM would compile for minutes and what it calls its processor is another one.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import vhostnet
from vhostnet.demo.guest_image import GuestImage, guest_image
from vhostnet.demo.guest_kernel import guest_kernel
from vhostnet.demo.initramfs import Archive, ModuleTree
from vhostnet.demo.tools import cache_dir
from vhostnet.errors import HostError

PACKAGE = "linux-image-amd64"
#: What the guest can load; nothing but the files' own is loaded at boot.
MODULES = ("9pnet_virtio", "9p", "overlay", "tun", "bridge", "cuse", "vhost_net")
_FILES = ("9pnet_virtio", "9p", "overlay")
#: Where the machine's files are in the guest.
ROOT = "/host"
#: Mounts the files; loads a module with what it needs.
MOUNT, LOAD = "/sbin/mount-host-files", "/sbin/load"
#: numba's name for a processor with the features of 2003.
PROCESSOR = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}

_MOUNT = f"""#!/bin/sh
set -e
for module in {" ".join(_FILES)}; do {LOAD} $module; done
mkdir -p /lower /over {ROOT}
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower
mount -t tmpfs over /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/lower,upperdir=/over/upper,workdir=/over/work overlay {ROOT}
for folder in proc sys dev; do mount --bind /$folder {ROOT}/$folder; done
mount -t tmpfs run {ROOT}/run
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
"""


def host_guest_image(place: Path, say: Callable[[str], None] = lambda _: None) -> GuestImage:
    """Make the image; the guest's `Machine` must have `shares_root`.

    Args:
        place: the initramfs to write.

    Raises:
        HostError: a program is missing, or the kernel cannot be fetched.
    """
    kernel = guest_kernel(say, package=PACKAGE)
    base = guest_image(say, kernel=kernel)
    tree = ModuleTree(kernel.modules)
    ours = Archive()
    lines = ["#!/bin/sh", 'case "$1" in']
    for name in MODULES:
        needed = tree.closure([name])
        lines.append(f"{name}) names='{' '.join(needed)}' ;;")
        for module in needed:
            ours.file(f"/lib/host-modules/{module}.ko", tree.read(module))
    lines += ["*) exit 1 ;;", "esac", "for name in $names; do"]
    lines += ['grep -q "^$name " /proc/modules || insmod /lib/host-modules/$name.ko || exit 1']
    ours.file(LOAD, "\n".join([*lines, "done", ""]).encode())
    ours.file(MOUNT, _MOUNT.encode())
    with place.open("wb") as file:
        file.write(base.initramfs.read_bytes())
        file.write(ours.finish())
    return GuestImage(kernel, place)


def on_host_files(words: Sequence[str], **environment: str) -> str:
    """The shell command that runs a program of this machine in the guest."""
    assigned = {"PATH": os.environ.get("PATH", os.defpath), **environment}
    pairs = [f"{name}={value}" for name, value in assigned.items()]
    return shlex.join(["chroot", ROOT, "env", *pairs, *words])


def python_environment() -> dict[str, str]:
    """Variables with which our programs find their sources and machine code in the guest."""
    sources = Path(vhostnet.__file__).parents[1]
    return {"PYTHONPATH": str(sources), "XDG_CACHE_HOME": str(_cache_home()), **PROCESSOR}


def _cache_home() -> Path:
    return cache_dir("any-processor")


def warm_for_any_processor(*, packed_rings: bool = False) -> None:
    """Compile the character device's kernels for the guest, here; seconds each if they are new.

    Raises:
        HostError: it failed.
    """
    names = f"catalogue.kernels_for_character_device(packed_rings={packed_rings})"
    program = f"from vhostnet.datapath import catalogue; catalogue.warm({names})"
    run_for_any_processor("-c", program)


def run_for_any_processor(*words: str) -> None:
    """Run our Python here as a guest would: what it compiles, the guest has in its cache.

    Raises:
        HostError: it failed.
    """
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, **python_environment()},
            stdout=said,
            stderr=said,
            check=False,
        )
        if done.returncode != 0:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise HostError(f"compiling for any processor: {' '.join(last)}")
