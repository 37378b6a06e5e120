"""The archive is what the kernel unpacks: checked with a cpio nobody here wrote."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vhostnet.demo.initramfs import Archive, ModuleTree


def test_busybox_unpacks_what_was_packed(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")
    archive = Archive()
    archive.file("/init", b"#!/bin/sh\n")
    archive.file("/usr/bin/tool", b"\x7fELF odd length.")
    archive.symlink("/bin/other", "../usr/bin/tool")
    subprocess.run(
        [busybox, "cpio", "-i", "-d"],
        input=archive.finish(),
        cwd=tmp_path,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "usr/bin/tool").read_bytes() == b"\x7fELF odd length."
    assert (tmp_path / "bin/other").readlink() == Path("../usr/bin/tool")
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755


def _modules(root: Path, depends: dict[str, str]) -> ModuleTree:
    for name, others in depends.items():
        file = root / "kernel" / f"{name}.ko"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"\x7fELF\0license=GPL\0depends=" + others.encode() + b"\0")
    return ModuleTree(root)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    tree = _modules(tmp_path, {"top": "mid-dle,base", "mid-dle": "base", "base": "", "other": ""})
    assert tree.closure(["top", "built_in"]) == ["base", "mid_dle", "top"]
    assert tree.depends("top") == ["mid_dle", "base"]
    assert tree.path_of("mid_dle") == "kernel/mid-dle.ko"
