"""The machine, the programs and the sources that numbers come from; and who else is working.

Not here: measuring.  What is written here goes into every results file.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vhostnet import __version__
from vhostnet.demo.tools import run_short
from vhostnet.errors import HostError

#: More than this part of a core used by others before a run is noise.
QUIET = 0.10
_LOOK_S = 0.25


def describe() -> dict[str, Any]:
    """Return what a reader needs to judge numbers, or to make them again."""
    revision, changed = git_revision()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision,
        "uncommitted_changes": changed,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "hypervisor": _hypervisor(),
        "kernel": platform.release(),
        "kernel_arguments": _read("/proc/cmdline"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "none",
        "versions": {
            "vhostnet": __version__,
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numba", "llvmlite", "numpy")},
            **_programs(),
        },
    }


def git_revision() -> tuple[str, bool]:
    """Return the sources' revision and whether they differ from it ("unknown", True)."""
    here = Path(__file__).parent
    try:
        head = run_short(["git", "rev-parse", "HEAD"], cwd=here)
        status = run_short(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here)
    except (OSError, HostError):
        return "unknown", True
    if head.returncode or status.returncode:
        return "unknown", True
    # What a former publication has just written is no change of what is measured.
    changed = [
        line
        for line in status.stdout.decode().splitlines()
        if not re.match(r"...\"?(benchmarks/results/|docs/benchmarks\.md)", line)
    ]
    return head.stdout.decode().strip(), bool(changed)


def busy_cores(seconds: float = _LOOK_S) -> float:
    """Look for a moment how many cores are in use (0.0: none), time stolen by a host included.

    To be asked while nothing of ours runs.
    """
    before, began = _busy_seconds(), time.monotonic()
    time.sleep(seconds)
    return (_busy_seconds() - before) / (time.monotonic() - began)


def _busy_seconds() -> float:
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    text = _read("/proc/cpuinfo")
    fields = [re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE) for name in _CPU_FIELDS]
    model, family, number, stepping = (match[1] if match else "?" for match in fields)
    return f"{model} (family {family}, model {number}, stepping {stepping})"


_CPU_FIELDS = ("model name", "cpu family", "model", "stepping")


def _hypervisor() -> str:
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", _read("/proc/cpuinfo"), re.MULTILINE)
    return "yes" if flags else "no"


def _programs() -> dict[str, str]:
    found = {}
    for name, argv, pattern in (
        ("DPDK", ["dpkg-query", "--show", "dpdk-dev"], r"dpdk-dev\s+(\S+)"),
        ("QEMU", ["qemu-system-x86_64", "--version"], r"version (\S+)"),
        ("gcc", ["gcc", "-dumpfullversion"], r"(\S+)"),
        ("iperf3", ["iperf3", "--version"], r"iperf (\S+)"),
    ):
        try:
            done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        match = re.search(pattern, (done.stdout + done.stderr).decode(errors="replace"))
        if match:
            found[name] = match[1]
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
