"""A stock distribution kernel for the guests: fetched as a package, unpacked, never installed.

Works without root: apt downloads packages for anyone, and where the machine's package lists
are missing or stale a private copy of them is made in our cache folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vhostnet.demo.tools import cache_dir, output_of, require
from vhostnet.errors import HostError

# The small one: virtio and little else, a quarter of the full kernel's size.
META_PACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True)
class GuestKernel:
    """An unpacked kernel.

    Attributes:
        release: as in `uname -r`.
        vmlinuz: the boot image.
        modules: the folder that `/lib/modules/<release>` is.
    """

    release: str
    vmlinuz: Path
    modules: Path


def guest_kernel(
    say: Callable[[str], None] = lambda _: None, *, package: str = META_PACKAGE
) -> GuestKernel:
    """Return the kernel from the cache, or fetch it first (27 MB).

    A cached kernel is used for ever, so that a second run needs no network; remove the cache
    folder to get a newer one.

    Args:
        package: the meta package that names it; each has a place of its own in the cache.
    """
    cached = _cached(package)
    if cached is not None:
        return cached
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache_dir("guest")) as name:
        room = Path(name)
        try:
            file = _download(package, room, [])
        except HostError:
            say("refreshing a private copy of the package lists")
            file = _download(package, room, _private_lists())
        say(f"unpacking {file.name.split('_')[0]}")
        _unpack(file, room, _place(package))
    fetched = _cached(package)
    if fetched is None:
        raise HostError(f"{package}: no kernel found in the package")
    return fetched


def _place(package: str) -> Path:
    return cache_dir("guest") if package == META_PACKAGE else cache_dir("guest", package)


def _cached(package: str) -> GuestKernel | None:
    for folder in sorted(_place(package).glob("kernel-*"), reverse=True):
        release = folder.name.removeprefix("kernel-")
        return GuestKernel(release, folder / "vmlinuz", folder / "modules")
    return None


def _private_lists() -> list[str]:
    """Return apt options that use package lists of our own, freshly updated."""
    lists, archives = cache_dir("apt", "lists"), cache_dir("apt", "cache")
    options = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={archives}"]
    output_of([require("apt-get"), *options, "update"], timeout=180)
    return options


def _download(package: str, room: Path, options: list[str]) -> Path:
    """Download the kernel that *package* names into `room`; returns the file."""
    shown = output_of([require("apt-cache"), *options, "show", "--no-all-versions", package])
    match = re.search(r"^Depends:.*?\b(linux-image-[0-9][^\s,]*)", shown, re.MULTILINE)
    if match is None:
        raise HostError(f"the package lists know no {package}; is this Debian on amd64?")
    output_of([require("apt-get"), *options, "download", match[1]], timeout=300, cwd=room)
    for file in room.glob("*.deb"):
        return file
    raise HostError(f"apt-get downloaded no file for {match[1]}")


def _unpack(package: Path, room: Path, place: Path) -> None:
    """Unpack into `room`, then move the finished tree to its place in one step."""
    tree, ready = room / "tree", room / "ready"
    output_of([require("dpkg-deb"), "-x", str(package), str(tree)])
    vmlinuz = next(iter(tree.glob("boot/vmlinuz-*")), None)
    modules = next(iter([*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")]), None)
    if vmlinuz is None or modules is None:
        raise HostError(f"{package.name}: no kernel or no modules inside")
    ready.mkdir()
    shutil.move(vmlinuz, ready / "vmlinuz")
    shutil.move(modules, ready / "modules")
    wanted = place / f"kernel-{modules.name}"
    try:
        os.rename(ready, wanted)
    except OSError:
        if not wanted.exists():  # else another process was faster, and has the same
            raise
