"""Runs all scenarios against the kernel's /dev/vhost-net and prints the outcomes; in a guest.

    python3 -m oracle.session [NAME ...]

The outcomes are one line: "RESULT ", then compressed JSON in base64 (a serial line is slow).
"""

from __future__ import annotations

import base64
import json
import os
import select
import sys
import traceback
import zlib
from typing import Any

from oracle import scenarios
from oracle.lab import SCENARIOS, Device, Lab, NotHere, Scenario
from vhostnet_frontend import IoctlTransport

assert scenarios


class KernelDevice(IoctlTransport):
    """The character device, with what `lab.Device` asks for beyond the verbs."""

    def __init__(self) -> None:
        super().__init__()
        os.set_blocking(self.fd, False)

    def readable(self) -> tuple[bool, bool]:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN | select.POLLOUT)
        events = sum(event for _, event in poll.poll(0))
        return bool(events & select.POLLIN), bool(events & select.POLLOUT)


def run(scenario: Scenario, lab: Lab) -> Any:
    """The outcome as it comes back from JSON."""
    with lab:
        return json.loads(json.dumps(scenario.run(lab)))


def main(names: list[str]) -> None:
    outcomes: dict[str, Any] = {}
    failures: dict[str, str] = {}
    absent: dict[str, str] = {}

    def open_device() -> Device:
        return KernelDevice()

    for name in names or list(SCENARIOS):
        try:
            outcomes[name] = run(SCENARIOS[name], Lab(open_device))
        except NotHere as e:
            absent[name] = str(e)
        except Exception:
            failures[name] = traceback.format_exc()
    said = {"outcomes": outcomes, "failures": failures, "absent": absent}
    data = json.dumps({"release": os.uname().release, **said})
    print("RESULT " + base64.b64encode(zlib.compress(data.encode())).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
