"""The driver half on the kernel's own /dev/vhost-net, inside a guest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_frontend_docs import kernel_example

import vhostnet
import vhostnet_frontend
from vhostnet.demo.accel import accelerator
from vhostnet.demo.guest_image import guest_image
from vhostnet.demo.guest_python import LOAD, python_guest_image
from vhostnet.demo.machine import Machine
from vhostnet.demo.qemu import GuestVM
from vhostnet.errors import HostError

pytestmark = pytest.mark.vmm
HERE = Path(__file__).parent


def pure_python_half() -> dict[str, bytes]:
    """What the guest needs of us: everything that imports nothing but the standard library."""
    files = {
        "kernel_session.py": (HERE / "kernel_session.py").read_bytes(),
        "example.py": kernel_example().encode(),
    }
    device, driver = Path(vhostnet.__file__).parent, Path(vhostnet_frontend.__file__).parent
    wanted = [device / "__init__.py", device / "errors.py"]
    wanted += [*(device / "uapi").glob("*.py"), *(device / "protocol").glob("*.py")]
    wanted += [file for file in driver.glob("*.py") if not file.name.startswith("fast_")]
    for file in wanted:
        files[str(file.relative_to(device.parent))] = file.read_bytes()
    return files


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestVM]:
    place = tmp_path_factory.mktemp("image") / "initramfs.cpio"
    try:
        image = python_guest_image(pure_python_half(), place)
        accel = accelerator(guest_image())
    except HostError as e:
        pytest.skip(str(e))
    with GuestVM(image, Machine(accel)) as made:
        made.wait_for_shell()
        made.check(LOAD)
        yield made


@pytest.fixture(scope="module")
def seen(guest: GuestVM) -> dict[str, dict[str, object]]:
    """What the session in the guest saw."""
    status, output = guest.run("python3 /opt/kernel_session.py", timeout=600.0)
    assert status == 0, output
    results = [line for line in output.splitlines() if line.startswith("RESULT ")]
    found: dict[str, dict[str, object]] = json.loads(results[0].removeprefix("RESULT "))
    return found


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_frames_go_both_ways_through_the_kernels_device(seen, memory: str) -> None:
    saw = seen[memory]
    assert saw["hdr_len"] == 12
    assert int(saw["features"], 16) & 0x33D008000 == 0x33D008000
    for turn in range(3):
        assert saw[f"sent {turn}"] == [True] * 5
        assert saw[f"received {turn}"] == [[72], [372], [512, 160], [512, 460], [512, 512, 248]]
        assert saw[f"bases {turn}"] == [9 * (turn + 1), 5 * (turn + 1)]
    assert saw["errors"] == {}


def test_the_kernels_refusals_arrive_with_their_errno(seen) -> None:
    assert seen["refusals"] == {
        "num without owner": "EPERM",
        "unknown feature": "EOPNOTSUPP",
        "null argument": "EFAULT",
        "second owner": "EBUSY",
        "third ring": "ENOBUFS",
        "odd size": "EINVAL",
        "backend without memory": "EFAULT",
        "unknown ioctl": "ENOTTY",
        "closed kick": "EBADF",
        "no IOTLB": "EINVAL",
        "after reset": "EPERM",
    }


def test_a_malformed_ring_stops_the_kernels_device_until_it_is_repaired(seen) -> None:
    assert seen["head_beyond_num"] == {"errors": 1, "used": 0, "alive": True}
    assert seen["indirect_nested"] == {"errors": 2, "used": 0, "alive": True}
    assert seen["readable_after_writable"] == {"errors": 1, "used": 0, "alive": True}


def test_the_documents_example_runs(guest: GuestVM) -> None:
    output = guest.check(
        "cd /opt && sed s/tap0/tap1/ example.py > other.py && PYTHONPATH=/opt python3 other.py"
    )
    assert output.strip() == "ring 1 stopped at 1"
