"""Runs inside a guest: what only the door can get wrong, on /dev/vhost-net.

    python door_session.py [OPENS [DESCRIPTORS]]

Prints "RESULT " and JSON.  OPENS files are opened and closed, DESCRIPTORS times each of
SET_LOG_FD, KICK, CALL and ERR is called; the caller counts the daemon's descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from oracle.lab import IOMMU, TX, V1, Lab, frame
from oracle.scenarios.iotlb import Behind, offer_moved
from oracle.session import KernelDevice
from vhostnet.uapi import vhost
from vhostnet_frontend import IoctlTransport, VerbError
from vhostnet_frontend.transport import errno_name

NODE = "/dev/vhost-net"


def error_of(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        call(*arguments)
    except (VerbError, OSError) as e:
        return errno_name(e.errno or 0)
    return "ok"


def who_answers() -> dict[str, Any]:
    """Proof that it is not the kernel's driver."""
    status = os.stat(NODE)
    with open("/sys/class/cuse/vhost-net/dev") as file:
        number = file.read().strip()
    with open("/proc/modules") as file:
        modules = [line.split()[0] for line in file]
    return {
        "is cuse": number == f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}",
        "is misc": os.major(status.st_rdev) == 10,
        "vhost_net is loaded": any(name.startswith("vhost") for name in modules),
        "mode": oct(status.st_mode & 0o777),
    }


class Alarm(Exception):
    pass


def reading() -> dict[str, Any]:
    """read(2) that waits: refused, interrupted, woken by RESET_OWNER."""
    said: dict[str, Any] = {}
    device = IoctlTransport()
    device.set_owner()
    said["no IOTLB"] = error_of(device.read, 72)
    device.set_features(V1 | IOMMU)

    def handler(_number: int, _frame: object) -> None:
        raise Alarm

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        device.read(72)
    except Alarm:
        said["signal"] = "interrupted"
    said["after the signal"] = error_of(device.write, bytes(72))

    answers: list[str] = []
    reader = threading.Thread(target=lambda: answers.append(error_of(device.read, 72)))
    reader.start()
    time.sleep(0.5)
    said["waits"] = not answers
    device.reset_owner()
    reader.join(20)
    said["reset"] = answers
    os.set_blocking(device.fd, False)
    said["must not wait"] = error_of(device.read, 72)
    said["seek"] = os.lseek(device.fd, 100, os.SEEK_SET)
    device.close()
    return said


def misses() -> dict[str, Any]:
    """A miss wakes a reader that waits, and a poll and an epoll that wait."""
    said: dict[str, Any] = {}
    with Lab(KernelDevice) as lab:
        card = Behind(lab, V1 | IOMMU)
        for part in card.parts(card.tx.ring).values():
            card.update(*part)
        card.start(TX)
        fd = card.device.fd
        os.set_blocking(fd, True)
        poll, epoll = select.poll(), select.epoll()
        poll.register(fd, select.POLLIN | select.POLLOUT)
        epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        waits: dict[str, Callable[[], Any]] = {
            "read": lambda: len(os.read(fd, 72)),
            "poll": lambda: [event for _, event in poll.poll(20000)],
            "epoll": lambda: [event for _, event in epoll.poll(20)],
        }
        for number, (name, wait) in enumerate(waits.items()):
            gpa = card.memory.alloc(4096, 4096)
            card.memory.write(gpa, bytes(12) + frame(number))
            found: list[Any] = []
            waiter = threading.Thread(target=lambda f=found, w=wait: f.append(w()))
            waiter.start()
            time.sleep(0.5)
            early = bool(found)
            offer_moved(card.tx, gpa, 72)
            os.eventfd_write(card.tx.kick_fd, 1)
            waiter.join(30)
            said[name] = {"early": early, "woken": found}
            if name != "read":
                os.read(fd, 72)
            card.update(gpa, 4096)
            card.settle()
        said["sent"] = card.tap.sent(3)
        epoll.close()
    return said


