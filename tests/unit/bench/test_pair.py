"""Small parts of starting and watching devices."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from vhostnet.bench.model import Run
from vhostnet.bench.pair import cpu_seconds, driver_command
from vhostnet.errors import HostError

HERE = Path(f"/proc/{os.getpid()}")


def test_processor_time_is_that_of_all_threads_or_of_one() -> None:
    me = HERE / "task" / str(threading.get_native_id())
    before, mine = cpu_seconds(HERE), cpu_seconds(me)
    began = time.thread_time()
    while time.thread_time() - began < 0.05:
        pass
    assert cpu_seconds(HERE) - before >= 0.04
    assert cpu_seconds(me) - mine >= 0.04
    assert cpu_seconds(HERE) >= cpu_seconds(me) - 0.01


def test_a_process_that_has_gone_is_an_error(tmp_path) -> None:
    with pytest.raises(HostError, match="has gone"):
        cpu_seconds(tmp_path / "4711")


def test_a_drivers_command_is_noted_without_the_runs_folder(tmp_path) -> None:
    run = Run(1.5, 0, 1, False, tmp_path)
    argv = driver_command(run, "send", [tmp_path / "a"], size=64, packed=True, in_order=False)
    assert argv[1:] == [
        *("-m", "vhostnet.bench.own_driver", "send", "--socket", str(tmp_path / "a")),
        *("--seconds", "1.5", "--size", "64", "--packed"),
    ]
    assert run.commands == [
        "taskset -c 1 python -m vhostnet.bench.own_driver send --socket DIR/a "
        "--seconds 1.5 --size 64 --packed"
    ]


def test_a_driver_may_run_for_another_time_than_is_measured(tmp_path) -> None:
    run = Run(1.5, 0, 1, False, tmp_path)
    assert driver_command(run, "stream", [], seconds=60)[-3:] == ["stream", "--seconds", "60"]
