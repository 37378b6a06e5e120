"""What a program in the tree sees of the device, and of everything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from host import RUNS_TREES
from tree_bed import run_in_tree

pytestmark = RUNS_TREES


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def said(journal: Path, program: str, *arguments: str) -> list[str]:
    """What the program prints, by lines; it must end well."""
    ended = run_in_tree(journal, program, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_the_node_is_there_for_whoever_looks(journal) -> None:
    assert said(
        journal,
        """
for look in (os.stat, os.lstat):
    s = look(NODE)
    print(stat.S_ISCHR(s.st_mode), oct(s.st_mode & 0o777), os.major(s.st_rdev),
          os.minor(s.st_rdev), s.st_nlink, s.st_dev == os.stat("/dev").st_dev)
print(os.access(NODE, os.R_OK | os.W_OK), os.access(NODE, os.F_OK), os.access(NODE, os.X_OK))
print(os.path.realpath(NODE), os.path.exists(NODE), os.path.islink(NODE))
print(refusal(os.readlink, NODE), os.listxattr(NODE), refusal(os.getxattr, NODE, "user.x"))
buffer = ctypes.create_string_buffer(256)
print(libc.statx(-100, NODE.encode(), 0, 0xfff, buffer), struct.unpack_from("=II", buffer, 128),
      oct(struct.unpack_from("=H", buffer, 28)[0]))
print(libc.stat(NODE.encode(), 1) == -1 and errno.errorcode[ctypes.get_errno()])
""",
    ) == [
        "True 0o666 10 238 1 True",
        "True 0o666 10 238 1 True",
        "True True False",
        "/dev/vhost-net True False",
        "EINVAL [] ENODATA",
        "0 (10, 238) 0o20666",
        "EFAULT",
    ]


@pytest.mark.skipif(os.path.lexists("/dev/vhost-net"), reason="the host has one of its own")
def test_every_way_to_its_folder_leads_to_it(journal) -> None:
    assert said(
        journal,
        """
import tempfile
os.chdir("/dev")
folder = os.open("/dev", os.O_PATH)
with tempfile.TemporaryDirectory() as room:
    os.symlink("/dev", room + "/way")
    os.symlink("/dev/vhost-net", room + "/vhost-link")
    open(room + "/vhost-net", "w").write("a file")
    for path, more in (
        ("/dev/vhost-net", {}), ("//dev/./vhost-net", {}), ("/dev/../dev/vhost-net", {}),
        ("/proc/self/root/dev/vhost-net", {}), ("vhost-net", {}), ("./vhost-net", {}),
        ("vhost-net", {"dir_fd": folder}), ("../dev/vhost-net", {"dir_fd": folder}),
        (room + "/way/vhost-net", {}),
    ):
        fd = opened(path=path, **more)
        print(features(fd).decode(), stat.S_ISCHR(os.stat(path, **more).st_mode))
        os.close(fd)
    for path in (room + "/vhost-net", room + "/vhost-link", room + "/none/vhost-net",
                 "/dev/vhost-net/", "/dev/vhost-nets", "/vhost-net"):
        print(refusal(open, path, "r") if path != room + "/vhost-net" else open(path).read())
""",
    ) == ["features True"] * 9 + ["a file", "ENOENT", "ENOENT", "ENOENT", "ENOENT", "ENOENT"]


def test_flags_of_open(journal) -> None:
    assert said(
        journal,
        """
assert stat.S_ISCHR(os.stat(NODE).st_mode)  # or we would make a file
print(refusal(opened, os.O_RDWR | os.O_CREAT | os.O_EXCL))
print(os.fstat(opened(os.O_RDWR | os.O_CREAT | os.O_TRUNC)).st_rdev == os.makedev(10, 238))
for flags in (os.O_RDWR, os.O_RDWR | os.O_NONBLOCK):
    fd = opened(flags)
    print(os.get_blocking(fd), os.get_inheritable(fd))  # Python asks for O_CLOEXEC
