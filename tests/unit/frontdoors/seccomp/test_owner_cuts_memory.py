"""An owner that truncates what it shares loses its device; the others of the tree go on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from host import RUNS_TREES
from vhostnet.demo.netns import Namespace
from vhostnet.errors import HostError

OWNER = """
import errno, os, time
from vhostnet_frontend import GuestMemory, IoctlTransport, NetDriver, VerbError, open_tap

def driver(tap):
    memory = GuestMemory(4 << 20)
    made = NetDriver(IoctlTransport("/dev/vhost-net"), open_tap(tap, 12), memory=memory)
    return made.start()

other, victim = driver("tap0"), driver("tap1")
os.ftruncate(victim.memory.regions[0].fd, 0)
os.eventfd_write(victim.tx[0].kick_fd, 1)
os.eventfd_write(victim.rx[0].kick_fd, 1)
deadline = time.monotonic() + 60
while True:
    try:
        victim.transport.get_vring_base(1)
    except VerbError as e:
        assert e.errno == errno.EPERM, e
        break
    assert time.monotonic() < deadline, "the device goes on in memory that is gone"
    time.sleep(0.05)
for number in range(20):
    other.send(bytes([number]) * 64)
other.flush()
other.close()
print("the other one goes on", flush=True)
os._exit(0)  # the victim's own end would touch what is gone
"""

RUN = [sys.executable, "-m", "vhostnet", "run", "--log-level", "warning", "--"]


@RUNS_TREES
@pytest.mark.root
def test_the_device_ends_and_the_others_go_on() -> None:
    try:
        host = Namespace()
    except HostError as e:
        pytest.skip(str(e))
    with host:
        ended = subprocess.run(
            [*host.prefix, *RUN, sys.executable, "-c", OWNER],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (0, "the other one goes on\n"), ended.stderr
    assert "its memory file was truncated" in ended.stderr
