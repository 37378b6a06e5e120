"""The package as others see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vhostnet_frontend
from vhostnet_frontend.vnet_header import VnetHeader, header_size


def test_importing_it_needs_nothing_but_python() -> None:
    program = (
        "import sys, vhostnet_frontend, vhostnet_frontend.scenarios\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('numpy', 'numba', 'llvmlite')]\n"
        "bad += [m for m in sys.modules if m.startswith(('vhostnet.device', 'vhostnet.native'))]\n"
        "sys.exit(' '.join(bad) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_exists() -> None:
    for name in vhostnet_frontend.__all__:
        assert getattr(vhostnet_frontend, name) is not None
    with pytest.raises(AttributeError):
        _ = vhostnet_frontend.nothing  # type: ignore[attr-defined]


def test_the_driver_half_imports_no_ring_code_of_the_device() -> None:
    folder = Path(vhostnet_frontend.__file__).parent
    for file in folder.glob("*.py"):
        assert "vhostnet.datapath" not in file.read_text(), file.name
        assert "vhostnet.device" not in file.read_text(), file.name


@pytest.mark.parametrize(("features", "size"), [(0, 10), (1 << 15, 12), (1 << 32, 12)])
def test_the_header_is_as_long_as_the_features_say(features: int, size: int) -> None:
    assert header_size(features) == size


def test_a_header_is_its_fields() -> None:
    header = VnetHeader(1, 2, 3, 4, 5, 6, 7)
    assert header.pack(12) == bytes.fromhex("0102 0300 0400 0500 0600 0700")
    assert len(header.pack(10)) == 10
    assert header.pack(24)[12:] == bytes(12)
    assert VnetHeader.unpack(header.pack()) == header
    assert VnetHeader.unpack(header.pack(10)).num_buffers == 0