raw = libc.open(NODE.encode(), os.O_RDWR)
print(os.get_inheritable(raw), features(raw).decode())
print(features(libc.creat(NODE.encode(), 0o600)).decode())
how = struct.pack("=QQQ", os.O_RDWR | os.O_CLOEXEC, 0, 0)
fd = libc.syscall(437, -100, NODE.encode(), how, 24)
print(features(fd).decode(), os.get_inheritable(fd))
""",
    ) == [
        "EEXIST",
        "True",
        "True False",
        "False False",
        "True features",
        "features",
        "features False",
    ]


def test_ioctls_are_the_drivers_wherever_the_descriptor_is(journal) -> None:
    assert said(
        journal,
        """
fd = opened()
low = os.dup(fd)
print(low < 100 < fd, features(fd) == features(low))
theirs, ours = socket.socketpair()
socket.send_fds(theirs, [b"x"], [low])
passed = socket.recv_fds(ours, 1, 1)[1][0]
print(features(passed).decode())
kick = os.eventfd(0)
fcntl.ioctl(passed, SET_KICK, struct.pack("=Ii", 0, kick))
print(os.eventfd_read(kick))
print(refusal(fcntl.ioctl, fd, SET_KICK, struct.pack("=Ii", 0, 999)))
print(refusal(fcntl.ioctl, fd, GET_FEATURES, 0), refusal(fcntl.ioctl, fd, 0x5401, 0))
print(refusal(fcntl.ioctl, ours.fileno(), GET_FEATURES, 0), refusal(fcntl.ioctl, 900, 0xAF01))
fcntl.ioctl(fd, 0x5450)  # FIONCLEX is not the driver's
print(os.get_inheritable(fd))
""",
    ) == [
        "True True",
        "features",
        "1",
        "EBADF",
        "EFAULT ENOTTY",
        "ENOTTY EBADF",
        "True",
    ]


def test_fstat_knows_the_device_in_the_reserved_range(journal) -> None:
    assert said(
        journal,
        """
fd = opened()
buffer = ctypes.create_string_buffer(256)
print(os.fstat(fd).st_rdev == os.makedev(10, 238), os.stat(fd).st_rdev == os.makedev(10, 238))
print(libc.statx(fd, b"", 0x1000, 0xfff, buffer), struct.unpack_from("=II", buffer, 128))
print(os.fstat(os.dup2(0, 1000)).st_rdev == os.fstat(0).st_rdev)
""",
    ) == ["True True", "0 (10, 238)", "True"]


def test_the_last_close_is_the_end_and_no_other(journal) -> None:
    said(
        journal,
        """
fd = opened()
copies = [os.dup(fd), os.dup2(fd, 50)]
os.close(fd)
child = os.fork()
if child == 0:
    time.sleep(0.1)
    print(features(50).decode(), flush=True)
    os._exit(0)
for copy in copies:
    os.close(copy)
os.waitpid(child, 0)
fd = opened()
fcntl.ioctl(fd, SET_OWNER)
print("still here")
""",
    )
    lines = [line for line in journal.read_text().splitlines() if line.startswith("open")]
    assert lines[:3] == ["open0 open", "open0 release", "open1 open"]
    assert "open1 release" in lines


def test_an_owner_that_ends_is_noticed_while_others_have_the_file(journal) -> None:
    said(
        journal,
        """
fd = opened()
child = os.fork()
if child == 0:
    fcntl.ioctl(fd, SET_OWNER)
    os._exit(0)
os.waitpid(child, 0)
while refusal(fcntl.ioctl, fd, SET_OWNER) == "EBUSY":
    time.sleep(0.01)
print("mine")
""",
    )
    lines = journal.read_text()
    assert "open0 owner is gone" in lines
    assert lines.count("open0 owner ") == 3  # two owners, one gone


def test_exec_is_told_of_before_it_goes_on(journal) -> None:
    said(
        journal,
        """
fd = opened()
fcntl.ioctl(fd, SET_OWNER)
print(refusal(os.execv, "/nonexistent", ["x"]))
child = os.fork()
if child == 0:
    os.execv("/bin/true", ["true"])
