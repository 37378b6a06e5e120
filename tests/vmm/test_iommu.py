"""A guest whose card is behind a virtual IOMMU: every address is translated by the IOTLB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vhostnet.demo.machine import Machine

if TYPE_CHECKING:
    from conftest import Bed

pytestmark = [pytest.mark.vmm, pytest.mark.root]


def test_a_guest_behind_an_iommu_pings_and_every_byte_arrives(bed: Bed) -> None:
    if bed.serve("--iommu") is None:
        pytest.skip("QEMU's own card asks QEMU's IOMMU itself")
    guest = bed.boot(
        Machine(bed.accel, iommu=True),
        {"iommu_platform": "on", "ats": "on", "disable-legacy": "on"},
    )
    assert "DMAR: IOMMU enabled" in guest.check("dmesg")
    bed.assert_pings(guest)
    bed.assert_transfers(guest, mib=2)
    guest.qmp("system_reset")
    guest.wait_for_shell()
    guest.add_address(0, "192.0.2.2/24")
    bed.assert_pings(guest)
    guest.stop()
    log = (bed.folder / "vhostnet.log").read_text()
    assert "iotlb_misses=" in log
    bed.assert_quiet_log()
