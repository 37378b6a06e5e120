"""SIGHUP: what can be applied is, sessions go on, and the rest is named."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from front_end import HDR, FrontEnd, Guest
from serve_process import ServeProcess, wait_until


class Configured(ServeProcess):
    """A daemon with a file."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self.file = folder / "vhostnet.toml"
        self.write(text)
        super().__init__(folder, "--config", str(self.file))

    def write(self, text: str) -> None:
        self.file.write_text(text.replace("DIR", str(self.folder)))

    def reload(self, text: str) -> list[str]:
        """Write the file, send SIGHUP, and return what is logged about it."""
        self.write(text)
        self.mark()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any("reloaded" in line for line in self.lines()), "a reload")
        return [line.replace(str(self.folder), "DIR") for line in self.lines()]


FIRST = """\
socket-mode = "600"

[device.vm1]
socket = "DIR/vm1"
backend = "null"

[device.vm2]
socket = "DIR/vm2"
backend = "null"
"""

SECOND = """\
socket-mode = "660"
log-level = "info,device=debug"

[device.vm1]
socket = "DIR/vm1"
backend = "null:checksum"
queue-pairs = 2
busy-poll-us = 20
busy-poll-adaptive = true

[device.vm3]
socket = "DIR/vm3"
backend = "null"

[device.vm4]
socket = "DIR/none/vm4"
backend = "null"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Configured]:
    it = Configured(tmp_path, FIRST)
    yield it
    it.check_and_stop()
    assert [path for path in os.listdir(tmp_path) if path.startswith("vm")] == []


def test_a_reload_applies_what_it_can_and_names_the_rest(daemon, tmp_path):
    guest = Guest()
    with FrontEnd(f"{tmp_path}/vm1") as front_end:
        front_end.negotiate().start(guest)
        guest.tx.send(HDR + bytes(60))
        guest.tx.kick()
        guest.tx.wait_used(1)
        said = daemon.reload(SECOND)
        assert said == [
            "vm2: removed",
            "vm1: busy_poll_us=20, busy_poll_adaptive=True",
            "vm3: listening on DIR/vm3, backend null, 1 queue pair",
            "not applied: socket-mode: needs a restart of the daemon",
            "not applied: DIR/vhostnet.toml:4: [device.vm1] backend: needs another device: rename "
            "it, or restart the daemon",
            "not applied: DIR/vhostnet.toml:4: [device.vm1] queue-pairs: needs another device: "
            "rename it, or restart the daemon",
            "not applied: DIR/vhostnet.toml:15: [device.vm4] DIR/none/vm4: making the socket: No "
            "such file or directory",
            "the configuration is reloaded: 2 devices, 4 changes not applied",
        ]
        guest.tx.send(HDR + bytes(60))  # the session went on
        guest.tx.kick()
        guest.tx.wait_used(1)
        assert not os.path.exists(f"{tmp_path}/vm2")
        with FrontEnd(f"{tmp_path}/vm3") as other:
            other.negotiate()
        assert stat.S_IMODE(os.stat(f"{tmp_path}/vm3").st_mode) == 0o600
        # and back: what the second file took away comes again
        said = daemon.reload(FIRST)
        assert said[0] == "vm3: removed"
        assert said[-1] == "the configuration is reloaded: 2 devices"
        with FrontEnd(f"{tmp_path}/vm2") as other:
            other.negotiate()
    guest.close()


def test_a_wrong_file_changes_nothing_and_all_of_it_is_said(daemon, tmp_path):
    said = daemon.reload(FIRST.replace("vm2]", "vm3]") + 'queue-pair = 2\niommu = "on"\n')
    assert said == [
        "DIR/vhostnet.toml:10: [device.vm3] queue-pair: there is no such key (did you mean "
        "queue-pairs?)",
        'DIR/vhostnet.toml:11: [device.vm3] iommu: "on" must be true or false (without quotes)',
        "the configuration is not reloaded: nothing has changed",
    ]
    with FrontEnd(f"{tmp_path}/vm2") as front_end:
        front_end.negotiate()


def test_log_levels_and_form_follow_the_file(daemon):
    said = daemon.reload('log-format = "json"\n' + FIRST)
    assert '"msg": "the configuration is reloaded: 2 devices"' in said[-1]
    said = daemon.reload('log-level = "device=debug"\n' + FIRST)
    assert said == ["the configuration is reloaded: 2 devices"]


def test_many_signals_at_once_are_followed_too(daemon):
    daemon.mark()
    for _ in range(50):
        daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: any("reloaded" in line for line in daemon.lines()), "a reload")


def test_workers_run_where_and_as_they_are_told(tmp_path):
    cpu = max(os.sched_getaffinity(0))
    options = f'worker-cpus = "{cpu}"\nworker-scheduling = "batch:5"\n'
    daemon = Configured(tmp_path, f'[device.vm1]\nsocket = "DIR/vm1"\nbackend = "null"\n{options}')
    guest = Guest()
    with FrontEnd(f"{tmp_path}/vm1") as front_end:
        front_end.negotiate().start(guest)
        guest.tx.send(HDR + bytes(60))
        guest.tx.kick()
        guest.tx.wait_used(1)
        tasks = Path(f"/proc/{daemon.process.pid}/task")
        names = {task: (task / "comm").read_text().strip() for task in tasks.iterdir()}
        [worker] = [int(task.name) for task, name in names.items() if name.startswith("vhost-")]
        assert os.sched_getaffinity(worker) == {cpu}
        assert os.sched_getaffinity(daemon.process.pid) == os.sched_getaffinity(0)
        assert os.sched_getscheduler(worker) == os.SCHED_BATCH
        assert os.getpriority(os.PRIO_PROCESS, worker) == 5
        assert os.sched_getscheduler(daemon.process.pid) == os.sched_getscheduler(0)
        assert os.getpriority(os.PRIO_PROCESS, daemon.process.pid) == os.getpriority(0, 0)
    guest.close()
    daemon.check_and_stop()
