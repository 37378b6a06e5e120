"""A network namespace of our own, and TAP devices in it.

Theory of operation: one holder process (`cat`) sits in a fresh namespace; every other process
(ip, the daemon, QEMU, iperf3) is started there through `Namespace.prefix`.  The holder ends
when our end of its pipe closes, however we end; the namespace and the TAPs in it vanish
with the last process.  Nothing is ever named or mounted, so there is nothing to clean up, and
nothing of this can touch the machine's own network.

Without root the holder gets a user namespace as well, in which it has CAP_NET_ADMIN.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from types import TracebackType

from vhostnet.demo.tools import end, output_of, require, spawn
from vhostnet.errors import HostError

TUN_NODE = "/dev/net/tun"
#: Some columns of `link_columns`.
RX_BYTES, RX_PACKETS, TX_PACKETS = 0, 1, 9

_COUNTERS = [
    f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errs", "drop")
]


class Namespace:
    """A network namespace, as a context manager.

    Attributes:
        prefix: the words to put before a command to run it in the namespace.

    Raises:
        HostError: the kernel refuses the namespace or the TAP node; one line says which and
            what would help.
    """

    def __init__(self) -> None:
        flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
        check_tun_node()
        self._holder = spawn(
            [require("unshare"), *flags, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # No answer before unshare() has succeeded: `cat` is not running until then.
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        try:
            self._holder.stdin.write(b"up\n")
            self._holder.stdin.flush()
        except BrokenPipeError:
            pass
        if self._holder.stdout.readline() != b"up\n":
            said = self._holder.stderr.read().decode(errors="replace").strip()
            end(self._holder)
            raise HostError(_explain(said))
        self.prefix = [require("nsenter"), f"--target={self._holder.pid}", "--net"]
        if os.geteuid() != 0:
            self.prefix += ["--user", "--preserve-credentials"]
        self.run("ip", "link", "set", "lo", "up")

    def run(self, tool: str, *args: str, timeout: float = 60.0) -> str:
        """Run a short command in the namespace and return what it printed."""
        return output_of([require(tool), *args], prefix=self.prefix, timeout=timeout)

    def add_tap(
        self, name: str, address: str, *, queue_pairs: int = 1, mtu: int | None = None
    ) -> None:
        """Make a persistent TAP with a vnet header, bring it up, give it an address.

        Args:
            name: of the interface.
            address: with prefix length, such as "192.0.2.1/24".
            queue_pairs: more than one makes it multi-queue; whoever opens it must agree.
            mtu: in bytes; the kernel's 1500 if not given.
        """
        kind = ["vnet_hdr"] + (["multi_queue"] if queue_pairs > 1 else [])
        self.run("ip", "tuntap", "add", "dev", name, "mode", "tap", *kind)
        if mtu is not None:
            self.run("ip", "link", "set", "dev", name, "mtu", str(mtu))
        # Router solicitations and multicast reports would be traffic nobody asked for.
        self.run("busybox", "sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{name}/disable_ipv6")
        self.run("ip", "address", "add", address, "dev", name)
        self.run("ip", "link", "set", "dev", name, "up")

    def link_counters(self, name: str) -> dict[str, int]:
        """Return an interface's packet and byte counts, as in /proc/net/dev (host's view)."""
        fields = self.link_columns(name)
        return dict(zip(_COUNTERS, fields[:4] + fields[8:12], strict=True))

    def link_columns(self, name: str) -> list[int]:
        """An interface's columns in /proc/net/dev, read at once and without a process."""
        return link_columns(name, Path(f"/proc/{self._holder.pid}/net/dev"))

    def close(self) -> None:
        """Let the namespace go; it vanishes when its last process has ended."""
        end(self._holder)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def link_columns(name: str, place: Path = Path("/proc/net/dev")) -> list[int]:
    """An interface's columns in a network namespace's *place*, here the caller's own.

    Raises:
        HostError: there is no such interface.
    """
    for line in place.read_text().splitlines():
        device, _, numbers = line.partition(":")
        if device.strip() == name:
            return [int(number) for number in numbers.split()]
    raise HostError(f"there is no interface {name}")


def check_tun_node() -> None:
    """Say in one line why TAP devices cannot be made here, if they cannot.

    Raises:
        HostError: the node is missing or may not be opened.
    """
    try:
        os.close(os.open(TUN_NODE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as err:
        why = f"{TUN_NODE} is missing: modprobe tun, or pass it to this container"
        raise HostError(why, errno.ENOENT) from err
    except PermissionError as err:
        why = f"this user may not open {TUN_NODE}: run as root, or chmod 666 {TUN_NODE}"
        raise HostError(why, errno.EACCES) from err
    except OSError as err:
        why = f"{TUN_NODE}: {err.strerror} (is the tun module there?)"
        raise HostError(why, err.errno or 0) from err


def _explain(said: str) -> str:
    if os.geteuid() == 0:
        return f"no network namespace even for root ({said}): this container lacks CAP_SYS_ADMIN"
    return (
        f"no user namespace for this user ({said}): run as root, or let the administrator allow "
        "them (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
    )
