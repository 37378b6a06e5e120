"""A daemon in its sandbox: what its threads cannot do, and what it can; hosts without a part."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import serve_process
from front_end import HDR, FrontEnd, Guest
from serve_process import ServeProcess, wait_until
from telling import HARMLESS, N_ATTEMPTS, RUN, SEEN, TELLING, what_it_said
from vhostnet.confinement import kernel_raw
from vhostnet.confinement.syscall_numbers import native
from vhostnet.control.client import ControlClient, Refused
from vhostnet_frontend import NetDriver, VhostUserTransport

STAGES = [
    *("descriptors", "no new privileges", "namespaces", "capabilities", "landlock", "memory"),
    "system calls",
]
TESTS = Path(serve_process.__file__).parent

TELLING_WORKER = ("-c", TELLING + RUN)


def ask(control: str, command: str, **arguments: object) -> object:
    given = {name.replace("_", "-"): value for name, value in arguments.items()}
    with ControlClient(control) as client:
        return client.execute(command, **given)


class Sandboxed(ServeProcess):
    """A daemon with a control socket, below a folder of its own."""

    def __init__(self, folder: Path, *options: str, **more: Sequence[str]) -> None:
        self.control = str(folder / "control")
        super().__init__(folder, *options, "--control", self.control, **more)

    def ask(self, command: str, **arguments: object) -> object:
        return ask(self.control, command, **arguments)

    def stages(self) -> dict[str, dict[str, object]]:
        return {stage["stage"]: stage for stage in self.ask("query-sandbox")["stages"]}

    @property
    def opener(self) -> int:
        tasks = Path(f"/proc/{self.process.pid}/task")
        [pid] = [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
        return int(pid)


def exchange(daemon: ServeProcess, guest: Guest) -> FrontEnd:
    """A front-end whose guest has sent a packet; the worker has seen it."""
    front_end = FrontEnd(daemon.socket).negotiate().start(guest)
    guest.tx.send(HDR + bytes(60))
    guest.tx.kick()
    guest.tx.wait_used(1)
    return front_end


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Sandboxed]]:
    """Starts daemons in tmp_path; what a test that failed has left is ended."""
    started = []

    def start(*options: str, **more: Sequence[str]) -> Sandboxed:
        started.append(Sandboxed(tmp_path, *options, **more))
        return started[-1]

    yield start
    for daemon in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()


@pytest.fixture
def guest() -> Iterator[Guest]:
    it = Guest()
    yield it
    it.close()


def has_all() -> bool:
    """Whether this host has all stages; they are seen to be refused by another test."""
    done = subprocess.run(
        ["unshare", "--user", "--map-current-user", "--mount", "--net", "true"],
        capture_output=True,
        check=False,
    )
    try:
        kernel_raw.prctl(kernel_raw.PR_GET_MDWE)
        return not done.returncode and kernel_raw.landlock_abi() > 0 and native() is not None
    except OSError:
        return False


needs_all = pytest.mark.skipif(
    not has_all(), reason="no user namespaces, no landlock or no PR_SET_MDWE (Linux 6.3) here"
)


@needs_all
def test_a_worker_can_neither_open_a_file_nor_make_a_socket(serve, guest):
    daemon = serve("--backend", "null", program=TELLING_WORKER)
    with exchange(daemon, guest):
        said = what_it_said(daemon.log())
    assert len(said) == N_ATTEMPTS
    assert said.pop(SEEN) == "ENOENT"
    assert set(said.values()) == {"EPERM"}, said
    daemon.check_and_stop()


def test_without_the_sandbox_the_same_worker_can(serve, guest, monkeypatch):
    """The test above is able to fail; what has no effects is tried."""
    monkeypatch.setenv("ATTEMPTS", ",".join(HARMLESS))
    options = ("--backend", "null", "--sandbox", "none")
    daemon = serve(*options, program=TELLING_WORKER)
    with exchange(daemon, guest):
        said = what_it_said(daemon.log())
    assert said == dict.fromkeys(HARMLESS, "done")
    assert "sandbox: none (--sandbox none)" in daemon.log()
    daemon.check_and_stop()


@needs_all
def test_every_thread_is_inside_and_the_kernel_says_so(serve, tmp_path, guest):
    daemon = serve("--backend", "null")
    daemon.ask("capture-start", file=str(tmp_path / "c"))
    with exchange(daemon, guest):
        tasks = list(Path(f"/proc/{daemon.process.pid}/task").iterdir())
        assert len(tasks) >= 3  # control, a worker, the capture
        for task in tasks:
            status = dict(
                line.split(":\t", 1) for line in (task / "status").read_text().splitlines()
            )
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[name], 16) == 0, name
            for space in ("user", "mnt", "net", "ipc", "uts"):
                assert os.readlink(task / "ns" / space) != os.readlink(f"/proc/self/ns/{space}")
    daemon.check_and_stop()


@needs_all
def test_what_holds_can_be_asked(serve):
    daemon = serve("--backend", "null")
    told = daemon.ask("query-sandbox")
    assert told["sandbox"] == "auto"
    assert [stage["stage"] for stage in told["stages"] if stage["holds"]] == STAGES
    assert (told["kernel"]["seccomp"], told["kernel"]["no-new-privs"]) == ("2", "1")
    assert set(told["attempts"].values()) == {"EPERM"}
    done = subprocess.run(
        [sys.executable, "-m", "vhostnet", "ctl", "--control", daemon.control, "sandbox"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "sandbox: auto" in done.stdout
    daemon.check_and_stop()


@needs_all
def test_without_a_sandbox_that_can_be_asked_too(serve):
    daemon = serve("--backend", "null", "--sandbox", "none")
    told = daemon.ask("query-sandbox")
    assert (told["sandbox"], told["why"], told["stages"]) == ("none", "--sandbox none", [])
    assert set(told["attempts"].values()) == {"possible"}
    assert not Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text()
    daemon.check_and_stop()


# --- a host that lacks a part ---------------------------------------------------------------------


def without(calls: Sequence[str], code: int) -> tuple[str, ...]:
    """The words of a command that makes these calls fail for the one that follows."""
    known = native()
    assert known is not None
    numbers = ",".join(str(known.number[name]) for name in calls)
    return (sys.executable, str(TESTS / "confined.py"), numbers, str(code))


LACKS = {
    "no landlock": (
        ["landlock_create_ruleset"],
        38,
        "landlock",
        "this kernel has no landlock",
    ),
    "landlock is off": (["landlock_create_ruleset"], 95, "landlock", "not among this kernel's lsm"),
    "no namespaces": (["unshare"], 1, "namespaces", "no user namespaces here"),
    "no mounts": (["mount", "pivot_root"], 1, "namespaces", "the root is not empty"),
    "no filters": (["seccomp"], 22, "system calls", "no seccomp filters"),
}


@needs_all  # which each of these takes one away from
@pytest.mark.parametrize(("calls", "code", "stage", "why"), LACKS.values(), ids=LACKS)
def test_a_host_that_lacks_a_part_is_served_without_it(
    serve, tmp_path, guest, calls, code, stage, why
):
    prefix = without(calls, code)
    daemon = serve("--backend", "null", prefix=prefix)
    found = daemon.stages()
    assert not found[stage]["holds"]
    assert why in found[stage]["detail"]
    assert f"sandbox: without {stage}: " in daemon.log()
    for other in set(STAGES) - {stage, "namespaces"}:
        assert found[other]["holds"], found[other]
    with exchange(daemon, guest):
        daemon.ask("device-add", socket=str(tmp_path / "other"), backend="null")
    daemon.check_and_stop()


@needs_all  # which each of these takes one away from
@pytest.mark.parametrize(("calls", "code", "stage", "why"), LACKS.values(), ids=LACKS)
def test_unless_it_is_required(tmp_path, calls, code, stage, why):
    words = ("serve", "--socket-path", str(tmp_path / "s"), "--backend", "null")
    done = subprocess.run(
        [
            *(*without(calls, code), sys.executable, "-m", "vhostnet", *words),
            *("--sandbox", "required"),
        ],
        capture_output=True,
        text=True,
        timeout=serve_process.READY_S,
        check=False,
    )
    assert done.returncode == 4
    assert f"vhostnet: --sandbox required: {stage}: " in done.stderr
    assert why in done.stderr
    assert os.listdir(tmp_path) == []


# --- the opener -----------------------------------------------------------------------------------


def test_the_opener_is_confined_and_ends_with_the_daemon(serve):
    daemon = serve("--backend", "null")
    pid = daemon.opener
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Name:\tvhost-opener" in status
    assert "NoNewPrivs:\t1" in status
    [effective] = re.findall(r"CapEff:\t(\w+)", status)
    # CHOWN, DAC_OVERRIDE, FOWNER, NET_ADMIN, SYS_NICE
    assert int(effective, 16) & ~0x80100B == 0
    with contextlib.suppress(PermissionError):  # who may not trace it may not see its files
        held = sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        assert [name.partition(":")[0] for name in held if not name.startswith("/")] == ["socket"]
    pidfd = os.pidfd_open(pid)
    daemon.kill()
    assert select.select([pidfd], [], [], serve_process.PATIENCE_S)[0], "the opener goes on"
    os.close(pidfd)


def test_an_opener_that_dies_is_told_of_and_devices_go_on(serve, tmp_path, guest):
    daemon = serve("--backend", "null")
    os.kill(daemon.opener, signal.SIGKILL)
    wait_until(lambda: "the opener has ended (status -9)" in daemon.log(), "a line")
    for command, arguments in (
        ("capture-start", {"file": str(tmp_path / "c")}),
        ("device-add", {"socket": str(tmp_path / "t"), "backend": "null"}),
    ):
        with pytest.raises(Refused, match="the opener has gone"):
            daemon.ask(command, **arguments)
    with exchange(daemon, guest):
        pass
    daemon.check_and_stop()


@needs_all
def test_signals_of_a_service_manager_do_not_end_the_opener(serve, tmp_path):
    """It sends them to all processes of a unit; the socket's file is to be removed after that."""
    daemon = serve("--backend", "null")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(daemon.opener, signum)
    daemon.ask("capture-start", file=str(tmp_path / "c"))
    os.killpg(daemon.process.pid, signal.SIGTERM)
    assert daemon.process.wait(serve_process.PATIENCE_S) == 0
    assert sorted(os.listdir(tmp_path)) == ["c", "vhostnet.log"]


