"""The initramfs archive, and what a binary or a kernel module needs beside itself.

The archive is written here, not by cpio(1): it needs no package, no root for device nodes
(the guest's devtmpfs makes them) and gives the same bytes for the same input.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vhostnet.demo.tools import output_of, require
from vhostnet.errors import HostError

_DIRECTORY = 0o040755
_EXECUTABLE = 0o100755
_SYMLINK = 0o120777


class Archive:
    """A file tree in cpio's "newc" format, as the kernel's initramfs unpacker reads it.

    Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
    """

    def __init__(self) -> None:
        self._out = bytearray()
        self._inode = 0
        self._folders: set[PurePosixPath] = {PurePosixPath("/")}

    def folder(self, path: str) -> None:
        """Add a folder and, first, the folders above it."""
        here = PurePosixPath(path)
        if here in self._folders:
            return
        self.folder(str(here.parent))
        self._folders.add(here)
        self._entry(path, _DIRECTORY, b"")

    def file(self, path: str, content: bytes) -> None:
        """Add an (executable) file; its folders are made as needed."""
        self.folder(str(PurePosixPath(path).parent))
        self._entry(path, _EXECUTABLE, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self.folder(str(PurePosixPath(path).parent))
        self._entry(path, _SYMLINK, target.encode())

    def finish(self) -> bytes:
        """Return the whole archive."""
        self._entry("/TRAILER!!!", 0, b"")
        return bytes(self._out)

    def _entry(self, path: str, mode: int, content: bytes) -> None:
        name = path.lstrip("/").encode() + b"\0"
        self._inode += 1
        # inode, mode, uid, gid, nlink, mtime, size, dev (2), rdev (2), name size, checksum
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        self._out += b"070701" + b"".join(b"%08X" % field for field in fields)
        self._out += name
        self._pad()
        self._out += content
        self._pad()

    def _pad(self) -> None:
        self._out += b"\0" * (-len(self._out) % 4)


def shared_libraries(binary: str) -> list[str]:
    """Return the absolute paths of all libraries that `binary` loads, with the loader itself."""
    try:
        listing = output_of([require("ldd"), binary])
    except HostError:
        return []  # ldd refuses a static binary, which is the case we like best
    return sorted(set(re.findall(r"(/\S+) \(0x", listing)))


class ModuleTree:
    """The modules of one kernel, looked up by name, with what each depends on.

    The dependencies are read from the modules themselves ("depends=" in .modinfo), so neither
    depmod nor a modules.dep file, which a kernel that was never installed does not have.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = {
            file.name.split(".")[0].replace("-", "_"): file for file in root.rglob("*.ko*")
        }

    def read(self, name: str) -> bytes:
        """Return the (uncompressed) object file of a module."""
        file = self._files[name]
        raw = file.read_bytes()
        if file.suffix == ".xz":
            return lzma.decompress(raw)
        if file.suffix != ".ko":
            raise HostError(f"{file.name}: this module compression is not supported")
        return raw

    def depends(self, name: str) -> list[str]:
        """Return all modules that must be loaded before `name`, in modules.dep's order."""
        found: list[str] = []
        self._visit(name, found)
        found.remove(name)
        return found[::-1]

    def closure(self, names: Iterable[str]) -> list[str]:
        """Return `names` and all they depend on, each once, in loading order.

        A name that is no module is taken as built into the kernel and left out.
        """
        found: list[str] = []
        for name in names:
            if name in self._files:
                self._visit(name, found)
        return found

    def path_of(self, name: str) -> str:
        """Return the place of a module below the modules folder, without compression suffix."""
        relative = self._files[name].relative_to(self._root)
        return str(relative).removesuffix(".xz")

    def _visit(self, name: str, found: list[str]) -> None:
        match = re.search(rb"\0depends=([^\0]*)\0", self.read(name))
        for other in match[1].decode().split(",") if match else []:
            other_name = other.replace("-", "_")
            if other_name in self._files and other_name not in found:
                self._visit(other_name, found)
        if name not in found:
            found.append(name)
