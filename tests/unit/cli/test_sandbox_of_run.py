"""`vhostnet run` in its sandbox: what the supervisor gives up, what it keeps, and that the command
has nothing of it.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cuse_kernel import children_of
from host import RUNS_TREES
from oracle.lab import Tap, describe, frame
from oracle.namespace import Namespace, namespace_or_skip
from serve_process import PATIENCE_S, READY_S, wait_until
from telling import HARMLESS, N_ATTEMPTS, RUN, SEEN, TELLING, what_it_said
from unit.cli.test_sandbox_of_serve import needs_all
from vhostnet.frontdoors.seccomp.tree_acts import is_below
from vhostnet.native._jit import JIT_ENABLED
from vhostnet.uapi import tun

pytestmark = [
    RUNS_TREES,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes a TAP, and takes rights away"),
]
TESTS = Path(__file__).parents[2]
HDR = 12
PROGRAM = ("-m", "vhostnet")
#: uid 0 or not, what counts is that nobody is asked for rights.
NO_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
HELD = ["descriptors", "no new privileges", "capabilities", "memory", "system calls"]

#: A driver and its packets; then it says what is asked of it on its stdin, line by line.
DRIVER = """
import contextlib, json, os, sys
from pathlib import Path
from oracle.lab import frame
from vhostnet.demo.qmp import Qmp
from vhostnet_frontend import GuestMemory, IoctlTransport, NetDriver, VerbError

