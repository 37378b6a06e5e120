"""A guest that has python3 and the kernel's own vhost_net, to run a program of ours in.

The initramfs is the plain guest's with two archives behind it (the kernel unpacks them one
after the other): python3 and the modules, cached like the plain one, and the caller's files.
Python comes from the distribution's packages, unpacked and never installed; where this
machine's Python is the same version, its modules go in compiled, because a guest without KVM
would take seconds to compile them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from vhostnet.demo.guest_image import GuestImage, guest_image
from vhostnet.demo.guest_kernel import GuestKernel, _private_lists
from vhostnet.demo.initramfs import Archive, ModuleTree, shared_libraries
from vhostnet.demo.tools import cache_dir, output_of, require
from vhostnet.errors import HostError

#: The modules of a host that serves guests, in loading order, and of its networks.
HOST_MODULES = ("tun", "vhost_iotlb", "vhost", "vhost_net", "bridge")
#: Packages, "python3.X" put in for {}.
PACKAGES = ("{}-minimal", "lib{}-minimal", "lib{}-stdlib")
#: Below it are the caller's files.
FOLDER = "/opt"
#: Loads the modules; makes /dev/vhost-net and /dev/net/tun appear.
LOAD = "/sbin/load-vhost"
_UNUSED = ("test", "lib2to3", "idlelib", "ensurepip", "distutils", "pydoc_data", "unittest")


def python_guest_image(
    files: Mapping[str, bytes],
    place: Path,
    say: Callable[[str], None] = lambda _: None,
    *,
    kernel: GuestKernel | None = None,
) -> GuestImage:
    """Make the image of a guest with python3 and *files*.

    Args:
        files: path below FOLDER -> content; a module goes in compiled too.
        place: the initramfs to write.
        kernel: another one than the distribution's usual.

    Raises:
        HostError: a program is missing or a package cannot be fetched.
    """
    base = guest_image(say, kernel=kernel)
    ours = Archive()
    for name, content in sorted(files.items()):
        ours.file(f"{FOLDER}/{name}", content)
        if name.endswith(".py"):
            _add_compiled(ours, f"{FOLDER}/{name}", content, sys.version_info[:2])
    with place.open("wb") as file:
        file.write(base.initramfs.read_bytes())
        file.write(_python_archive(base.kernel, say).read_bytes())
        file.write(ours.finish())
    return GuestImage(base.kernel, place)


def _python_archive(kernel: GuestKernel, say: Callable[[str], None]) -> Path:
    """The archive with python3 and the modules, from the cache or built."""
    recipe = f"{kernel.release} {HOST_MODULES} {PACKAGES} {_UNUSED} {sys.version_info[:2]}"
    recipe += Path(__file__).read_text()
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    place = cache_dir("guest") / f"python-{key}.cpio"
    if place.exists():
        return place
    say("building the guest's python3")
    with tempfile.TemporaryDirectory(prefix="python-", dir=cache_dir("guest")) as name:
        room = Path(name)
        archive = Archive()
        _add_python(archive, _fetch(room, say))
        _add_modules(archive, kernel)
        (room / "made").write_bytes(archive.finish())
        os.rename(room / "made", place)
    return place


def _fetch(room: Path, say: Callable[[str], None]) -> Path:
    """Download and unpack python3's packages below *room*; returns the tree."""
    options: list[str] = []
    try:
        _download(room, options)
    except HostError:
        say("refreshing a private copy of the package lists")
        _download(room, _private_lists())
    tree = room / "tree"
    for package in sorted(room.glob("*.deb")):
        output_of([require("dpkg-deb"), "-x", str(package), str(tree)])
    return tree


def _download(room: Path, options: list[str]) -> None:
    shown = output_of(
        [require("apt-cache"), *options, "show", "--no-all-versions", "python3-minimal"]
    )
    match = re.search(r"^(?:Pre-)?Depends:.*?\b(python3\.[0-9]+)-minimal", shown, re.MULTILINE)
    if match is None:
        raise HostError("the package lists know no python3-minimal")
    names = [name.format(match[1]) for name in PACKAGES]
    output_of([require("apt-get"), *options, "download", *names], timeout=300, cwd=room)


def _add_python(archive: Archive, tree: Path) -> None:
    """Put the interpreter, its modules and the libraries they load where they belong."""
    program = next(tree.glob("usr/bin/python3.*"))
    version = tuple(int(part) for part in program.name.removeprefix("python").split("."))
    archive.file(f"/usr/bin/{program.name}", program.read_bytes())
    archive.symlink("/usr/bin/python3", program.name)
    libraries = set(shared_libraries(str(program)))
    library = tree / "usr/lib" / program.name
    for path in sorted(library.rglob("*")):
        inside = path.relative_to(library)
        if inside.parts[0] in _UNUSED or not path.is_file():
            continue
        place = f"/usr/lib/{program.name}/{inside}"
        content = path.read_bytes()
        archive.file(place, content)
        if path.suffix == ".py":
            _add_compiled(archive, place, content, version)
        elif path.suffix == ".so" and "_ctypes." in path.name:
            libraries |= set(shared_libraries(str(path)))
    for name in sorted(libraries):
        archive.file(name, Path(name).read_bytes())


def _add_compiled(archive: Archive, place: str, source: bytes, version: tuple[int, ...]) -> None:
    """Add a module's bytecode, if this interpreter's is the guest's."""
    if version[:2] != sys.version_info[:2]:
        return
    with tempfile.TemporaryDirectory() as room:
        file, made = Path(room, "module.py"), Path(room, "module.pyc")
        file.write_bytes(source)
        try:
            py_compile.compile(
                str(file),
                str(made),
                dfile=place,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError:
            return
        archive.file(importlib.util.cache_from_source(place), made.read_bytes())


def _add_modules(archive: Archive, kernel: GuestKernel) -> None:
    """Add the modules of a host, and a script that loads them in order."""
    tree = ModuleTree(kernel.modules)
    lines = ["#!/bin/sh"]
    for name in tree.closure(HOST_MODULES):
        place = f"/lib/host-modules/{name}.ko"
        archive.file(place, tree.read(name))
        lines.append(f"grep -q '^{name} ' /proc/modules || insmod {place} || exit 1")
    archive.file(LOAD, "\n".join([*lines, ""]).encode())
