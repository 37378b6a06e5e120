"""`vhostnet run --packed-rings`: the driver half on packed rings, over ioctls."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vhostnet.native._jit import JIT_ENABLED

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not JIT_ENABLED, reason="forty turns want the speed of compiled code"),
]
TESTS = Path(__file__).parents[3]


def run(*program: str, options: Sequence[str] = ()) -> str:
    """What a Python program says in a tree with these options, in a network of its own."""
    if shutil.which("unshare") is None or not Path("/dev/net/tun").exists():
        pytest.skip("needs unshare and /dev/net/tun")
    flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
    tree = [sys.executable, "-m", "vhostnet", "run", "--log-level", "error", *options, "--"]
    paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    ended = subprocess.run(
        ["unshare", *flags, *tree, sys.executable, *program],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    if ended.stderr.startswith("unshare"):
        pytest.skip(ended.stderr.strip())
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.parametrize("memory", ["mapped", "private"])
def test_frames_go_both_ways_and_a_base_has_wrap_counters(memory: str) -> None:
    program = str(TESTS / "packed_session.py")
    said = json.loads(run(program, memory, options=["--packed-rings"]))
    assert said["offered"]
    assert said["bad"] == []
    assert said["errors"] == {}


OFFERED = """
from vhostnet_frontend import IoctlTransport
print(hex(IoctlTransport().get_features()))
"""


def test_they_are_not_offered_unless_asked_for() -> None:
    linux = int(run("-c", OFFERED), 16)
    ours = int(run("-c", OFFERED, options=["--packed-rings"]), 16)
    assert ours ^ linux == 1 << 34
    assert not linux >> 34 & 1
