"""`vhostnet chardev`: /dev/vhost-net for all programs of this host, through CUSE.

Not here: anything that runs after the options are understood (see
`vhostnet.frontdoors.cuse_daemon`).  What imports numba is imported in functions.
"""

from __future__ import annotations

import argparse
import contextlib
import resource

from vhostnet.cli import logs
from vhostnet.cli.daemon_setup import (
    add_log_options,
    add_ready_option,
    leaving_at_once,
    octal_mode,
    warm,
)
from vhostnet.cli.readiness import check_ready_fd, tell_ready
from vhostnet.device.linux_abi import LINUX_ABIS, NEWEST
from vhostnet.errors import UsageError
from vhostnet.frontdoors.cuse_channel import open_cuse
from vhostnet.frontdoors.cuse_daemon import serve_cuse
from vhostnet.frontdoors.cuse_node import CuseNode, NodeOptions, check_name
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.listening_socket import group_id

NAME = "vhost-net"
#: Permissions of the node with --group and without --mode; without either, the kernel's.
MODE_WITH_GROUP = 0o660

DESCRIPTION = (
    "Be the character device /dev/vhost-net, for unmodified programs (-netdev tap,vhost=on)."
)

EPILOG = """\
Needs root and the kernel's CUSE module (modprobe cuse), and no other kernel support: the
kernel's own driver is not used and need not exist.  Where /dev/vhost-net is there already
(many distributions make it at boot), --replace-node moves it aside for as long as this runs.

examples:
  modprobe cuse && vhostnet chardev --replace-node --group kvm
  qemu-system-x86_64 ... -netdev tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=on \\
      -device virtio-net-pci,netdev=n0

  vhostnet chardev --name vhost-net-ours
  qemu-system-x86_64 ... 3<>/dev/vhost-net-ours \\
      -netdev tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=on,vhostfd=3 ...

exit status:
  0  ended by SIGTERM or SIGINT   2  the options make no sense
  4  this host refused (no CUSE, not root, the name is taken)   70  a bug in vhostnet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet chardev`."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    node = parser.add_argument_group("the node below /dev")
    node.add_argument("--name", metavar="NAME", default=NAME, help=f"another name than {NAME}")
    node.add_argument(
        "--mode",
        metavar="OCTAL",
        type=octal_mode,
        help="permissions (default: what the kernel and udev give it; with --group 660)",
    )
    node.add_argument("--group", metavar="GROUP", help="group of the node")
    node.add_argument(
        "--replace-node",
        action="store_true",
        help="move a device node of that name aside, and put it back at the end (after a crash, "
        "at the next start)",
    )
    what = parser.add_argument_group("what it is")
    what.add_argument(
        "--linux-abi",
        choices=tuple(LINUX_ABIS),
        default=NEWEST,
        help=f"the version of Linux whose driver it behaves as (default: {NEWEST})",
    )
    how = parser.add_argument_group("how the daemon behaves (it stays in the foreground)")
    add_ready_option(how, "the node can be opened")
    add_log_options(how)


def main(args: argparse.Namespace) -> int:
    """Run the daemon; returns its exit status."""
    logs.set_up(args.log_level, args.log_format)
    options = _node_options(args)
    check_ready_fd(args.ready_fd)
    with leaving_at_once():
        node = CuseNode(options)
        node.check()
        cuse = open_cuse()  # before the compiler: what is missing is told within a second

        from vhostnet.datapath import catalogue
        from vhostnet.device.kernel_verbs import KernelVerbs
        from vhostnet.device.owner_memory import OwnerMemory
        from vhostnet.device.vhost_net import VhostNet
        from vhostnet.frontdoors.vhost_ioctl import VhostFile
        from vhostnet.native import lost_memory_raw

        warm(set(catalogue.kernels_for_character_device()), "tap")
        memory_alarm = lost_memory_raw.install()
        _as_many_descriptors_as_we_may()

        def make_device(name: str) -> VhostFile:
            return VhostFile(KernelVerbs(VhostNet(name, args.linux_abi), OwnerMemory))

        with contextlib.closing(Loop()) as loop:
            return serve_cuse(
                loop,
                node,
                cuse,
                make_device,
                lambda: tell_ready(args.ready_fd),
                memory_alarm=memory_alarm,
            )


def _node_options(args: argparse.Namespace) -> NodeOptions:
    try:
        name = check_name(args.name)
    except UsageError as error:
        raise UsageError(f"--name: {error}") from None
    gid = None
    if args.group is not None:
        try:
            gid = group_id(args.group)
        except UsageError as error:
            raise UsageError(f"--group: {error}") from None
    mode = args.mode
    if mode is None and gid is not None:
        mode = MODE_WITH_GROUP
    return NodeOptions(name, mode, gid, args.replace_node)


def _as_many_descriptors_as_we_may() -> None:
    """An instance takes about a dozen, and the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
