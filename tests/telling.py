"""A daemon whose worker says, before it does its work, what it cannot do.

What a program runs is text, since it is another process that runs it.
"""

from __future__ import annotations

import re

#: Puts the attempts in front of a worker's work; the program follows.
TELLING = """
import ctypes, errno, mmap, os, socket, sys
from vhostnet.device.worker import Worker

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
page = mmap.mmap(-1, 4096)
hva = ctypes.addressof(ctypes.c_char.from_buffer(page))

def called(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "")

ATTEMPTS = {
    "read a file": lambda: open("/etc/passwd"),
    "write a file": lambda: open("/tmp/x", "w"),
    "open its own memory": lambda: os.open("/proc/self/mem", os.O_RDWR),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "inet socket": lambda: socket.socket(socket.AF_INET),
    "executable mmap": lambda: called(
        libc.mmap(None, ctypes.c_size_t(4096), 5, 0x22, -1, ctypes.c_long(0))),
    "executable mprotect": lambda: called(
        libc.mprotect(ctypes.c_void_p(hva), ctypes.c_size_t(4096), 5)),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "ptrace": lambda: called(libc.ptrace(16, os.getppid(), 0, 0)),
    "kill": lambda: os.kill(os.getppid(), 0),
    "see a file": lambda: os.stat("/etc/passwd"),
    "list the root": lambda: os.listdir("/"),
    # the flag allows an empty path, and the path is not empty
    "see a file by a flag": lambda: called(
        libc.fstatat(-100, b"/etc/passwd", ctypes.create_string_buffer(512), 0x1000)),
    "datagram sockets": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "send to a path": lambda: socket.socketpair()[0].sendto(b"x", "/run/no-such"),
    "namespace": lambda: called(libc.unshare(0x10000000)),
}
work = Worker._main

def telling(self):
    for what in os.environ["ATTEMPTS"].split(",") if "ATTEMPTS" in os.environ else ATTEMPTS:
        attempt = ATTEMPTS[what]
        try:
            attempt()
            said = "done"
        except OSError as error:
            said = errno.errorcode[error.errno]
        os.write(2, f"worker: {what}: {said}\\n".encode())  # of several workers, in one piece
    work(self)

Worker._main = telling
"""
RUN = """
from vhostnet.cli.main import main
raise SystemExit(main())
"""
N_ATTEMPTS = 17
#: What landlock and the filter cannot refuse; an empty root has no such file.
SEEN = "see a file by a flag"
#: Those that have no effect where they are not refused.
HARMLESS = (
    *("read a file", "unix socket", "executable mmap", "see a file", "list the root", SEEN),
    "datagram sockets",
)


def what_it_said(log: str) -> dict[str, str]:
    """Attempt -> errno, or "done"."""
    return dict(re.findall(r"^worker: (.*): (\w+)$", log, re.MULTILINE))
