"""What the opener does and does not do, whatever it is asked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from host import TAKES_DESCRIPTORS
from vhostnet.cli import sandbox
from vhostnet.confinement import acts, capabilities
from vhostnet.confinement.policy import Policy
from vhostnet.device import owner_files
from vhostnet.frontdoors import foreign_file, foreign_process, kept_node
from vhostnet.frontdoors.seccomp import tree_acts

ACTS_OF = (*sandbox.ACTS_OF, owner_files, foreign_process, kept_node, tree_acts)

#: All of it.  A new act needs a rule in Policy, a line in docs/confinement.md and one here.
CLOSED_LIST = {
    *("look_for_socket", "bind_unix", "remove_socket", "connect_unix", "open_tap_queue"),
    *("open_capture", "open_config", "find_group", "schedule_thread"),
    "open_interface_counts",
    # of doors whose devices are files that programs open
    *("open_memory", "open_mapped_file", "find_process", "take_descriptor", "keep_node"),
    *("identify_folder", "find_free_descriptor", "take_socket", "count_threads", "find_parent"),
}


def asked(policy: Policy, name: str, *args: object) -> tuple[dict, list[int]]:
    reply, fds = acts.perform(policy, json.dumps([name, list(args)]).encode())
    return json.loads(reply), fds


def refused(policy: Policy, name: str, *args: object) -> str:
    answer, fds = asked(policy, name, *args)
    assert not fds
    assert "error" in answer, answer
    return str(answer["text"])


def done(policy: Policy, name: str, *args: object) -> list[int]:
    answer, fds = asked(policy, name, *args)
    assert "error" not in answer, answer
    return fds


def test_the_list_is_closed():
    assert set(acts.acts()) == CLOSED_LIST
    assert len(ACTS_OF) > 0


def test_without_a_control_socket_only_what_is_configured_is_done(tmp_path):
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    policy = Policy(sockets=frozenset([mine]), peers=frozenset([mine]), captures=frozenset([mine]))
    assert "not in the daemon's configuration" in refused(policy, "bind_unix", other, 0o600, None)
    assert "not in the daemon's configuration" in refused(policy, "connect_unix", other)
    assert "not in the daemon's configuration" in refused(policy, "open_capture", other)
    assert "not in the daemon's configuration" in refused(policy, "open_tap_queue", "tap0", 0)
    assert "not the file of --config" in refused(policy, "open_config", "/etc/shadow")
    assert "no --config" in refused(policy, "find_group", "root")
    assert os.listdir(tmp_path) == []
    for fd in done(policy, "bind_unix", mine, 0o600, None):
        os.close(fd)
    assert os.listdir(tmp_path) == ["mine"]


def test_the_files_of_a_rotated_capture_are_those_of_the_capture(tmp_path):
    path = str(tmp_path / "c")
    policy = Policy(captures=frozenset([path]))
    for name in (path, f"{path}.1", f"{path}.12"):
        os.close(done(policy, "open_capture", name)[0])
    for name in (f"{path}.", f"{path}.0", f"{path}.x", f"{path}.1.1", f"{path}.1/../x"):
        refused(policy, "open_capture", name)


def control_of(folder: Path) -> Policy:
    return Policy(has_control=True, directories=frozenset([str(folder)]))


def test_control_clients_may_name_files_in_the_directories_not_below_them(tmp_path):
    (tmp_path / "below").mkdir()
    policy = control_of(tmp_path)
    os.close(done(policy, "open_capture", str(tmp_path / "c"))[0])
    for path in ("below/c", "../c", "below/../../c"):
        assert "outside of what the sandbox allows" in refused(
            policy, "open_capture", f"{tmp_path}/{path}"
        )
    os.close(done(policy, "open_capture", f"{tmp_path}/below/../d")[0])


def test_a_capture_replaces_only_a_file_of_ours(tmp_path):
    policy = control_of(tmp_path)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", tmp_path / "second-name")
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes").write_text("x")
    for name in ("link", "folder", "second-name", "secret", "notes"):
        refused(policy, "open_capture", f"{tmp_path}/{name}")
    assert (tmp_path / "secret").read_text() == (tmp_path / "notes").read_text() == "x"
    (tmp_path / "old").write_bytes(b"\n\r\r\nand so on")
    os.close(done(policy, "open_capture", f"{tmp_path}/old")[0])
    assert (tmp_path / "old").read_bytes() == b""


def test_control_clients_connect_where_the_operator_has_said_only(tmp_path):
    path = str(tmp_path / "s")
    policy = control_of(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        assert "allows, no folder (--sandbox-dirs)" in refused(policy, "connect_unix", path)
        policy.peer_directories = policy.directories
        os.close(done(policy, "connect_unix", path)[0])


def test_only_sockets_that_the_daemon_made_are_removed(tmp_path):
    policy = control_of(tmp_path)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(path)
    status = os.lstat(path)
    assert "not a socket of this" in refused(
        policy, "remove_socket", path, status.st_dev, status.st_ino
    )
    os.unlink(path)
    answer, [fd] = asked(policy, "bind_unix", path, 0o600, None)
    os.close(fd)
    done(policy, "remove_socket", path, *answer["value"])
    assert not os.path.exists(path)


def test_what_lies_at_a_configured_path_and_is_no_socket_stays(tmp_path):
    path = str(tmp_path / "s")
    policy = Policy(sockets=frozenset([path]))
    Path(path).write_text("x")
    status = os.lstat(path)
    done(policy, "remove_socket", path, status.st_dev, status.st_ino)
    assert "exists and is no socket" in refused(policy, "bind_unix", path, 0o600, None)
    assert Path(path).read_text() == "x"


def test_only_threads_of_the_daemon_are_scheduled_and_as_configured():
    policy = Policy(schedulings=frozenset([("other", 0)]))
    done(policy, "schedule_thread", os.getpid(), "other", 0)
    assert "not in the configuration" in refused(policy, "schedule_thread", os.getpid(), "fifo", 99)
    assert "no thread of the daemon's" in refused(policy, "schedule_thread", 1, "other", 0)


OF_PROCESSES = (
    ("open_memory", ()),
    ("open_mapped_file", (0, 4096, 0, 0)),
    ("find_process", ()),
    ("take_descriptor", (0,)),
    ("identify_folder", ("root", "/dev")),
    ("find_free_descriptor", (100, 101)),
    ("take_socket", (0,)),
    ("count_threads", ()),
    ("find_parent", ()),
)


#: Has files of three kinds, to read only, and memory that is shared; waits.
CALLER = """
import mmap, os, sys
shared = os.memfd_create("memory")
os.ftruncate(shared, 8192)
memory = mmap.mmap(shared, 8192)
read_only = open(sys.argv[1], "rb")
looked_at = mmap.mmap(read_only.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
device = os.open("/dev/zero", os.O_RDWR)
print(shared, device, flush=True)
sys.stdin.read()
"""


@dataclass
class Caller:
    """A process that a door serves."""

    pid: int
    shared: int
    device: int
    path: Path

    def lines(self, words: str) -> list[tuple[int, int, int, int]]:
        """Mappings that are of such a file: start, end, device, inode."""
        found = []
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            if words in line:
                span, _, _, device, inode, *_ = line.split()
                major, minor = (int(n, 16) for n in device.split(":"))
                start, end = (int(a, 16) for a in span.split("-"))
                found.append((start, end, os.makedev(major, minor), int(inode)))
        return found


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[Caller]:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        shared, device = map(int, process.stdout.readline().split())
        yield Caller(process.pid, shared, device, path)
        process.stdin.close()


@pytest.mark.parametrize(("name", "arguments"), OF_PROCESSES)
def test_only_processes_of_the_door_are_looked_into(name, arguments, caller):
    assert "is not one that this daemon serves" in refused(Policy(), name, caller.pid, *arguments)
    policy = Policy(processes=lambda tid: tid == caller.pid)
    assert "is not one that this daemon serves" in refused(policy, name, 1, *arguments)
    answer, fds = asked(policy, name, caller.pid, *arguments)
    for fd in fds:
        os.close(fd)
    assert "is not one" not in str(answer)


@pytest.mark.parametrize(("name", "arguments"), OF_PROCESSES)
def test_the_daemon_itself_is_not_looked_into(name, arguments, caller):
    policy = Policy(processes=lambda _tid: True)
    for tid in (os.getpid(), threading.get_native_id()):
        assert "the daemon's own" in refused(policy, name, tid, *arguments)
    sealed = Policy(processes=lambda _tid: True, sealed=caller.pid)
    assert "the daemon's own" in refused(sealed, name, caller.pid, *arguments)


def test_memory_that_a_process_shares_is_opened_as_it_has_it(caller):
    policy = Policy(processes=lambda tid: tid == caller.pid)
    [line] = caller.lines("memfd:memory")
    [fd] = done(policy, "open_mapped_file", caller.pid, *line)
    status = os.fstat(fd)
    assert (status.st_dev, status.st_ino) == line[2:]
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    os.close(fd)


def test_a_file_that_a_process_may_only_read_is_not_opened(caller):
    policy = Policy(processes=lambda tid: tid == caller.pid)
    image = caller.path.stat()
    [(start, end, *_)] = caller.lines("memfd:memory")
    zero = os.stat("/dev/zero")
    forged = [
        *caller.lines("libc"),  # its code
        *caller.lines("/image"),  # shared, to be read
        (start, end, image.st_dev, image.st_ino),  # the file that is open, not the one mapped
        (start, end, zero.st_dev, zero.st_ino),  # a device, which would be opened anew
    ]
    assert len(forged) > 3
    for arguments in forged:
        assert "no such memory" in refused(policy, "open_mapped_file", caller.pid, *arguments)
    [(start, end, *file)] = caller.lines("memfd:memory")
    for span in ((start, end + 4096), (start + 4096, end), (0, 1 << 47)):
        assert "no such memory" in refused(policy, "open_mapped_file", caller.pid, *span, *file)


@pytest.mark.parametrize(
    "start", ["", "exe", "fd/", "fd/-1", "fd/x", "root/..", "../1/root", "cwd\n"]
)
def test_a_path_of_a_process_begins_at_its_root_its_folder_or_a_descriptor(start, caller):
    policy = Policy(processes=lambda _tid: True)
    assert "no place to begin at" in refused(policy, "identify_folder", caller.pid, start, "/")


@TAKES_DESCRIPTORS
def test_only_unix_sockets_are_taken_as_such():
    reader, writer = os.pipe()
    with socket.socket() as inet, socket.socket(socket.AF_UNIX) as unix:
        for fd in (inet.fileno(), reader, writer):
            assert tree_acts.take_socket(os.getpid(), fd) == (0, [])
        inode, [taken] = tree_acts.take_socket(os.getpid(), unix.fileno())
        assert inode == os.fstat(unix.fileno()).st_ino
        os.close(taken)
    os.close(reader)
    os.close(writer)


def test_a_thread_that_is_gone_is_told_from_one_that_is_not_ours():
    answer, _ = asked(Policy(processes=lambda _tid: False), "open_memory", 1 << 30)
    assert answer["errno"] == errno.ESRCH


def test_who_has_a_device_open_is_known_by_its_number():
    zero = os.stat("/dev/zero").st_rdev
    number = os.major(zero), os.minor(zero)
    tid = threading.get_native_id()
    before = foreign_file.has_open(tid, number)
    fd = os.open("/dev/zero", os.O_RDONLY)
    assert foreign_file.has_open(tid, number)
    os.close(fd)
    assert not before
    assert not foreign_file.has_open(tid, number)
    assert not foreign_file.has_open(1 << 30, number)


def test_without_a_node_none_is_kept():
    assert "no device node" in refused(Policy(), "keep_node", "restore")


def test_the_opener_keeps_the_capabilities_that_its_policy_needs():
    ptrace = 1 << capabilities.CAP_SYS_PTRACE | 1 << capabilities.CAP_CHECKPOINT_RESTORE
    mknod, nice = 1 << capabilities.CAP_MKNOD, 1 << capabilities.CAP_SYS_NICE
    least = Policy().capabilities
    assert not least & (ptrace | mknod | nice)
    assert Policy(processes=lambda _tid: True, has_node=True).capabilities == least | ptrace | mknod
    assert Policy(has_control=True).capabilities == least | nice


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\x00",
        b"[" * 60000,
        b"{}",
        b"[]",
        b'["open_capture"]',
        b'["open_capture", {}]',
        b'["open_capture", []]',
        b'["open_capture", [7]]',
        b'["open_capture", ["/x\\u0000y"]]',
        b'["open_capture", ["\\ud800"]]',
        b'["bind_unix", ["/tmp/x", true, null]]',
        b'["system", ["true"]]',
        b'["__class__", []]',
        b"[1e999, []]",
        b'["bind_unix", ["/tmp/vhostnet-no-such", 1' + b"0" * 40 + b", null]]",
        b'["schedule_thread", [%d, "xyz", 1]]' % os.getpid(),
        b'["schedule_thread", [1' + b"0" * 40 + b', "fifo", 1]]',
    ],
)
def test_nonsense_is_refused(message):
    reply, fds = acts.perform(control_of(Path("/tmp")), message)
    assert "error" in json.loads(reply)
    assert fds == []
