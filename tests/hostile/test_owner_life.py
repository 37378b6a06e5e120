"""Owners of devices of `vhostnet run` under traffic.

Exec and exit: nobody who comes after the owner is touched.  RESET_OWNER, SET_BACKEND, close, and
descriptors that are set again and again: nothing stays open.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from host import RUNS_TREES
from vhostnet.native._jit import JIT_ENABLED

pytestmark = [
    RUNS_TREES,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not JIT_ENABLED, reason="a race wants the speed of compiled code"),
]
TESTS = Path(__file__).parents[1]
#: 1,000 were run when this was written.
ROUNDS = int(os.environ.get("VHOSTNET_TEST_ROUNDS", "40"))


def words_of(program: str, what: str, *namespaces: str) -> list[str]:
    """What a program says that runs in a tree."""
    if shutil.which("unshare") is None or not Path("/dev/net/tun").exists():
        pytest.skip("needs unshare and /dev/net/tun")
    flags = ["--net", *namespaces]
    if os.geteuid() != 0:
        flags += ["--user", "--map-root-user"]
    run = [sys.executable, "-m", "vhostnet", "run", "--log-level", "error", "--"]
    ended = subprocess.run(
        ["unshare", *flags, *run, sys.executable, str(TESTS / program), what, str(ROUNDS)],
        capture_output=True,
        text=True,
        timeout=280 + ROUNDS,
        check=False,
    )
    if ended.stderr.startswith("unshare"):
        pytest.skip(ended.stderr.strip())
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.split()


@pytest.mark.parametrize("what", ["exec", "exit"])
def test_who_comes_after_an_owner_is_not_touched(what: str) -> None:
    if not Path("/proc/sys/kernel/ns_last_pid").exists():
        pytest.skip("this kernel gives no pid on request (CONFIG_CHECKPOINT_RESTORE)")
    pids = ("--pid", "--fork", "--mount-proc", "--kill-child")
    said = words_of("owner_life.py", what, *pids)
    assert said[:4] == ["rounds", str(ROUNDS), "wrote", "0"]
    assert int(said[5]) > 0.9 * ROUNDS, "there was traffic"


@pytest.mark.parametrize("what", ["verbs", "descriptors"])
def test_nothing_stays_open(what: str) -> None:
    _, _, _, before, after, _, traffic = words_of("door_under_traffic.py", what)
    assert int(after) <= int(before)
    assert int(traffic) > 0 or what == "descriptors"
