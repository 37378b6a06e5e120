"""What is in a machine with Debian's systemd beside Debian: our package, and less of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from systemd_root import ENVIRONMENT, INTERPRETER

PACKAGING = Path(__file__).parents[2] / "packaging"
#: As packaging/README.md says.
INSTALLED = {
    "systemd/vhostnet.service": "/usr/lib/systemd/system/vhostnet.service",
    "systemd/vhostnet@.service": "/usr/lib/systemd/system/vhostnet@.service",
    "systemd/vhostnet@.socket": "/usr/lib/systemd/system/vhostnet@.socket",
    "systemd/sysusers.conf": "/usr/lib/sysusers.d/vhostnet.conf",
    "systemd/tmpfiles.conf": "/usr/lib/tmpfiles.d/vhostnet.conf",
    "apparmor/vhostnet-serve": "/etc/apparmor.d/vhostnet-serve",
    "60-vhostnet.rules": "/usr/lib/udev/rules.d/60-vhostnet.rules",
    "50-vhostnet.json": "/usr/share/qemu/vhost-user/50-vhostnet.json",
}
#: What a machine without disk, bus and terminals that lives for a minute has no use for.
MASKED = (
    "getty.target",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@ttyS0.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-random-seed.service",
    "systemd-repart.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
)
UNITS = "/etc/systemd/system"
#: What is another's place in these machines: Python, and a shell as console script, in "/".
APPARMOR = """/ r,
/bin/busybox mrix,
/{usr/,}bin/sh mrix,
/opt/python/{,**} r,
/opt/python/**.so* mr,
/opt/python/bin/python* mrix,
"""
#: A card of the other unit, with a socket of its own.
CONFIG = """[device.vm2]
socket = "/run/vhostnet/vm2.sock"
backend = "tap:tap1"
"""


def files(watchdog_s: int, processor: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Path -> (mode, content).

    Args:
        watchdog_s: how soon the watchdog is to bite, instead of the units' own time.
        processor: for which the kernels in the cache were compiled.
    """
    pairs = " ".join(f'"{name}={value}"' for name, value in processor.items())
    drop_in = f"[Service]\nEnvironment={pairs}\nWatchdogSec={watchdog_s}\n"
    exported = "".join(f"export {name}={value}\n" for name, value in ENVIRONMENT.items())
    program = f'#!/bin/sh\n{exported}exec {INTERPRETER} -m vhostnet "$@"\n'
    return {
        "/usr/bin/vhostnet": (0o755, program),
        "/etc/hostname": (0o644, "debian\n"),
        "/etc/machine-id": (0o444, f"{1:032x}\n"),
        "/etc/fstab": (0o644, ""),
        "/etc/apparmor.d/local/vhostnet-serve": (0o644, APPARMOR),
        "/etc/vhostnet/vhostnet.toml": (0o644, CONFIG),
        f"{UNITS}/vhostnet.service.d/test.conf": (0o644, drop_in),
        f"{UNITS}/vhostnet@.service.d/test.conf": (0o644, drop_in),
        **{path: (0o644, (PACKAGING / name).read_text()) for name, path in INSTALLED.items()},
    }


def links() -> dict[str, str]:
    """Symbolic link -> where it leads."""
    return {
        f"{UNITS}/default.target": "/lib/systemd/system/multi-user.target",
        **{f"{UNITS}/{unit}": "/dev/null" for unit in MASKED},
    }