def many_processes() -> list[int]:
    """Four processes, each with 10 devices of its own at once."""
    program = (
        "import fcntl, os, sys\n"
        f"fds = [os.open({NODE!r}, os.O_RDWR) for _ in range(10)]\n"
        "ok = 0\n"
        "for turn in range(3):\n"
        "    for fd in fds:\n"
        f"        if turn == 0: fcntl.ioctl(fd, {vhost.VHOST_SET_OWNER})\n"
        "        word = bytearray(8)\n"
        f"        fcntl.ioctl(fd, {vhost.VHOST_GET_FEATURES}, word, True)\n"
        "        ok += word[3] == 0x3d\n"
        "print(ok)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    return [int(p.communicate()[0]) for p in started]


def owners() -> dict[str, Any]:
    """exec, exit and fork of the owner."""
    said: dict[str, Any] = {}
    device = IoctlTransport()
    os.set_inheritable(device.fd, True)
    program = (
        "import fcntl, os, sys\n"
        "fd = int(sys.argv[1])\n"
        "try: print(fcntl.ioctl(fd, int(sys.argv[2]), bytes(8)))\n"
        "except OSError as e: print(e.errno)\n"
    )
    words = [sys.executable, "-S", "-c", program, str(device.fd), str(vhost.VHOST_SET_VRING_NUM)]
    pid = os.fork()
    if not pid:  # owner, then another program that has the file
        with contextlib.suppress(BaseException):
            device.set_owner()
            out = os.open("/tmp/exec-said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(out, 1)
            os.execv(words[0], words)
        os._exit(1)
    os.waitpid(pid, 0)
    with open("/tmp/exec-said") as file:
        said["after exec"] = errno.errorcode.get(int(file.read() or 0))
    said["after its end"] = error_of(device.set_owner)
    if pid := os.fork():
        said["status of a child"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    else:
        os._exit(error_of(device.set_vring_num, 0, 8) != "EPERM")
    said["the owner still"] = error_of(device.set_vring_num, 0, 8)
    device.close()
    return said


def own_files() -> dict[str, Any]:
    """Files of the device itself as kicks, closed while the device looks at them.

    The last close of such a file waits for the daemon; the daemon must not be who closes it.
    """
    device = IoctlTransport()
    device.set_owner()
    place = os.open(NODE, os.O_RDWR)
    over = threading.Event()

    def replace() -> None:
        while not over.is_set():
            fd = os.open(NODE, os.O_RDWR)
            os.dup2(fd, place)
            os.close(fd)

    thread = threading.Thread(target=replace)
    thread.start()
    seen = {error_of(device.set_vring_kick, TX, place) for _ in range(200)}
    over.set()
    thread.join()
    os.close(place)
    features = device.get_features()
    device.close()
    return {"refused": sorted(seen), "answers": features > 0}


def many_times(opens: int, descriptors: int) -> dict[str, float]:
    """Open and close, and give descriptors, again and again; seconds that it took."""
    began = time.monotonic()
    for _ in range(opens):
        os.close(os.open(NODE, os.O_RDWR | os.O_CLOEXEC))
    opened = time.monotonic()
    device = IoctlTransport()
    device.set_owner()
    fds = [os.eventfd(0), os.eventfd(0)]
    for k in range(descriptors):
        device.set_log_fd(fds[k % 2])
        device.set_vring_kick(TX, fds[k % 2])
        device.set_vring_call(TX, fds[k % 2])
        device.set_vring_err(TX, fds[k % 2])
    device.close()
    return {"opens": opened - began, "descriptors": time.monotonic() - opened}


def main(words: list[str]) -> None:
    if words:
        opens, descriptors = (int(word) for word in words)
        print("RESULT " + json.dumps(many_times(opens, descriptors)))
        return
    said = {
        "who": who_answers(),
        "reading": reading(),
        "misses": misses(),
        "processes": many_processes(),
        "owners": owners(),
        "own files": own_files(),
    }
    print("RESULT " + json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1:])
