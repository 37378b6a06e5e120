"""Record what Linux does: boot Debian's kernels and run all scenarios on /dev/vhost-net.

    python -m tests.oracle.record [6.1 | 6.12 ...]

Writes golden/linux-VERSION.json.  Needs QEMU and Debian's package archive; 6.12 comes from
the security archive of Debian 12 and is skipped, with a message, where apt does not know it.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import vhostnet
import vhostnet_frontend
from vhostnet.demo.accel import accelerator
from vhostnet.demo.guest_image import guest_image
from vhostnet.demo.guest_kernel import META_PACKAGE, guest_kernel
from vhostnet.demo.guest_python import LOAD, python_guest_image
from vhostnet.demo.machine import Machine
from vhostnet.demo.qemu import GuestVM
from vhostnet.errors import HostError

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
#: Linux version to the package that brings it.
KERNELS = {"6.1": META_PACKAGE, "6.12": "linux-image-6.12-cloud-amd64"}


def files() -> dict[str, bytes]:
    """What the guest needs of us: everything that imports nothing but the standard library."""
    device, driver = Path(vhostnet.__file__).parent, Path(vhostnet_frontend.__file__).parent
    wanted = [device / "__init__.py", device / "errors.py"]
    wanted += [*(device / "uapi").glob("*.py"), *(device / "protocol").glob("*.py")]
    wanted += [file for file in driver.glob("*.py") if not file.name.startswith("fast_")]
    found = {str(file.relative_to(device.parent)): file.read_bytes() for file in wanted}
    for name in ("__init__.py", "lab.py", "networks.py", "session.py"):
        found[f"oracle/{name}"] = (HERE / name).read_bytes()
    for file in (HERE / "scenarios").glob("*.py"):
        found[f"oracle/scenarios/{file.name}"] = file.read_bytes()
    return found


def outcomes(version: str, names: list[str]) -> dict[str, Any]:
    """Boot the kernel and run; HostError if there is no such kernel or no QEMU."""
    kernel = guest_kernel(lambda text: print(text, flush=True), package=KERNELS[version])
    with tempfile.TemporaryDirectory() as room:
        image = python_guest_image(files(), Path(room, "initramfs.cpio"), kernel=kernel)
        with GuestVM(image, Machine(accelerator(guest_image()), memory_mib=512)) as guest:
            guest.wait_for_shell()
            guest.check(LOAD)
            guest.check("ip link set lo up")
            command = "cd /opt && python3 -m oracle.session " + " ".join(names)
            status, output = guest.run(command, timeout=600.0)
            if status != 0:
                raise HostError(f"the session failed: {output}\n{guest.console_log()[-2000:]}")
            noise = guest.console_log()
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    said: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(line[7:])))
    if "BUG:" in noise or "Oops" in noise:
        print(noise[-3000:])
    return said


def main(words: list[str]) -> int:
    status = 0
    versions = [word for word in words if word in KERNELS]
    names = [word for word in words if word not in KERNELS]
    for version in versions or KERNELS:
        try:
            said = outcomes(version, names)
        except HostError as e:
            print(f"{version}: skipped: {e}")
            status = 4
            continue
        for name, trace in (said["failures"] | said["absent"]).items():
            print(f"{version}: {name}:\n{trace}")
            status = 1
        if names:
            print(json.dumps(said["outcomes"], indent=1))
            continue
        golden = {"linux": version, "release": said["release"], "outcomes": said["outcomes"]}
        GOLDEN.mkdir(exist_ok=True)
        place = GOLDEN / f"linux-{version}.json"
        place.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
        print(f"{version}: {len(said['outcomes'])} outcomes of {said['release']} written")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
