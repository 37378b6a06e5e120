"""What each front door needs of this host, tried out one by one.

A check does the thing itself, in a small way, and undoes it: a permission that looks right and a
container's rule that forbids the call are told apart only so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vhostnet.demo.netns import TUN_NODE, check_tun_node
from vhostnet.errors import HostError, VhostnetError
from vhostnet.frontdoors.cuse_channel import CUSE_DEVICE, open_cuse
from vhostnet.frontdoors.foreign_process import check_descriptors
from vhostnet.frontdoors.seccomp.abi import native
from vhostnet.frontdoors.seccomp.listener_raw import install
from vhostnet.uapi.virtio import VNET_HDR_MRG_LEN
from vhostnet_frontend import VerbError, open_tap

DOORS = ("serve", "run", "chardev")
_ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing.

    Attributes:
        what: for humans.
        doors: those that cannot do without it; none: it is good to have.
        probe: says what was found; raises HostError with what to do.
    """

    what: str
    doors: tuple[str, ...]
    probe: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a check."""

    what: str
    doors: tuple[str, ...]
    ok: bool
    said: str


def _in_child(act: Callable[[], object]) -> None:
    """Do something that cannot be undone in a child; raises its HostError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said, code = "", 0
        try:
            act()
        except HostError as e:
            said, code = str(e), e.errno or errno.EIO
        except BaseException as e:
            said, code = f"{type(e).__name__}: {e}", errno.EIO
        os.write(writer, f"{code} {said}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        code_text, _, text = answer.read().decode(errors="replace").partition(" ")
    os.waitpid(pid, 0)
    if code_text != "0":
        raise HostError(text or "the attempt ended without a word", int(code_text or errno.EIO))


def _tun() -> str:
    check_tun_node()
    return f"{TUN_NODE} can be opened"


def _tap() -> str:
    try:
        fd = open_tap("vncheck%d", VNET_HDR_MRG_LEN)
    except VerbError as e:
        raise HostError(
            f"TAPs cannot be made ({os.strerror(e.errno)}): be root, or use one that somebody made "
            "for you (ip tuntap add ... user NAME), or a namespace (unshare --user "
            "--map-root-user --net)",
            e.errno,
        ) from e
    os.close(fd)
    return "a TAP can be made (it is gone again)"


def _listener() -> str:
    _in_child(lambda: install(_ALLOW_ALL, native()))
    return "seccomp listeners work"


def _descriptors() -> str:
    check_descriptors()
    return "pidfd_getfd works"


def _foreign_memory() -> str:
    """The memory of a child, the way a caller's is reached."""
    ready, go = os.pipe()
    word = ctypes.create_string_buffer(b"memory")
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            where = ctypes.addressof(word)
            if os.pwrite(fd, b"m", where) != 1 or os.pread(fd, 6, where) != b"memory":
                raise OSError(errno.EIO, "it reads wrong")
        finally:
            os.close(fd)
    except OSError as e:
        raise HostError(
            f"/proc/PID/mem of a child may not be used ({e.strerror}): a container's rule, which "
            "--cap-add SYS_PTRACE loosens, or Yama's ptrace_scope above 1",
            e.errno or 0,
        ) from e
    finally:
        os.close(go)
        os.waitpid(pid, 0)
    return "the memory of a child can be read and written"


def _batches() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    ours, theirs = ctypes.create_string_buffer(6), ctypes.create_string_buffer(b"memory", 6)
    sides = [
        (ctypes.c_void_p * 2)(ctypes.addressof(side), ctypes.sizeof(side))
        for side in (ours, theirs)
    ]
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if libc.process_vm_readv(os.getpid(), sides[0], one, sides[1], one, none) != 6:
        code = ctypes.get_errno()
        raise HostError(
            f"process_vm_readv is forbidden ({os.strerror(code)}): private memory is reached "
            "through /proc/PID/mem, a call a buffer; --cap-add SYS_PTRACE allows it",
            code,
        )
    return "process_vm_readv works"


def _cuse() -> str:
    os.close(open_cuse())
    return f"{CUSE_DEVICE} can be opened"


def _kvm() -> str:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        raise HostError(
            f"/dev/kvm: {e.strerror}: guests are emulated, and slow", e.errno or 0
        ) from e
    return "/dev/kvm can be opened"


def _hugepages() -> str:
    try:
        free = int(_HUGEPAGES.read_text())
    except (OSError, ValueError):
        free = 0
    if free == 0:
        raise HostError("no 2 MiB page is free: echo 512 > /proc/sys/vm/nr_hugepages", errno.ENOMEM)
    return f"{free} pages of 2 MiB are free"


def _kernels() -> str:
    from vhostnet.datapath import catalogue
    from vhostnet.native._jit import cache_root

    names = [spec.name for spec in catalogue.list_kernels()]
    missing = sum(not catalogue.is_warm([name]) for name in names)
    if missing:
        raise HostError(
            f"{missing} of {len(names)} kernels are not compiled yet: vhostnet warm "
            f"(into {cache_root()})",
            errno.ENOENT,
        )
    return f"all {len(names)} kernels are compiled"


CHECKS = (
    Check("TUN/TAP", ("serve", "run", "chardev"), _tun),
    Check("making TAPs", (), _tap),
    Check("seccomp listener", ("run",), _listener),
    Check("descriptors of others", ("run", "chardev"), _descriptors),
    Check("memory of others", ("run", "chardev"), _foreign_memory),
    Check("memory in batches", (), _batches),
    Check("CUSE", ("chardev",), _cuse),
    Check("compiled data path", (), _kernels),
    Check("KVM", (), _kvm),
    Check("huge pages", (), _hugepages),
)


def findings() -> list[Finding]:
    """Try everything."""
    found = []
    for check in CHECKS:
        try:
            ok, said = True, check.probe()
        except VhostnetError as e:
            ok, said = False, str(e)
        except OSError as e:
            ok, said = False, e.strerror or str(e)
        found.append(Finding(check.what, check.doors, ok, said))
    return found
