"""The guest's whole user space: one small initramfs, up in about two seconds.

Built from the host's own packages (busybox-static, iperf3, ethtool) and the guest kernel's
virtio modules.  Modules are not built in on purpose: a test can remove virtio_net and load it
again.  The built file is cached under a digest of everything that goes into it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vhostnet.demo.guest_kernel import GuestKernel, guest_kernel
from vhostnet.demo.initramfs import Archive, ModuleTree, shared_libraries
from vhostnet.demo.tools import cache_dir, require

# In loading order; what one needs beyond this is found from the modules themselves.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)

SHELL_TTY = "/dev/ttyS1"
READY_LINE = "guest shell ready"

# Two serial ports: the kernel's messages go to the first, the shell has the second to itself,
# so no message can ever land in the middle of a command's output.
INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/sbin HOME=/root TERM=linux PS1='guest# '
# Router solicitations and the like would be counted as traffic in tests that count packets.
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
for module in $(cat /etc/modules); do modprobe $module; done
ip link set lo up
# When an interactive shell ends, the kernel hangs up its terminal: each turn opens it anew.
while :; do
    stty -F {SHELL_TTY} raw -echo
    # Through a pipe: a shell that sees a terminal on both sides prompts, and echoes its input.
    (echo '{READY_LINE}'; sh | cat) < {SHELL_TTY} > {SHELL_TTY} 2>&1
done
"""


@dataclass(frozen=True)
class GuestImage:
    """What QEMU needs to boot a guest."""

    kernel: GuestKernel
    initramfs: Path


def guest_image(
    say: Callable[[str], None] = lambda _: None, *, kernel: GuestKernel | None = None
) -> GuestImage:
    """Return the image from the cache, or build it (and fetch the kernel) first.

    Args:
        kernel: another one than the distribution's usual.

    Raises:
        HostError: a program is missing (the message names its package), or the kernel cannot
            be fetched.
    """
    content = _files()
    kernel = kernel or guest_kernel(say)
    key = hashlib.sha256(f"{kernel.release} {MODULES} {INIT}".encode())
    for path, data in sorted(content.items()):
        key.update(f"\0{path}\0{len(data)}\0".encode() + data)
    folder = cache_dir("guest")
    place = folder / f"initramfs-{key.hexdigest()[:16]}.cpio"
    if not place.exists():
        say("building the guest image")
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(_build(kernel, content))
        os.rename(file.name, place)  # in one step: others may be looking for it
    return GuestImage(kernel, place)


def _files() -> dict[str, bytes]:
    """Return the host's files that go into the image: path in the guest -> content."""
    programs = {"/bin/busybox": require("busybox")}
    for tool in ("iperf3", "ethtool"):
        programs[f"/usr/bin/{tool}"] = require(tool)
    places = dict(programs)
    for program in programs.values():
        places.update({library: library for library in shared_libraries(program)})
    return {inside: Path(outside).read_bytes() for inside, outside in places.items()}


def _build(kernel: GuestKernel, content: dict[str, bytes]) -> bytes:
    archive = Archive()
    archive.file("/init", INIT.encode())
    for path, data in content.items():
        archive.file(path, data)

    tree = ModuleTree(kernel.modules)
    modules = tree.closure(MODULES)
    place = f"/lib/modules/{kernel.release}"
    table = ""
    for name in modules:
        archive.file(f"{place}/{tree.path_of(name)}", tree.read(name))
        needs = " ".join(tree.path_of(other) for other in tree.depends(name))
        table += f"{tree.path_of(name)}: {needs}\n"
    archive.file(f"{place}/modules.dep", table.encode())
    archive.file("/etc/modules", "\n".join(modules).encode())
    return archive.finish()
