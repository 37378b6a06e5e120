"""Short runs of what `python -m tests.fuzz` and `python -m tests.fuzz.volume` do for long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vhostnet.native._jit import JIT_ENABLED

ROOT = Path(__file__).parents[2]
RUNS = 5000


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A crash then ends a process that is not ours."""
    env = dict(os.environ, PYTHONFAULTHANDLER="1")
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["messages", "split", "packed"])
def test_what_coverage_leads_to_breaks_no_rule(target, tmp_path):
    pytest.importorskip("atheris")
    done = run("tests.fuzz", target, "--runs", str(RUNS), "--corpus", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr


def test_an_input_that_was_found_can_be_run_again(tmp_path):
    pytest.importorskip("atheris")
    (tmp_path / "input").write_bytes(bytes(60))
    done = run("tests.fuzz", "split", "--replay", str(tmp_path / "input"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not JIT_ENABLED, reason="volume is a matter of compiled code")
def test_many_hostile_rings_and_messages_touch_nothing_and_reach_every_error():
    done = run("tests.fuzz.volume", "--rings", "240000", "--messages", "8000")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
