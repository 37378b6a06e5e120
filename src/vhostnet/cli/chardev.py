"""`vhostnet chardev`: /dev/vhost-net for all programs of this host, through CUSE.

Not here: anything that runs after the options are understood (see
`vhostnet.frontdoors.cuse_daemon`).  What imports numba is imported in functions.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import resource
from collections.abc import Iterator, Mapping
from typing import Any

from vhostnet.cli import logs
from vhostnet.cli.control_socket import check_control, control_socket, listen
from vhostnet.cli.daemon_setup import leaving_at_once, warm
from vhostnet.cli.observing import MetricsDoor, observed
from vhostnet.cli.option_kinds import Group, Mode, NodeName, Switch
from vhostnet.cli.options import (
    CONTROL,
    LINUX_ABI,
    METRICS,
    PACKED_RINGS,
    PCAP_OPTIONS,
    SANDBOX,
    SANDBOX_DIRS,
    Option,
    add_options,
    check_packed_rings,
    log_options,
    ready_option,
    trace_option,
    values_of,
)
from vhostnet.cli.pcap import check_pcap, ending_pcap, start_pcap
from vhostnet.cli.readiness import check_ready_fd, tell_ready
from vhostnet.cli.sandbox import policy_of_files, sandboxed
from vhostnet.frontdoors.cuse_channel import open_cuse
from vhostnet.frontdoors.cuse_daemon import serve_cuse
from vhostnet.frontdoors.cuse_files import CuseFiles
from vhostnet.frontdoors.cuse_node import CuseNode, NodeOptions
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.kept_node import KeptNode
from vhostnet.frontdoors.trace_file import TraceFile

NAME = "vhost-net"
#: Permissions of the node with --group and without --mode; without either, the kernel's.
MODE_WITH_GROUP = 0o660
#: Modules of other doors, by how their names begin.
_OTHERS = ("vhost_user_",)

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


NODE = "the node below /dev"
OPTIONS = (
    Option("name", NodeName(), f"another name than {NAME}", NODE, default=NAME),
    Option(
        "mode",
        Mode(),
        "permissions (default: what the kernel and udev give it; with --group 660)",
        NODE,
    ),
    Option("group", Group(), "group of the node", NODE),
    Option(
        "replace-node",
        Switch(),
        "move a device node of that name aside, and put it back at the end (after a crash, at the "
        "next start)",
        NODE,
        default=False,
    ),
    dataclasses.replace(LINUX_ABI, group="what it is"),
    dataclasses.replace(PACKED_RINGS, group="what it is"),
    METRICS,
    ready_option("the node can be opened"),
    CONTROL,
    *log_options(),
    trace_option("each ioctl, read and write of the node"),
    *PCAP_OPTIONS,
    SANDBOX,
    SANDBOX_DIRS,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet chardev`."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add_options(parser, OPTIONS)


def main(args: argparse.Namespace) -> int:
    """Run the daemon; returns its exit status."""
    settings = values_of(args, OPTIONS)
    logs.set_up(settings["log-level"], settings["log-format"])
    check_packed_rings(settings)
    options = _node_options(settings)
    check_ready_fd(settings["ready-fd"])
    check_control(settings["control"])
    check_pcap(settings)
    path = settings["trace"]
    trace = None if path is None else TraceFile(path, of_ioctls=True)
    with contextlib.ExitStack() as undo:
        undo.enter_context(leaving_at_once())
        node = CuseNode(options)
        node.check()
        cuse = open_cuse()  # before the compiler: what is missing is told within a second
        kept = KeptNode(node)
        policy = policy_of_files(settings, kept.is_open_in, has_node=True)
        ready = {settings["ready-fd"]} - {None}
        sandbox = undo.enter_context(
            sandboxed(settings, policy, lambda: policy, ready, others=_OTHERS)
        )

        from vhostnet.capture import running
        from vhostnet.control.open_files import FilesDaemon
        from vhostnet.datapath import catalogue
        from vhostnet.device.kernel_verbs import KernelVerbs
        from vhostnet.device.owner_memory import OwnerMemory
        from vhostnet.device.vhost_net import VhostNet
        from vhostnet.frontdoors.traced_ioctl import TracedFile
        from vhostnet.frontdoors.vhost_ioctl import VhostFile
        from vhostnet.native import lost_memory_raw

        packed_rings = settings["packed-rings"]
        warm(set(catalogue.kernels_for_character_device(packed_rings=packed_rings)), "tap")
        memory_alarm = lost_memory_raw.install()
        _as_many_descriptors_as_we_may()

        def make_device(name: str) -> VhostFile:
            net = VhostNet(name, settings["linux-abi"])
            net.card = name.replace(" ", "")  # a word of a command line
            running.joined([net])
            verbs = KernelVerbs(net, OwnerMemory, packed_rings=packed_rings)
            return VhostFile(verbs) if trace is None else TracedFile(verbs, trace, name)

        @contextlib.contextmanager
        def beside(files: CuseFiles) -> Iterator[None]:
            daemon = FilesDaemon("chardev", files.devices)
            with (
                control_socket(loop, listen(settings["control"]), lambda: daemon),
                observed(loop, daemon.cards, metrics),
                sandbox.watched(loop),
            ):
                yield

        metrics = undo.enter_context(contextlib.closing(MetricsDoor(settings["metrics"])))
        undo.enter_context(ending_pcap())
        with contextlib.closing(Loop()) as loop:
            sandbox.close_doors()
            start_pcap(settings)
            return serve_cuse(
                loop,
                kept,
                cuse,
                make_device,
                lambda: tell_ready(settings["ready-fd"]),
                memory_alarm=memory_alarm,
                serving=beside,
            )


def _node_options(settings: Mapping[str, Any]) -> NodeOptions:
    mode, gid = settings["mode"], settings["group"]
    if mode is None and gid is not None:
        mode = MODE_WITH_GROUP
    return NodeOptions(settings["name"], mode, gid, settings["replace-node"])


def _as_many_descriptors_as_we_may() -> None:
    """An instance takes about a dozen, and the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
