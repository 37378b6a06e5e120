"""The scenarios through `vhostnet run`: the program that Linux was recorded with, unchanged.

Linux's outcomes were recorded by `oracle.session` in a VM, on the kernel's /dev/vhost-net.  Here
the same program runs on this machine, and its /dev/vhost-net is ours: ioctls, descriptors and
memory come the whole way.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from host import RUNS_TREES
from oracle import scenarios
from oracle.compare import judge
from oracle.lab import SCENARIOS
from oracle.test_oracle import VERSIONS, golden

assert scenarios
pytestmark = [RUNS_TREES, pytest.mark.root, pytest.mark.slow]
TESTS = Path(__file__).parents[1]
TIMEOUT_S = 240

#: Of this door alone: scenario -> fields, and the first words of the row of docs/differences.md.
_WRITABLE = "poll never says that the file can be written to"
OF_THIS_DOOR: dict[str, tuple[tuple[str, ...], str]] = {
    "reading_when_there_is_nothing": (("poll",), _WRITABLE),
    "the_used_ring_is_wanted_at_the_start": (("poll", "poll after"), _WRITABLE),
    "close_lets_go_of_the_tap": (("after",), "The last close returns when the device has let go"),
}
#: What need not occur: a race that the device mostly loses.
RACES = {"close_lets_go_of_the_tap"}


@pytest.fixture(scope="module", params=VERSIONS)
def outcomes(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """(version, what the session said)."""
    if shutil.which("unshare") is None or not Path("/dev/net/tun").exists():
        pytest.skip("needs unshare and /dev/net/tun")
    version: str = request.param
    flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
    quiet = "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; exec "
    session = f"'{sys.executable}' -m vhostnet run --linux-abi {version} -- " + (
        f"'{sys.executable}' -m oracle.session"
    )
    paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    ended = subprocess.run(
        ["unshare", *flags, "sh", "-c", quiet + session],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    if "unshare" in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr[-2000:]
    line = next(line for line in ended.stdout.splitlines() if line.startswith("RESULT "))
    return version, json.loads(zlib.decompress(base64.b64decode(line[7:])))


def test_the_session_comes_to_its_end(outcomes: tuple[str, dict[str, Any]]) -> None:
    _, said = outcomes
    assert said["failures"] == {}
    assert said["outcomes"].keys() | said["absent"].keys() == SCENARIOS.keys()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_device_does_what_linux_does(name: str, outcomes: tuple[str, dict[str, Any]]) -> None:
    version, said = outcomes
    if name in said["absent"]:
        pytest.skip(said["absent"][name])
    if name not in said["outcomes"]:
        pytest.fail(said["failures"].get(name, "it did not run"))
    new, stale = judge(name, version, golden(version)["outcomes"][name], said["outcomes"][name])
    fields, _ = OF_THIS_DOOR.get(name, ((), ""))
    seen = [line.partition(":")[0] for line in new]
    assert [line for line in new if line.partition(":")[0] not in fields] == []
    assert stale == []
    if name not in RACES:
        assert [field for field in fields if field not in seen] == [], "listed, and does not occur"


def test_every_difference_has_a_row_in_the_document() -> None:
    text = " ".join((TESTS.parent / "docs" / "differences.md").read_text().split())
    assert [row for _, row in OF_THIS_DOOR.values() if row not in text] == []