tap, private = int(sys.argv[1]), sys.argv[2] == "private"
with NetDriver(
    IoctlTransport(), tap, num=64, memory=GuestMemory(4 << 20, private=private)
) as driver:
    driver.start()
    driver.send(frame(1))
    assert driver.receive(timeout=60.0) == frame(2)
    print("both ways", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "send":
            driver.send(frame(3))
            print("sent", flush=True)
        elif word == "open":
            try:
                IoctlTransport().set_owner()
                print("opened", flush=True)
            except VerbError as e:
                print("refused", flush=True)
        elif word == "ask":
            print(json.dumps(Qmp(Path(rest[0])).call(*rest[1:])), flush=True)
    driver.stop()
"""


class Run:
    """`vhostnet run` of the driver, until its packets went both ways."""

    def __init__(
        self,
        tap: Tap,
        *options: str,
        private: bool = False,
        program: Sequence[str] = PROGRAM,
        prefix: Sequence[str] = (),
        stray: int | None = None,
    ) -> None:
        memory = "private" if private else "shared"
        paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        run = [sys.executable, *program, "run", "--log-level", "info", *options, "--"]
        self.process = subprocess.Popen(
            [*prefix, *run, sys.executable, "-c", DRIVER, str(tap.fd), memory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[tap.fd, *([] if stray is None else [stray])],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
        )
        try:
            wait_until(lambda: tap.sent(1) == [describe(frame(1))], "the first frame", READY_S)
            tap.wire.send(frame(2))
            assert self.line() == "both ways"
        except BaseException:
            self.process.kill()
            print(self.process.communicate(timeout=PATIENCE_S)[1][-3000:])
            raise

    def line(self) -> str:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], PATIENCE_S * 2)[0], "no line"
        return self.process.stdout.readline().strip()

    def say(self, words: str) -> str:
        """What the driver answers."""
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> str:
        """The driver ends; what the daemon has said."""
        assert self.process.stdin
        _, said = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, said
        return said

    def named(self, name: str, pid: int | None = None) -> int:
        """The process of this name below ours."""
        for child in children_of(pid or self.process.pid):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                return child
            if found := self.named(name, child):
                return found
        return 0


@pytest.fixture(scope="module")
def net() -> Iterator[Namespace]:
    if not JIT_ENABLED:
        pytest.skip("the supervisor has no compiler to be without")
    with namespace_or_skip() as made:
        yield made


@pytest.fixture
def tap(net: Namespace) -> Iterator[Tap]:
    made = net.run(Tap, "run0", HDR, tun.IFF_VNET_HDR, True, True)
    yield made
    net.run(made.close)


@needs_all
@pytest.mark.parametrize("private", [False, True], ids=["mapped", "by pid"])
@pytest.mark.parametrize("prefix", [(), NO_RIGHTS], ids=["root", "without rights"])
def test_a_worker_can_neither_open_a_file_nor_make_a_socket(
    tap: Tap, prefix: Sequence[str], private: bool
) -> None:
    program = ("-c", TELLING + RUN)
    said = Run(tap, "--sandbox=required", private=private, program=program, prefix=prefix).end()
    attempts = what_it_said(said)
    assert len(attempts) == N_ATTEMPTS
    assert attempts.pop(SEEN) == "done"
    assert set(attempts.values()) == {"EPERM"}, attempts
    assert "sandbox: without" not in said


def test_without_the_sandbox_the_same_worker_can(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is able to fail."""
    monkeypatch.setenv("ATTEMPTS", ",".join(HARMLESS))
    run = Run(tap, "--sandbox", "none", program=("-c", TELLING + RUN))
    assert not run.named("vhost-opener")
    said = run.end()
    assert what_it_said(said) == dict.fromkeys(HARMLESS, "done")
    assert "sandbox: none (--sandbox none)" in said


@needs_all
def test_what_holds_can_be_asked(tap: Tap, tmp_path: Path) -> None:
    control, capture, trace = (str(tmp_path / name) for name in ("control", "c", "t"))
    run = Run(tap, "--control", control, "--pcap", capture, "--trace", trace)
    told = json.loads(run.say(f"ask {control} query-sandbox"))
    stages = {stage["stage"]: stage for stage in told["stages"]}
    assert [name for name, stage in stages.items() if stage["holds"]] == HELD
    for name, end in (("namespaces", "user namespace"), ("landlock", "landlock")):
        assert "reached by pid" in stages[name]["detail"]
        assert end in stages[name]["detail"]
    assert set(told["attempts"].values()) == {"EPERM"}
    assert told["kernel"]["seccomp"] == "2"
    # KILL and SYS_PTRACE
    assert int(told["kernel"]["cap-effective"], 16) & ~0x80020 == 0
    run.say(f"ask {control} query-vrings")
    run.end()
    assert not os.path.exists(control)
    assert Path(capture).read_bytes().count(frame(1)) == 1
    assert "SET_OWNER" in Path(trace).read_text()


def test_the_supervisor_holds_nothing_of_the_callers(tap: Tap) -> None:
    reader, writer = os.pipe()
    run = Run(tap, stray=writer)
    name = os.readlink(f"/proc/self/fd/{writer}")
    for process in ("vhostnet-run", "vhost-opener"):
        folder = Path(f"/proc/{run.named(process)}/fd")
        assert name not in [os.readlink(fd) for fd in folder.iterdir()], process
    opener = run.named("vhost-opener")
    assert os.getsid(opener) == opener  # no terminal reaches it
    status = Path(f"/proc/{opener}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    run.end()
    os.close(reader)
    os.close(writer)


WHAT_IT_HAS = r"""
for space in user mnt net ipc uts pid; do readlink /proc/self/ns/$space; done
grep -E '^(Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign|Cgt))' /proc/self/status
env | grep -v '^_=' | sort; cut -d' ' -f5,6 /proc/$$/stat
cat /proc/self/limits; ulimit -a; readlink /proc/self/cwd; touch "$1" && echo touched
"""


@pytest.mark.parametrize("prefix", [(), NO_RIGHTS], ids=["root", "without rights"])
def test_the_command_has_nothing_of_the_seal(tmp_path: Path, prefix: Sequence[str]) -> None:
    def told(mode: str) -> str:
        run = [sys.executable, *PROGRAM, "run", "--sandbox", mode, "--"]
        process = subprocess.Popen(
            [*prefix, *run, "sh", "-c", WHAT_IT_HAS, "sh", str(tmp_path / "x")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        said, complaints = process.communicate(timeout=READY_S)
        assert (process.returncode, complaints) == (0, "")
        return said.replace(str(process.pid), "ours")

    sealed, bare = told("auto"), told("none")
    assert "touched" in sealed
    assert "\nours ours\n" in sealed  # its group and its session
    assert sealed == bare


def test_when_the_supervisor_dies_the_command_goes_on(tap: Tap) -> None:
    run = Run(tap)
    opener, supervisor = run.named("vhost-opener"), run.named("vhostnet-run")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{opener}"), "the opener's end")
    assert run.say("open") == "refused"
    assert run.process.stdin
    _, said = run.process.communicate(timeout=PATIENCE_S)
    assert "the supervisor ended with status 137" in said


def test_an_opener_that_dies_is_told_of_and_running_devices_go_on(tap: Tap) -> None:
    run = Run(tap)
    os.kill(run.named("vhost-opener"), signal.SIGKILL)
    assert run.say("send") == "sent"
    assert tap.sent(1) == [describe(frame(3))]
    run.process.kill()  # the driver could not take its rings' backends away any more
    _, said = run.process.communicate(timeout=PATIENCE_S)
    assert "the opener has ended (status unknown)" in said


def test_only_the_tree_is_below_the_supervisor() -> None:
    ours = os.getpid()
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as one:
        assert one.stdout
        grandchild = int(one.stdout.readline())
        assert is_below(grandchild, one.pid)
        assert is_below(grandchild, ours)
        assert is_below(one.pid, ours)
        assert not is_below(ours, ours)
        assert not is_below(1, ours)
        assert not is_below(one.pid, grandchild)
        assert not is_below(1 << 30, ours)
        os.kill(grandchild, signal.SIGKILL)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_that_the_daemon_does_is_refused(tap: Tap, tmp_path: Path) -> None:
    trace, control = tmp_path / "trace", str(tmp_path / "control")
    options = ("--control", control, "--metrics", f"unix:{tmp_path}/metrics")
    run = Run(tap, *options, prefix=("strace", "-f", "-qq", "-o", str(trace)))
    assert run.say("open") == "opened"
    for command in ("query-vrings", "query-stats", "query-memory", "query-workers"):
        run.say(f"ask {control} {command}")
    run.end()
    lines = trace.read_text().splitlines()
    sealed = max(at for at, line in enumerate(lines) if "SECCOMP_FILTER_FLAG_TSYNC" in line)
    ours = re.match(r"\d+", lines[sealed])
    assert ours
    of_ours = [line for line in lines[sealed:] if line.startswith(ours[0])]
    assert any("SECCOMP_IOCTL_NOTIF_ADDFD" in line for line in of_ours)
    assert [line for line in lines[sealed:] if "= -1 EPERM" in line] == []
