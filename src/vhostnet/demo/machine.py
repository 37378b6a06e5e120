"""What a guest is made of, and the QEMU command line for it.

Not here: running it (see `qemu`).  The command lines have been found by trying; where an
option is a workaround, a comment says for what.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.tools import output_of, require

QEMU = "qemu-system-x86_64"
# Debian's package ipxe-qemu has it.
BOOT_ROM = "efi-virtio.rom"


@dataclass(frozen=True)
class VhostUserNic:
    """A virtio network card whose data path is a vhost-user back-end.

    Attributes:
        socket: the back-end's socket.
        mac: the card's address.
        queue_pairs: above one the card gets `mq=on`.
        server: QEMU listens on the socket and waits for the back-end to connect.
        reconnect_s: QEMU connects again after so many seconds when the back-end goes away.
        properties: more `-device` properties, such as {"packed": "on", "host_mtu": "9000"}.
    """

    socket: Path
    mac: str = "52:54:00:12:34:01"
    queue_pairs: int = 1
    server: bool = False
    reconnect_s: int | None = None
    properties: Mapping[str, str] = field(default_factory=dict)

    def options(self, index: int) -> list[str]:
        """Return QEMU's options for this card."""
        chardev = f"socket,id=char{index},path={self.socket}"
        if self.server:
            chardev += ",server=on,wait=on"
        elif self.reconnect_s is not None:
            chardev += f",reconnect={self.reconnect_s}"
        netdev = f"vhost-user,id=net{index},chardev=char{index}"
        if self.queue_pairs > 1:
            netdev += f",queues={self.queue_pairs}"
        return ["-chardev", chardev, "-netdev", netdev]


@dataclass(frozen=True)
class TapNic:
    """QEMU's own virtio network card on a TAP: the peer we are compared with.

    Attributes:
        vhost: its data path is /dev/vhost-net's.
    """

    ifname: str
    mac: str = "52:54:00:12:34:02"
    queue_pairs: int = 1
    properties: Mapping[str, str] = field(default_factory=dict)
    vhost: bool = False

    def options(self, index: int) -> list[str]:
        """Return QEMU's options for this card."""
        vhost = "on,vhostforce=on" if self.vhost else "off"
        netdev = f"tap,id=net{index},ifname={self.ifname},script=no,downscript=no,vhost={vhost}"
        if self.queue_pairs > 1:
            netdev += f",queues={self.queue_pairs}"
        return ["-netdev", netdev]


Nic = VhostUserNic | TapNic


@dataclass(frozen=True)
class Machine:
    """The rest of the guest.

    Attributes:
        accel: "kvm" or "tcg" (see `accel.accelerator`).
        memory_mib: at boot.
        max_memory_mib: above `memory_mib` makes room for memory hotplug, in `memory_slots`.
        smp: virtual CPUs.
        iommu: a virtual IOMMU; the cards then want {"iommu_platform": "on", "ats": "on",
            "disable-legacy": "on"}.
        incoming: wait for a migration from this URI instead of booting.
        paused: do not run until told (QMP `cont`).
        private: memory as QEMU has it by default, which no other process can map.
        netboot: power on without a kernel; the first card's boot ROM looks for one.
        shares_root: the host's files can be mounted by 9p, read-only, as "root".
    """

    accel: str = "tcg"
    memory_mib: int = 256
    max_memory_mib: int = 0
    memory_slots: int = 2
    smp: int = 1
    iommu: bool = False
    incoming: str | None = None
    paused: bool = False
    netboot: bool = False
    private: bool = False
    shares_root: bool = False


def command_line(image: GuestImage, machine: Machine, nics: tuple[Nic, ...]) -> list[str]:
    """Return the QEMU command, without QMP and serial ports.

    The guest's memory is a shared memfd, unless the machine says otherwise: without `share=on` a
    vhost-user back-end would see nothing of it.
    """
    memory = str(machine.memory_mib)
    if machine.max_memory_mib > machine.memory_mib:
        memory += f",slots={machine.memory_slots},maxmem={machine.max_memory_mib}M"
    accel, cpu = ("kvm", "host") if machine.accel == "kvm" else ("tcg,thread=multi", "max")
    # Where there can be one processor only, QEMU before 8.1 emulates no memory barriers, as if
    # nobody else were there: the guest's driver may read an old avail_event and not kick us.
    smp = "1,maxcpus=2" if machine.smp == 1 and machine.accel == "tcg" else str(machine.smp)
    argv = [require(QEMU), "-accel", accel, "-cpu", cpu, "-smp", smp]
    q35 = ("q35" if machine.private else "q35,memory-backend=mem") + (
        ",kernel-irqchip=split" if machine.iommu else ""
    )
    argv += ["-machine", q35, "-m", memory]
    if not machine.private:
        argv += ["-object", f"memory-backend-memfd,id=mem,size={machine.memory_mib}M,share=on"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none"]
    if not machine.netboot:
        argv += ["-kernel", str(image.kernel.vmlinuz), "-initrd", str(image.initramfs)]
        argv += ["-append", kernel_arguments(machine)]
    if machine.iommu:
        argv += ["-device", "intel-iommu,intremap=on,device-iotlb=on"]
    if machine.shares_root:
        share = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
        argv += ["-virtfs", share]
    if machine.incoming is not None:
        argv += ["-incoming", machine.incoming]
    if machine.paused:
        argv.append("-S")
    for index, nic in enumerate(nics):
        argv += nic.options(index)
        argv += ["-device", _device(nic, index, machine)]
    return argv


def kernel_arguments(machine: Machine) -> str:
    """Return the guest kernel's command line."""
    arguments = "console=ttyS0 loglevel=6 random.trust_cpu=on"
    if machine.iommu:
        # QEMU 7.2 tells vhost nothing of the whole-domain flushes of the lazy default.
        arguments += " intel_iommu=on iommu.strict=1"
    return arguments


def _device(nic: Nic, index: int, machine: Machine) -> str:
    device = f"virtio-net-pci,id=nic{index},netdev=net{index},mac={nic.mac}"
    # Without `romfile=` the card has QEMU's boot ROM, which is a package of its own.
    device += ",bootindex=0" if machine.netboot and index == 0 else ",romfile="
    # A slot each: cards in neighbouring slots have interrupt lines of their own.
    device += f",addr={4 + index:#x}"
    if nic.queue_pairs > 1:
        device += ",mq=on"
    # QEMU before 10.0 crashes when a vhost-user card with MSI-X starts without KVM (it takes
    # KVM's interrupt routes for granted).  Both kinds of card get the same, to stay comparable.
    if machine.accel == "tcg" and qemu_version() < (10, 0):
        device += ",vectors=0"
    return device + "".join(f",{name}={value}" for name, value in nic.properties.items())


def has_boot_rom() -> bool:
    """Tell whether QEMU finds the boot ROM of its virtio cards."""
    folders = output_of([require(QEMU), "-L", "help"]).split()
    return any(Path(folder, BOOT_ROM).exists() for folder in folders)


@lru_cache(maxsize=1)
def qemu_version() -> tuple[int, int]:
    """Return QEMU's major and minor version."""
    match = re.search(r"version (\d+)\.(\d+)", output_of([require(QEMU), "--version"]))
    return (int(match[1]), int(match[2])) if match else (0, 0)