def test_a_lost_front_end_is_connected_to_again(serve, tmp_path):
    path = str(tmp_path / "vmm")
    daemon = serve("--device", f"socket={path},backend=null,client=on")
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            listening.settimeout(serve_process.PATIENCE_S)
            connection, _ = listening.accept()
            connection.close()
        os.unlink(path)
    daemon.check_and_stop()


def test_a_capture_is_rotated_by_the_thread_that_writes_it(serve, tmp_path):
    daemon = serve("--backend", "null")
    daemon.ask("capture-start", file=str(tmp_path / "c"), rotate_mib=1)
    with NetDriver(VhostUserTransport.connect(daemon.socket)) as driver:
        driver.start()
        sender = driver.sender(bytes(1500), stamped=True)

        def has_rotated_twice() -> bool:
            assert sender.run(count=50).frames == 50
            assert sender.finish()
            return {"c", "c.1", "c.2"} <= set(os.listdir(tmp_path))

        wait_until(has_rotated_twice, "two files and a third")
    daemon.ask("capture-stop")
    daemon.check_and_stop()


def test_a_filter_is_compiled_inside_without_a_control_socket(tmp_path, guest):
    options = ("--backend", "null", "--pcap", str(tmp_path / "c"), "--pcap-filter", "tcp port 80")
    daemon = ServeProcess(tmp_path, *options)
    with exchange(daemon, guest):
        pass
    daemon.check_and_stop()


