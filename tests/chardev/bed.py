"""A VM with Debian's kernel and without its vhost_net, in which `vhostnet chardev` runs."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

from vhostnet.demo import nested_host
from vhostnet.demo.guest_host import warm_for_any_processor
from vhostnet.demo.nested_host import PATIENCE_S, NestedHost

TESTS = Path(__file__).parents[1]
NODE = "/dev/vhost-net"


class Bed(NestedHost):
    """The VM, which has the tests' sources too."""

    def __init__(self, folder: Path) -> None:
        warm_for_any_processor()
        super().__init__(folder, ("cuse", "tun", "bridge"), sources=(TESTS,))

    def result(self, *words: str, timeout: float = PATIENCE_S) -> Any:
        """What a session of ours printed behind "RESULT "."""
        status, output = self.run(*words, timeout=timeout)
        assert status == 0, output[-3000:]
        line = next(x for x in output.splitlines() if x.startswith("RESULT "))[7:]
        if not line.startswith("{"):
            line = zlib.decompress(base64.b64decode(line)).decode()
        return json.loads(line)


class Chardev(nested_host.Chardev):
    """`vhostnet chardev`, which says much and whose descriptors and threads are counted."""

    def __init__(self, bed: Bed, *options: str) -> None:
        super().__init__(bed, "--log-level", "debug", *options)

    def n_descriptors(self) -> int:
        """How many it has open."""
        return self._entries("fd")

    def n_threads(self) -> int:
        """How many it has."""
        return self._entries("task")

    def _entries(self, folder: str) -> int:
        return int(self.host.guest.check(f"ls /proc/{self.pid}/{folder} | wc -l"))
