"""Runs inside a guest: an unmodified QEMU with `tap,vhost=on` boots a guest of its own.

    python nested_session.py shared|private RELEASE VMLINUZ MODULES INITRAMFS

Prints "RESULT " and JSON: who owned the device, what the pings and the files came to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from vhostnet.demo import measure
from vhostnet.demo.guest_image import GuestImage
from vhostnet.demo.guest_kernel import GuestKernel
from vhostnet.demo.machine import Machine, TapNic
from vhostnet.demo.netns import Namespace
from vhostnet.demo.qemu import GuestVM
from vhostnet.demo.tools import require

HOST, GUEST = "192.0.2.1", "192.0.2.2"
MIB = 16
PORT = 5301
#: A guest in a guest, both emulated.
PATIENCE_S = 480.0


def pings(guest: GuestVM) -> list[int]:
    """[sent, received]; the last ones have a minute to come back, all else is emulated."""
    said = guest.run(f"ping -c 100 -i 0.1 -W 60 {HOST}", timeout=PATIENCE_S)[1]
    match = re.search(r"(\d+) packets transmitted, (\d+) packets received", said)
    return [int(match[1]), int(match[2])] if match else []


def to_host(path: measure.Path) -> bool:
    """A file from the guest's guest, compared by its SHA-256."""
    guest = path.guest
    guest.check(f"head -c {MIB << 20} /dev/urandom > /tmp/file", timeout=PATIENCE_S)
    listener = subprocess.Popen(
        [*path.host.prefix, require("busybox"), "nc", "-l", "-p", str(PORT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert listener.stdout is not None
    time.sleep(3.0)
    guest.check(f"(nc {HOST} {PORT} < /tmp/file) >/dev/null 2>&1 &")
    here = hashlib.sha256()
    while chunk := listener.stdout.read(1 << 16):
        here.update(chunk)
    listener.communicate()
    there = guest.check("sha256sum /tmp/file", timeout=PATIENCE_S).split()[0]
    return here.hexdigest() == there


def to_guest(path: measure.Path) -> bool:
    """The other way."""
    guest, content = path.guest, os.urandom(MIB << 20)
    guest.check(f"(sleep 900 | nc -l -p {PORT} > /tmp/other; touch /tmp/done) >/dev/null 2>&1 &")
    guest.wait_until(f"netstat -ltn | grep -q ':{PORT} '", timeout=PATIENCE_S)
    sender = [*path.host.prefix, require("busybox"), "nc", GUEST, str(PORT)]
    subprocess.run(sender, input=content, check=True, timeout=PATIENCE_S)
    size = f"[ $(stat -c %s /tmp/other) = {len(content)} ]"
    guest.wait_until(size, timeout=PATIENCE_S)
    there = guest.check("sha256sum /tmp/other", timeout=PATIENCE_S).split()[0]
    return there == hashlib.sha256(content).hexdigest()


def main(words: list[str]) -> None:
    memory, release, vmlinuz, modules, initramfs = words
    image = GuestImage(GuestKernel(release, Path(vmlinuz), Path(modules)), Path(initramfs))
    machine = Machine("tcg", memory_mib=192, private=memory == "private")
    began = time.monotonic()
    said: dict[str, object] = {"memory": memory}
    with Namespace() as host:
        host.add_tap("tap0", f"{HOST}/24")
        nic = TapNic("tap0", vhost=True)
        with GuestVM(image, machine, [nic], prefix=host.prefix) as guest:
            said["qemu"] = guest.process.pid
            guest.wait_for_shell(PATIENCE_S)
            said["seconds to boot"] = round(time.monotonic() - began)
            guest.add_address(0, f"{GUEST}/24")
            path = measure.Path(guest, host, GUEST, HOST)
            said["pings"] = pings(guest)
            said["seconds to pings"] = round(time.monotonic() - began)
            said["sha-256 to host"] = to_host(path)
            said["seconds to host"] = round(time.monotonic() - began)
            said["sha-256 to guest"] = to_guest(path)
            said["seconds"] = round(time.monotonic() - began)
            said["rings"] = subprocess.run(
                ["ls", "-l", f"/proc/{guest.process.pid}/fd"],
                capture_output=True,
                text=True,
                check=False,
            ).stdout.count("vhost-net")
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1:])
