"""`vhostnet run`: a command whose /dev/vhost-net is served by us.

Not here: anything that runs after the options are understood (see `frontdoors.seccomp`).  What
imports numba is imported in the supervisor.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vhostnet.cli import logs
from vhostnet.cli.control_socket import check_control, control_socket, listen
from vhostnet.cli.daemon_setup import warm
from vhostnet.cli.observing import MetricsDoor, observed
from vhostnet.cli.options import (
    CONTROL,
    LINUX_ABI,
    METRICS,
    PACKED_RINGS,
    PCAP_OPTIONS,
    SANDBOX,
    SANDBOX_DIRS,
    add_options,
    check_packed_rings,
    log_options,
    trace_option,
    values_of,
)
from vhostnet.cli.pcap import check_pcap, ending_pcap, start_pcap
from vhostnet.cli.sandbox import Sandbox, policy_of_files, sandbox_of
from vhostnet.confinement import capabilities, seal
from vhostnet.confinement.policy import Policy
from vhostnet.errors import HostError, UsageError, VhostnetError
from vhostnet.frontdoors.seccomp import tree
from vhostnet.frontdoors.seccomp.tree_acts import is_below
from vhostnet.frontdoors.trace_file import TraceFile

if TYPE_CHECKING:
    from vhostnet.frontdoors.event_loop import Loop
    from vhostnet.frontdoors.seccomp.devices import TreeDevices
    from vhostnet.frontdoors.seccomp.supervisor import Supervisor

logger = logging.getLogger("vhostnet")

#: The command's options are not ours.
COMMAND_FOLLOWS = True

DESCRIPTION = """\
Run a command for which /dev/vhost-net is there, whatever the host has: for it and all that it
starts, with no kernel module and no root.  Other files and calls are the host's as ever.
"""

GROUP = "options"
OPTIONS = tuple(
    dataclasses.replace(option, group=GROUP)
    for option in (
        LINUX_ABI,
        PACKED_RINGS,
        METRICS,
        CONTROL,
        *log_options("warning"),
        trace_option("each ioctl, read and write of the device"),
        *PCAP_OPTIONS,
        SANDBOX,
        SANDBOX_DIRS,
    )
)

#: Modules of other doors, by how their names begin.
_OTHERS = ("vhost_user_", "cuse_", "kept_")
_BY_PID = "the memory of the command's processes is reached by pid, to which {} puts an end"
#: For root these two reach every process of the host (docs/confinement.md says so).
_BOUNDS = seal.Bounds(
    1 << capabilities.CAP_KILL | 1 << capabilities.CAP_SYS_PTRACE,
    {
        "namespaces": _BY_PID.format("a user namespace"),
        "landlock": _BY_PID.format("landlock"),
    },
)

EPILOG = """\
examples:
  vhostnet run -- qemu-system-x86_64 -m 1G ... \\
      -netdev tap,id=n0,ifname=tap0,script=no,downscript=no,vhost=on \\
      -device virtio-net-pci,netdev=n0
  vhostnet run --linux-abi 6.12 -- bash          # every QEMU that is started there
  unshare --user --map-root-user --net vhostnet run -- my-test

It is served until the last process of the command's tree has ended (QEMU's -daemonize).

exit status:
  that of COMMAND, or 128+N if signal N ended it
  125  vhostnet run itself failed   126  COMMAND cannot be executed   127  it was not found
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet run`."""
    parser.usage = "vhostnet run [options] -- COMMAND ..."
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    add_options(parser, OPTIONS)[GROUP].add_argument(
        "--log-file",
        metavar="PATH",
        help="where log lines go, also after COMMAND has ended (default: stderr, until then)",
    )


def exit_status_of(error: VhostnetError) -> int:
    """A failure of ours."""
    return error.exit_status if isinstance(error, tree.CommandError) else tree.EXIT_OWN_FAILURE


def main(args: argparse.Namespace) -> int:
    """Run the command; returns its exit status."""
    settings = values_of(args, OPTIONS)
    logs.set_up(settings["log-level"], settings["log-format"])
    check_packed_rings(settings)
    log_fd = -1 if args.log_file is None else _open_log(args.log_file)
    check_control(settings["control"])
    check_pcap(settings)
    if settings["pcap"] == "-":
        raise UsageError('--pcap: "-" is the command\'s output; use a file or a FIFO')
    path = settings["trace"]
    trace = None if path is None else TraceFile(path, of_ioctls=True)
    # stderr is the command's: what its user can do nothing about is not said there unasked
    sandbox = sandbox_of(settings, _OTHERS, _BOUNDS, telling=logging.INFO)

    def policy(supervisor: int) -> Policy:
        made = policy_of_files(settings, lambda tid: is_below(tid, supervisor), has_node=False)
        return dataclasses.replace(made, sealed=supervisor)

    return tree.run(
        args.command,
        functools.partial(_load, settings, log_fd, trace, sandbox),
        lambda: sandbox.start_below(policy),
    )


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise HostError(f"--log-file: {path}: {e.strerror}", e.errno or 0) from e


def _load(
    settings: Mapping[str, Any], log_fd: int, trace: TraceFile | None, sandbox: Sandbox
) -> TreeDevices:
    """In the supervisor: all that is large, and the seal.  The command's process has what it
    inherits already.
    """
    sandbox.prepare(())
    if log_fd >= 0:
        logs.send_to(os.fdopen(log_fd, "w", buffering=1))
    from vhostnet.control.open_files import FilesDaemon
    from vhostnet.datapath import catalogue
    from vhostnet.frontdoors.seccomp.devices import TreeDevices
    from vhostnet.native import lost_memory_raw

    packed_rings = settings["packed-rings"]
    names = set(catalogue.kernels_for_character_device(packed_rings=packed_rings))
    if not catalogue.is_warm(names) and not logger.isEnabledFor(logging.INFO):
        logger.warning("compiling the data path (once; some seconds)")
    warm(names, "the character device")
    memory_alarm = lost_memory_raw.install()
    listening, metrics = listen(settings["control"]), MetricsDoor(settings["metrics"])
    sandbox.close_doors()
    start_pcap(settings)

    @contextlib.contextmanager
    def beside(loop: Loop, calls: Supervisor) -> Iterator[None]:
        daemon = FilesDaemon("run", calls.files)
        with (
            ending_pcap(),
            control_socket(loop, listening, lambda: daemon),
            observed(loop, daemon.cards, metrics),
            sandbox.watched(loop),
        ):
            yield

    return TreeDevices(
        settings["linux-abi"], memory_alarm, beside, trace, packed_rings=packed_rings
    )
