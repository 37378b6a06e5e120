"""The life of a tree: statuses, signals, what outlives the command, what outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tree_bed
from host import RUNS_TREES
from tree_bed import (
    PROLOGUE,
    TIMEOUT_S,
    command,
    is_alive,
    run_in_tree,
    supervisor_of,
    wait_until,
)

pytestmark = RUNS_TREES


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def start(journal: Path) -> Iterator:
    """Start a Python program in a tree and leave it running."""
    made: list[subprocess.Popen[str]] = []

    def make(program: str, *arguments: str, **more) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(
                command(journal, sys.executable, "-c", PROLOGUE + program, *arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **more,
            )
        )
        return made[-1]

    yield make
    for process in made:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
    if journal.exists():
        pid = supervisor_of(journal)
        wait_until(lambda: not is_alive(pid), "the supervisor goes on for ever")


def status_of(journal: Path, *words: str) -> tuple[int, str]:
    ended = subprocess.run(
        command(journal, *words), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return ended.returncode, ended.stderr


# --- statuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_status_is_the_commands(journal, status) -> None:
    assert status_of(journal, "sh", "-c", f"exit {status}") == (status, "")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_that_ends_the_command_is_in_the_status(journal, signum) -> None:
    assert status_of(journal, "sh", "-c", f"kill -{signum} $$") == (128 + signum, "")


def test_a_command_that_cannot_be_run(journal, tmp_path) -> None:
    assert status_of(journal, "no-such-command") == (
        127,
        "no-such-command: No such file or directory\n",
    )
    missing = str(tmp_path / "missing")
    assert status_of(journal, missing) == (127, f"{missing}: No such file or directory\n")
    (tmp_path / "text").write_text("")
    text = str(tmp_path / "text")
    assert status_of(journal, text) == (126, f"{text}: Permission denied\n")
    assert status_of(journal, str(tmp_path))[0] == 126


def test_a_tree_in_a_tree_is_refused_in_one_line(journal) -> None:
    status, said = status_of(journal, *command(journal, "true"))
    assert status == 125
    assert said.count("\n") == 1
    assert "nested" in said


def test_devices_that_do_not_load_are_a_failure_of_ours(journal, tmp_path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "import sys\nfrom vhostnet.errors import HostError, VhostnetError\n"
        "from vhostnet.frontdoors.seccomp import tree\n"
        "def load():\n    raise HostError('no room')\n"
        "try:\n    sys.exit(tree.run(['true'], load))\n"
        "except VhostnetError as e:\n    print(e)\n    sys.exit(e.exit_status)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (ended.returncode, ended.stdout) == (125, "no room\n")
    del journal


def test_input_and_output_are_the_commands(journal) -> None:
    ended = subprocess.run(
        command(journal, "sh", "-c", "cat; echo error >&2; ls /proc/self/fd | wc -l"),
        input="given\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert ended.stdout.splitlines() == ["given", "4"]  # 0, 1, 2, and that of ls
    assert ended.stderr == "error\n"


def test_the_command_has_the_signals_that_we_were_given(journal) -> None:
    plain = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
    ended = subprocess.run(
        command(journal, *plain), capture_output=True, timeout=TIMEOUT_S, check=True
    )
    expected = subprocess.run(plain, capture_output=True, timeout=TIMEOUT_S, check=True)
    assert ended.stdout == expected.stdout


def test_the_command_is_in_our_process_group(start) -> None:
    process = start("print(os.getpgrp(), os.getsid(0))", start_new_session=True)
    group, session = process.communicate(timeout=TIMEOUT_S)[0].split()
    assert int(group) == int(session) == process.pid


# --- containers ---------------------------------------------------------------------------------


def confined(journal: Path, numbers: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a tree in a container that forbids some system calls (of x86-64)."""
    file = Path(tree_bed.__file__).with_name("confined.py")
    return subprocess.run(
        [sys.executable, str(file), numbers, "1", *command(journal, *words)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


on_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="its system calls' numbers")


@on_x86_64
def test_podmans_rules_are_enough(journal) -> None:
    """No ptrace, no process_vm_readv and _writev, no kcmp."""
    program = PROLOGUE + "print(features(opened()).decode(), os.stat(NODE).st_rdev)"
    ended = confined(journal, "101,310,311,312", sys.executable, "-c", program)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"features {os.makedev(10, 238)}\n"


@on_x86_64
def test_dockers_rules_are_named_in_one_line(journal) -> None:
    """No pidfd_getfd."""
    ended = confined(journal, "438", "true")
    assert ended.returncode == 125
    assert ended.stderr.count("\n") == 1
    assert "pidfd_getfd" in ended.stderr
    assert "SYS_PTRACE" in ended.stderr


@on_x86_64
def test_a_kernel_without_listeners_is_named_in_one_line(journal) -> None:
    ended = confined(journal, "317", "true")
    assert ended.returncode == 125
    assert ended.stderr.count("\n") == 1
    assert "seccomp" in ended.stderr


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT]
)
def test_signals_are_passed_on(start, signum) -> None:
    process = start(f"""
signal.signal({int(signum)}, lambda *_: sys.exit(33))
print("up", flush=True)
while True:
    time.sleep(0.1)
""")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signum)
    assert process.wait(TIMEOUT_S) == 33


