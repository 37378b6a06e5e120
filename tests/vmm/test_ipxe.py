"""A machine without a disk: iPXE, the ROM of QEMU's card, is the first driver, Linux the second.

iPXE's driver was written by others, knows few features, posts few buffers and never sleeps.
Debian's packages: ipxe-qemu (the ROM), dnsmasq-base (DHCP and TFTP).
"""

from __future__ import annotations

import gzip
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from boot_server import SCRIPT, BootServer

from serve_process import wait_until
from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.machine import Machine, has_boot_rom, kernel_arguments
from vhostnet.demo.qemu import GuestVM

if TYPE_CHECKING:
    from conftest import Bed

GUEST = "192.0.2.2"
# An emulated processor needs 15 s to DHCP, and 5 s for 19 MB in blocks that are waited for.
FETCH_S = 240.0

pytestmark = [
    pytest.mark.vmm,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("dnsmasq", path=os.environ.get("PATH", "") + ":/usr/sbin") is None,
        reason="dnsmasq is missing (package dnsmasq-base)",
    ),
]


@pytest.fixture(autouse=True)
def rom(image: GuestImage) -> None:
    del image  # skipped first if there is no QEMU
    if not has_boot_rom():
        pytest.skip("QEMU's boot ROM is missing (package ipxe-qemu)")


def server(bed: Bed, script: list[str], files: dict[str, bytes]) -> BootServer:
    return bed.stack.enter_context(
        BootServer(
            bed.folder / "boot",
            address=GUEST,
            script=script,
            files=files,
            prefix=bed.host.prefix,
        )
    )


def fetched(boot: BootServer, guest: GuestVM, name: str) -> None:
    """Wait until the guest has a file; say how far it came if it does not get it."""
    try:
        wait_until(lambda: name in boot.sent(), f"{name} fetched", FETCH_S)
    except AssertionError as err:
        raise AssertionError(f"{err}; {guest.diagnose()}; {boot.log()[-1500:]}") from None


def test_ipxe_loads_linux_and_hands_the_card_over(bed: Bed) -> None:
    bed.serve()
    machine = Machine(bed.accel, netboot=True)
    boot = server(
        bed,
        [
            f"kernel vmlinuz {kernel_arguments(machine)} initrd=initrd.gz",
            "initrd initrd.gz",
            "boot",
        ],
        {
            "vmlinuz": bed.image.kernel.vmlinuz.read_bytes(),
            "initrd.gz": gzip.compress(bed.image.initramfs.read_bytes(), 1),
        },
    )
    guest = bed.power_on(machine)
    fetched(boot, guest, "initrd.gz")
    guest.wait_for_shell()
    assert boot.sent() == [SCRIPT, "vmlinuz", "initrd.gz"]
    assert boot.leased() == [GUEST]
    guest.add_address(0, f"{GUEST}/24")
    bed.assert_pings(guest)
    bed.assert_transfers(guest)


def test_ipxe_gets_an_address_and_a_file_through_a_legacy_card(bed: Bed) -> None:
    bed.serve()
    boot = server(bed, ["initrd blob"], {"blob": os.urandom(1 << 20)})
    card = {"disable-modern": "on", "disable-legacy": "off"}
    guest = bed.power_on(Machine(bed.accel, netboot=True), card)
    fetched(boot, guest, "blob")
    assert boot.leased() == [GUEST]


def test_a_dhcp_client_in_linux_needs_no_filled_checksums(bed: Bed) -> None:
    """The TAP hands over the server's packets with checksums still to be made."""
    bed.serve()
    boot = server(bed, [], {})
    guest = bed.power_on()
    guest.wait_for_shell()
    guest.check("ip link set eth0 up; udhcpc -i eth0 -n -q -f -t 5 -T 1 -s /bin/true")
    assert boot.leased() == [GUEST]