os.waitpid(child, 0)
""",
    )
    assert journal.read_text().count("open0 stop_batching") == 1, "of the owner's only"


def test_read_write_and_poll_of_messages(journal) -> None:
    assert said(
        journal,
        """
def ready(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
fd = opened(os.O_RDWR | os.O_NONBLOCK)
print(ready(fd), refusal(os.read, fd, 72), os.read(fd, 71))
fcntl.ioctl(fd, MISS); fcntl.ioctl(fd, MISS); fcntl.ioctl(fd, MISS)
print(ready(fd), os.read(fd, 71), os.read(fd, 4096) == bytes(range(72)), ready(fd))
low = os.dup(fd)
a, b = bytearray(10), bytearray(90)
print(os.readv(fd, [a, b]), bytes(a + b)[:72] == bytes(range(72)))
print(os.read(low, 72) == bytes(range(72)), ready(low), refusal(os.read, low, 72))
print(os.write(fd, bytes(40)), os.writev(fd, [b"a" * 30, b"b" * 100]), refusal(os.write, fd, b"x"))
print(refusal(os.write, fd, b"x" * 39), os.write(low, bytes(72)), os.write(low, b"x" * 72))
print(refusal(os.read, opened(), 72))
print(refusal(os.write, opened(os.O_RDONLY), bytes(72)), refusal(os.read, opened(os.O_WRONLY), 72))
fcntl.ioctl(fd, MISS)
fcntl.ioctl(fd, RESET_OWNER)
print(ready(fd))
""",
    ) == [
        "False EAGAIN b''",
        "True b'' True True",
        "72 True",
        "True False EAGAIN",
        "72 72 EINVAL",
        "EINVAL 72 72",
        "EBADFD",
        "EBADF EBADF",
        "False",
    ]

    writes = [line for line in journal.read_text().splitlines() if " write " in line]
    assert writes == [
        "open0 write 40 0",
        "open0 write 72 97",
        "open0 write 72 0",
        "open0 write 72 120",
    ]


def test_a_program_with_many_descriptors_of_its_own_keeps_them(journal) -> None:
    assert said(
        journal,
        """
mine = [os.open("/dev/null", os.O_RDWR) for _ in range(990)]
fd = opened()
print(fd, features(fd).decode(), os.fstat(mine[-1]).st_rdev == os.makedev(1, 3))
for m in mine[::-1]:
    os.close(m)
held = [os.dup2(0, number) for number in range(992, 1024)]
fd = opened()
print(fd < 100, features(fd).decode(), refusal(os.write, 992, b""))
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
for h in held:
    os.close(h)
fd = opened()
print(fd < 100, features(fd).decode())
""",
    ) == ["993 features True", "True features EBADF", "True features"]


def test_what_is_not_the_device_is_as_ever(journal, tmp_path) -> None:
    (tmp_path / "file").write_text("text")
    assert said(
        journal,
        """
os.chdir(sys.argv[1])
print(open("file").read(), os.path.exists("none"), refusal(os.stat, "none"))
print(refusal(os.open, "file/x", os.O_RDONLY), os.listdir("."), refusal(os.readlink, "file"))
print(libc.open(1, 0) == -1 and errno.errorcode[ctypes.get_errno()])
print(refusal(os.stat, "x" * 5000), os.access("file", os.R_OK), os.stat("file").st_size)
import subprocess
print(subprocess.run(["cat", "file"], capture_output=True, text=True).stdout)
""",
        str(tmp_path),
    ) == [
        "text False ENOENT",
        "ENOTDIR ['file', 'journal'] EINVAL",
        "EFAULT",
        "ENAMETOOLONG True 4",
        "text",
    ]


def test_a_device_has_let_go_before_another_file_is_opened(journal) -> None:
    """Such as the TAP that it had."""
    said(
        journal,
        """
notes = os.open(sys.argv[1], os.O_RDONLY)
for k in range(300):
    os.close(opened())
    open("/dev/null").close()
    text = os.pread(notes, 1 << 20, 0).decode()
    assert text.count("release") == k + 1, k
""",
        str(journal),
    )
