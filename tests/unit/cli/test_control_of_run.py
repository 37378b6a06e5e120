"""`vhostnet run --control`: the command itself asks the daemon about its device."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from host import RUNS_TREES

pytestmark = RUNS_TREES

PROGRAM = """
import fcntl, json, os, sys, time
from pathlib import Path
from vhostnet.demo.qmp import Qmp, QmpError
from vhostnet.uapi.vhost import VHOST_SET_OWNER

device = os.open("/dev/vhost-net", os.O_RDWR)
qmp = Qmp(Path(sys.argv[1]))
told = [qmp.call("query-devices")]
fcntl.ioctl(device, VHOST_SET_OWNER)
told += [qmp.call("query-devices"), qmp.call("query-vrings"), qmp.call("query-stats")]
told.append(qmp.call("query-version")["command"])
for name in ("open0", "x"):
    try:
        qmp.call("device-del", device=name)
    except QmpError as error:
        told.append(str(error))
os.close(device)
for _ in range(6000):  # the device hears of the close, it does not hold it up
    after = qmp.call("query-devices")
    if not after:
        break
    time.sleep(0.01)
told.append(after)
qmp.call("query-version")  # the event of the close is told by then
print(json.dumps([os.getpid(), qmp.events, *told]))
"""


def test_open_files_are_devices(tmp_path):
    control = str(tmp_path / "control")
    command = (sys.executable, "-c", PROGRAM, control)
    done = subprocess.run(
        [sys.executable, "-m", "vhostnet", "run", "--control", control, "--", *command],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    pid, events, before, owned, vrings, stats, door, not_ours, unknown, after = json.loads(
        done.stdout
    )
    assert [d["device"] for d in before] == ["open0"]
    assert (before[0]["connected"], before[0]["pid"]) == (False, None)
    assert (owned[0]["connected"], owned[0]["pid"]) == (True, pid)
    assert [ring["queue"] for ring in vrings] == ["rx0", "tx0"]
    assert [device["name"] for device in stats] == ["open0"]
    assert door == "run"
    assert "files that programs open" in not_ours
    assert "no device 'x'" in unknown
    assert after == []
    assert events == ["DEVICE_CONNECTED", "DEVICE_DISCONNECTED"]
    assert not os.path.exists(control)


def test_a_control_socket_that_cannot_be_is_said_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "vhostnet", "run", "--control", "/nowhere/x", "--", "true"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 125
    assert "--control: /nowhere/x" in done.stderr
    assert done.stderr.count("\n") == 1
