"""A virtual machine with Debian's kernel, Debian's systemd as its first process, and our units."""

from __future__ import annotations

from pathlib import Path

from systemd_files import UNITS, files, links
from systemd_root import binding, debian_root, warm_for_the_units

from vhostnet.demo.accel import accelerator
from vhostnet.demo.guest_host import LOAD, PROCESSOR, host_guest_image
from vhostnet.demo.guest_image import READY_LINE, SHELL_TTY, GuestImage, guest_image
from vhostnet.demo.initramfs import Archive
from vhostnet.demo.machine import Machine
from vhostnet.demo.qemu import GuestVM

NEW = "/new"
_BUSYBOX = "/bin/busybox"
#: Where the initramfs has what goes into the root.
_STORE = "/store"
_SHELL = f"""#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
while :; do
    stty -F {SHELL_TTY} raw -echo
    (echo '{READY_LINE}'; sh | cat) < {SHELL_TTY} > {SHELL_TTY} 2>&1
done
"""
_SHELL_NAME = "tests-shell.service"
_SHELL_UNIT = """[Unit]
Description=shell of the tests
After=basic.target
[Service]
ExecStart=/etc/tests-shell
"""


def _init(root: Path, kernels: Path, place: dict[str, tuple[int, str]]) -> str:
    """The script that puts the root together and gives it to systemd."""
    cache = f"{NEW}/var/cache/vhostnet/vhostnet/kernels"
    lines = [
        f"#!{_BUSYBOX} sh",
        f"{_BUSYBOX} mkdir -p /proc /sys /dev /lower /over {NEW}",
        f"{_BUSYBOX} mount -t proc proc /proc",
        f"{_BUSYBOX} mount -t sysfs sys /sys",
        f"{_BUSYBOX} mount -t devtmpfs dev /dev",
        f"{_BUSYBOX} --install -s /bin",
        "export PATH=/bin",
        "for module in $(cat /etc/modules); do modprobe $module; done",
        f"for module in 9pnet_virtio 9p overlay tun; do {LOAD} $module; done",
        "mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower",
        "mount -t tmpfs over /over",
        "mkdir /over/upper /over/work",
        f"mount -t overlay -o lowerdir=/lower{root},upperdir=/over/upper,workdir=/over/work "
        f"overlay {NEW}",
        *binding(NEW, "/lower"),
        f"mkdir -p {cache} {NEW}/proc {NEW}/sys {NEW}/dev {NEW}/run {NEW}/tmp",
        f"cp -a /lower{kernels} {cache}/",
        f"cp {_BUSYBOX} {NEW}/bin/busybox",
        f"chroot {NEW} {_BUSYBOX} --install -s /bin",
        f"cp -a {_STORE}/. {NEW}/",
        *(f"chmod {mode:o} {NEW}{path}" for path, (mode, _) in place.items()),
        *(f"mount --move {folder} {NEW}{folder}" for folder in ("/proc", "/sys", "/dev")),
        f"exec switch_root {NEW} /lib/systemd/systemd",
        "",
    ]
    return "\n".join(lines)


def _image(place: Path, watchdog_s: int) -> GuestImage:
    base = host_guest_image(place)
    ours = Archive()
    wanted = files(watchdog_s, PROCESSOR)
    wanted["/etc/tests-shell"] = (0o755, _SHELL)
    wanted[f"{UNITS}/{_SHELL_NAME}"] = (0o644, _SHELL_UNIT)
    for path, (_, content) in wanted.items():
        ours.file(f"{_STORE}{path}", content.encode())
    for path, target in links().items():
        ours.symlink(f"{_STORE}{path}", target)
    ours.symlink(
        f"{_STORE}{UNITS}/multi-user.target.wants/tests-shell.service", "../tests-shell.service"
    )
    ours.file("/init", _init(debian_root(), warm_for_the_units(), wanted).encode())
    with place.open("ab") as file:
        file.write(ours.finish())
    return GuestImage(base.kernel, place)


def boot(folder: Path, *, watchdog_s: int, memory_mib: int = 1536) -> GuestVM:
    """Boot it; the shell is there when systemd has come that far.

    Raises:
        HostError: a program or a package cannot be had.
    """
    image = _image(folder / "initramfs.cpio", watchdog_s)
    accel = accelerator(guest_image())
    guest = GuestVM(image, Machine(accel, memory_mib=memory_mib, smp=2, shares_root=True))
    try:
        guest.wait_for_shell(600.0)
    except BaseException:
        guest.stop()
        raise
    return guest
