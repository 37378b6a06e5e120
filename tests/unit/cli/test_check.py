"""`vhostnet check`: every probe runs, and what a host forbids is named with a remedy."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from vhostnet.cli import host_checks
from vhostnet.cli.host_checks import CHECKS, DOORS, Check, findings
from vhostnet.cli.main import main
from vhostnet.errors import HostError


def refuse() -> str:
    raise HostError("this is forbidden: do that", errno.EPERM)


def test_every_check_says_something_in_one_line_and_leaves_nothing_behind() -> None:
    before = os.listdir("/proc/self/fd")
    found = findings()
    assert [f.what for f in found] == [c.what for c in CHECKS]
    assert all(f.said and "\n" not in f.said for f in found)
    assert os.listdir("/proc/self/fd") == before
    assert not Path("/sys/class/net/vncheck0").exists()


def test_every_door_needs_something() -> None:
    assert {door for check in CHECKS for door in check.doors} == set(DOORS)


def test_json(capsys) -> None:
    main(["check", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert set(told["front-doors"]) == set(DOORS)
    assert {"check", "needed-by", "ok", "said"} == set(told["checks"][0])


def test_a_door_that_cannot_work_is_status_4_and_says_how_to_mend_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(host_checks, "CHECKS", (Check("thing", ("run",), refuse),))
    assert main(["check", "run"]) == 4
    printed = capsys.readouterr().out
    assert "no  thing  this is forbidden: do that" in printed
    assert "vhostnet run: cannot work: thing" in printed
    assert main(["check", "serve"]) == 0
    assert main(["check"]) == 0


def test_what_is_only_good_to_have_keeps_no_door_shut(monkeypatch, capsys) -> None:
    monkeypatch.setattr(host_checks, "CHECKS", (Check("thing", (), refuse),))
    assert main(["check", *DOORS]) == 0
    assert "--  thing  this is forbidden" in capsys.readouterr().out


def test_a_door_that_does_not_exist(capsys) -> None:
    assert main(["check", "chardve"]) == 2
    assert "did you mean chardev" in capsys.readouterr().err


def test_scheduling_that_is_not_permitted(monkeypatch, capsys, tmp_path) -> None:
    def forbidden(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    file = tmp_path / "f.toml"
    words = ("socket", str(tmp_path / "s")), ("backend", "null"), ("worker-scheduling", "fifo:50")
    file.write_text("[device.a]\n" + "".join(f'{key} = "{value}"\n' for key, value in words))
    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    why = "fifo:50: Operation not permitted: it takes CAP_SYS_NICE, or a limit RTPRIO of 50"
    assert main(["check", str(file)]) == 4
    assert f"no  a worker-scheduling  {why}" in capsys.readouterr().out
    assert main(["serve", "--config", str(file)]) == 4
    assert capsys.readouterr().err == f"vhostnet: worker-scheduling: {why}\n"
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)
    assert main(["check", str(file)]) == 0
    assert "ok  a worker-scheduling  fifo:50 is permitted" in capsys.readouterr().out


def test_what_a_child_finds_reaches_us() -> None:
    def forbidden() -> None:
        raise HostError("not here", errno.EACCES)

    with pytest.raises(HostError, match="not here") as refused:
        host_checks._in_child(forbidden)
    assert refused.value.errno == errno.EACCES
    host_checks._in_child(lambda: None)
