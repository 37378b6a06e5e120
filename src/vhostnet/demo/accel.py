"""Whether KVM really works here.

On nested hosts /dev/kvm may open, and KVM_CREATE_VM succeed, and a stock kernel still dies of an
emulation failure or hangs at full load without a word.  So the only question that counts is put:
does our guest come up?  The answer is kept, because a "no" costs twenty seconds.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.machine import Machine, qemu_version
from vhostnet.demo.qemu import GuestError, GuestVM
from vhostnet.demo.tools import cache_dir

TRIAL_S = 20.0
KVM_NODE = "/dev/kvm"


def accelerator(image: GuestImage, say: Callable[[str], None] = lambda _: None) -> str:
    """Return "kvm" or "tcg", whichever boots our guest on this machine."""
    if not os.access(KVM_NODE, os.R_OK | os.W_OK):
        return "tcg"
    known = _read()
    key = _key()
    if key not in known:
        say(f"finding out whether KVM works (once, at most {TRIAL_S:g} s)")
        known[key] = "kvm" if _boots(image) else "tcg"
        _answers().write_text(json.dumps(known, indent=2) + "\n")
    return known[key]


def _boots(image: GuestImage) -> bool:
    try:
        with GuestVM(image, Machine(accel="kvm")) as guest:
            guest.wait_for_shell(TRIAL_S)
            return guest.run("true", 5.0)[0] == 0
    except GuestError:
        return False


def _key() -> str:
    """Name what the answer depends on: the host's kernel, its CPU, QEMU."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{platform.release()} / {model} / QEMU {'.'.join(map(str, qemu_version()))}"


def _answers() -> Path:
    return cache_dir() / "accel.json"


def _read() -> dict[str, str]:
    with suppress(OSError, ValueError):
        known = json.loads(_answers().read_text())
        if isinstance(known, dict):
            return known
    return {}