def test_descriptors_that_nobody_asked_for_are_closed(tmp_path):
    stray, ours = os.pipe()
    os.set_inheritable(stray, True)
    words = ("serve", "--socket-path", str(tmp_path / "s"), "--backend", "null", "--ready-fd")
    ready, told = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "vhostnet", *words, str(told)],
        pass_fds=[stray, told],
        stderr=subprocess.DEVNULL,
    )
    os.close(told)
    try:
        assert os.read(ready, 64) == b"READY=1\n"
        os.close(stray)
        with pytest.raises(BrokenPipeError):  # nobody has the other end any more
            os.write(ours, b"x")
    finally:
        process.terminate()
        process.wait(serve_process.PATIENCE_S)
        os.close(ready)
        os.close(ours)


@needs_all
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_that_the_daemon_does_is_refused(tmp_path, guest):
    """What the allow-list lacks shows here: a call that fails with EPERM after the seal."""
    trace, path, control = tmp_path / "trace", str(tmp_path / "socket"), str(tmp_path / "control")
    words = ("serve", "--socket-path", path, "--backend", "null", "--control", control)
    process = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(trace), sys.executable, "-m", "vhostnet", *words],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: os.path.exists(path), "a socket", serve_process.READY_S)
        ask(control, "capture-start", file=str(tmp_path / "c"), filter="ip or not ip")
        ask(control, "device-add", socket=f"{path}2", backend="null", queue_pairs=2)
        with FrontEnd(path).negotiate().start(guest):
            guest.tx.send(HDR + bytes(60))
            guest.tx.kick()
            guest.tx.wait_used(1)
            for command in ("query-vrings", "query-stats", "query-memory", "query-workers"):
                ask(control, command)
            ask(control, "inspect", device="dev0", queue="tx0")
        ask(control, "capture-stop")
        ask(control, "device-del", device="dev1")
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(serve_process.PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = trace.read_text().splitlines()
    sealed = max(at for at, line in enumerate(lines) if " seccomp(" in line)
    assert [line for line in lines[sealed:] if "= -1 EPERM" in line] == []
    assert any("writev(" in line or "accept4(" in line for line in lines[sealed:])
    assert not os.path.exists(path)