def test_the_command_does_not_outlive_us_when_we_are_killed(start) -> None:
    process = start("print(os.getpid(), flush=True); time.sleep(1000)")
    pid = int(process.stdout.readline())
    process.kill()
    wait_until(lambda: not is_alive(pid))


# --- what outlives the command --------------------------------------------------------------------

DAEMON = """
fd = opened()
child = os.fork()
if child:
    print(child, flush=True)
    os._exit(7)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for stream in range(3):
    os.dup2(null, stream)
fcntl.ioctl(fd, SET_OWNER)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
other = opened()
open(sys.argv[1] + ".answer", "w").write(features(fd).decode() + features(other).decode())
"""


def test_what_goes_on_in_the_background_is_served(start, journal, tmp_path) -> None:
    asked = tmp_path / "asked"
    process = start(DAEMON, str(asked))
    out, err = process.communicate(timeout=TIMEOUT_S)  # nobody of ours holds the pipes
    assert (process.returncode, err) == (7, "")
    pid, supervisor = int(out), supervisor_of(journal)
    assert is_alive(pid)
    assert is_alive(supervisor)
    asked.write_text("")
    answer = tmp_path / "asked.answer"
    wait_until(lambda: answer.exists() and answer.read_text() == "features" * 2)
    wait_until(lambda: not is_alive(supervisor), "it ends with the last of the tree")
    lines = journal.read_text().splitlines()
    assert lines.count("open0 release") == lines.count("open1 release") == 1


def test_nothing_of_ours_is_left_after_the_command(journal) -> None:
    run_in_tree(journal, "opened()")
    supervisor = supervisor_of(journal)
    wait_until(lambda: not is_alive(supervisor))
    keepers = [p for p in Path("/proc").glob("[0-9]*/comm") if _is_keeper_of(p, journal)]
    wait_until(lambda: not any(is_alive(int(p.parent.name)) for p in keepers))


def _is_keeper_of(comm: Path, journal: Path) -> bool:
    try:
        return (
            comm.read_text() == "vhostnet-keeper\n"
            and str(journal).encode() in (comm.parent / "cmdline").read_bytes()
        )
    except OSError:
        return False


# --- what outlives us -----------------------------------------------------------------------------


def test_when_the_supervisor_dies_all_else_goes_on(start, journal) -> None:
    process = start("""
fd = opened()
low = os.dup(fd)
print("up", flush=True)
sys.stdin.readline()
print(refusal(opened), refusal(fcntl.ioctl, fd, GET_FEATURES, 0))
print(refusal(fcntl.ioctl, low, SET_OWNER), refusal(os.write, fd, bytes(72)))
for backend in (5, -1):
    print(refusal(fcntl.ioctl, fd, 0x4008AF30, struct.pack("=Ii", 0, backend)) == "ENODEV")
print(open("/proc/self/comm").read().strip() != "", os.path.exists("/dev/null"))
child = os.fork()
if child == 0:
    os.execv("/bin/true", ["true"])
print(os.waitpid(child, 0)[1])
os.close(fd)
sys.exit(44)
""")
    assert process.stdout.readline() == "up\n"
    os.kill(supervisor_of(journal), signal.SIGKILL)
    out, err = process.communicate("\n", timeout=TIMEOUT_S)
    assert out.splitlines() == [
        "ENODEV ENODEV",
        "ENODEV EPIPE",
        "True",
        "False",  # a backend that is gone can be taken away: QEMU aborts if it cannot
        "True True",
        "0",
    ]
    assert process.returncode == 44, "the command's status is still known"
    assert err == (
        "vhostnet: the supervisor ended with status 137: "
        "/dev/vhost-net is gone, the command goes on\n"
    )


@pytest.mark.parametrize("others", [0, 3])
def test_a_call_that_the_supervisor_dies_in_is_answered(start, others) -> None:
    process = start(
        """
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
fd = opened()
for _ in range(int(sys.argv[1])):  # some more calls are waiting at that moment
    if os.fork() == 0:
        for _ in range(200):
            os.stat("/dev/null")
        os._exit(0)
print(refusal(fcntl.ioctl, fd, CRASH))
for _ in range(int(sys.argv[1])):
    print(os.wait()[1])
""",
        str(others),
    )
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert out.splitlines() == ["ENODEV"] + ["0"] * others
    assert process.returncode == 0


def test_a_process_in_the_background_lives_when_the_supervisor_dies(
    start, journal, tmp_path
) -> None:
    process = start(
        """
if os.fork():
    os._exit(0)
null = os.open("/dev/null", os.O_RDWR)
for stream in range(3):
    os.dup2(null, stream)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
open(sys.argv[1] + ".answer", "w").write(refusal(opened))
""",
        str(tmp_path / "asked"),
    )
    process.communicate(timeout=TIMEOUT_S)
    os.kill(supervisor_of(journal), signal.SIGKILL)
    (tmp_path / "asked").write_text("")
    answer = tmp_path / "asked.answer"
    wait_until(lambda: answer.exists() and answer.read_text() == "ENODEV")
