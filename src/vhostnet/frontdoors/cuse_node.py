"""/dev/NAME of a CUSE device: who has that name, the node itself, and what was there before.

Theory of operation
-------------------
The kernel makes the node by itself (devtmpfs), if the name is free.  If it is not, CUSE_INIT
succeeds all the same and no node appears: Debian makes /dev/vhost-net (10:238) at boot, so that
opening it loads the kernel's module.  So the name is looked at first:

FREE      nothing is there
TAKEN     a node is there: HostError, or with `replace` it is moved aside to `.NAME.vhostnet`
    Operations:  `settle` makes the node if the kernel did not; `restore` puts the old one back
    Caveats:     a crash leaves the old one aside, and perhaps a node that leads nowhere;
                 `prepare` of the next start repairs both, with or without `replace`

Where a name is in use by another CUSE device (/sys/class/cuse/NAME), nothing is touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vhostnet.errors import HostError, UsageError

SYS_CUSE = Path("/sys/class/cuse")
DEV = Path("/dev")
#: What a node's name may be; a kernel's device name has at most 31 bytes that all tools show.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,30}")
#: Of the node that misc device vhost-net has.
_KERNELS_NODE = os.makedev(10, 238)
DEFAULT_MODE = 0o600


def check_name(name: str) -> str:
    """A name that a node below /dev can have, or UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} can be no node's name: letters, digits, . _ + - and 31 at most")
    return name


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """The node as the operator wants it.

    Attributes:
        name: below /dev.
        mode: permissions; None leaves what kernel and udev make of it.
        gid: group; None likewise.
        replace: move a node of that name aside.
    """

    name: str = "vhost-net"
    mode: int | None = None
    gid: int | None = None
    replace: bool = False


class CuseNode:
    """The node, before, while and after it is ours.

    Args:
        dev, sys_cuse: where nodes and CUSE devices are; others in tests.
    """

    def __init__(self, options: NodeOptions, *, dev: Path = DEV, sys_cuse: Path = SYS_CUSE) -> None:
        self.path = dev / options.name
        self._options = options
        self._aside = dev / f".{options.name}.vhostnet"
        self._sys = sys_cuse / options.name
        self._made = False

    def check(self) -> None:
        """Repair what a crash has left; see that the name is free, or may be taken.

        Raises:
            HostError: it is not; nothing is changed then.
        """
        if self._sys.exists():
            raise HostError(
                f"{self.path}: another CUSE device has this name ({self._sys}): end it, or take "
                "another --name",
                errno.EEXIST,
            )
        with _host(self._aside):
            self._repair()
        status = self._status()
        if status is None:
            return
        if not self._options.replace:
            raise HostError(
                f"{self.path} is there already ({_told(status)}), and the kernel makes no second "
                "one: --replace-node moves it aside while we run, --name takes another name",
                errno.EEXIST,
            )
        if not stat.S_ISCHR(status.st_mode):
            raise HostError(f"{self.path} is no character device; it stays", errno.EEXIST)

    def prepare(self) -> None:
        """Before CUSE_INIT: `check` once more, and move what is to be replaced aside."""
        self.check()
        if self._status() is not None:
            with _host(self.path):
                os.rename(self.path, self._aside)

    def settle(self) -> None:
        """After CUSE_INIT: see that the node is there and ours, with mode and group.

        Raises:
            HostError: the kernel made no device, or the node cannot be made.
        """
        number = self.number()
        if number is None:
            raise HostError(
                f"{self.path}: the kernel made no such device: is the name taken?", errno.ENOENT
            )
        device = os.makedev(*number)
        with _host(self.path):
            status = self._status()
            if status is None:  # /dev is no devtmpfs
                os.mknod(self.path, stat.S_IFCHR | DEFAULT_MODE, device)
                self._made = True
            elif not stat.S_ISCHR(status.st_mode) or status.st_rdev != device:
                raise HostError(f"{self.path} has come meanwhile ({_told(status)})", errno.EEXIST)
            self.dress()

    def number(self) -> tuple[int, int] | None:
        """(major, minor) of the CUSE device of this name; None: there is none."""
        try:
            with open(self._sys / "dev", "rb", buffering=0) as file:
                major, _, minor = file.read().strip().partition(b":")
        except OSError:
            return None
        return int(major), int(minor)

    def dress(self) -> None:
        """Give the node its mode and group (udev's rules may come later and want others)."""
        if self._options.gid is not None:
            os.chown(self.path, -1, self._options.gid)
        if self._options.mode is not None:
            os.chmod(self.path, self._options.mode)

    def restore(self) -> None:
        """After the device is gone: take the node away if we made it, put the old one back."""
        if self._made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._made = False
        if os.path.lexists(self._aside) and self._status() is None:
            os.rename(self._aside, self.path)

    def _repair(self) -> None:
        """A run that crashed has left the old node aside, and perhaps one of its own making."""
        if not os.path.lexists(self._aside):
            return
        status = self._status()
        if status is not None:
            if not stat.S_ISCHR(status.st_mode) or _leads_somewhere(status.st_rdev):
                return  # not of our making
            os.unlink(self.path)
        os.rename(self._aside, self.path)

    def _status(self) -> os.stat_result | None:
        try:
            return os.lstat(self.path)
        except FileNotFoundError:
            return None


def _leads_somewhere(device: int) -> bool:
    """Whether the kernel has a device of this number (or one that it loads on demand)."""
    if device == _KERNELS_NODE:
        return True
    return os.path.exists(f"/sys/dev/char/{os.major(device)}:{os.minor(device)}")


def _told(status: os.stat_result) -> str:
    if not stat.S_ISCHR(status.st_mode):
        return "a file, not a device"
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    if status.st_rdev == _KERNELS_NODE:
        return f"{number}, that of the kernel's own driver"
    return number


@contextlib.contextmanager
def _host(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise HostError(f"{path}: {e.strerror}", e.errno or 0) from e
