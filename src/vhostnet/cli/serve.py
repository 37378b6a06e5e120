"""`vhostnet serve`: network cards for virtual machines, over vhost-user.

Not here: anything that runs after the options are understood (see
`vhostnet.frontdoors.vhost_user_daemon`).  What imports numba is imported in functions.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence

from vhostnet.backends import BACKEND_SPECS, backend_kind
from vhostnet.cli import logs
from vhostnet.cli.daemon_setup import (
    MAX_FD,
    add_log_options,
    add_ready_option,
    leaving_at_once,
    octal_mode,
    warm,
)
from vhostnet.cli.device_options import MAX_BUSY_POLL_US, MAX_QUEUE_PAIRS, devices_of
from vhostnet.cli.parser import number_within
from vhostnet.cli.ports import port_pairs
from vhostnet.cli.readiness import check_ready_fd, tell_ready
from vhostnet.device.linux_abi import LINUX_ABIS, NEWEST
from vhostnet.errors import UsageError
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.listening_socket import group_id
from vhostnet.frontdoors.vhost_user_daemon import (
    DaemonOptions,
    DeviceOptions,
    check_sockets,
    serve,
)

# Alone, the socket is for us; with --socket-group, for that group too.
SOCKET_MODE, SOCKET_MODE_WITH_GROUP = 0o600, 0o660

DESCRIPTION = "Be the host half of virtio network cards, for QEMU and others over vhost-user."

EPILOG = """\
backends:
  tap:NAME      the TAP interface NAME, made if it does not exist and we may
  tap-fd:N      a TAP that our parent opened, as descriptor N (N+N for two queue pairs)
  null          takes every packet, copies it and drops it; sends none (null:checksum: logs a
                sum of the copies when the front-end leaves)
  loop          sends every packet back to the guest
  gen:size=N    sends packets of N bytes as fast as the guest takes them (N=imix: 64, 594
                and 1514 bytes, 7 to 4 to 1)
  port:NAME     a cable to the other device that has port:NAME (two --device)

examples:
  vhostnet serve --socket-path /run/vm1.sock --backend tap:tap0
  vhostnet serve --socket-path /run/vm1.sock --backend tap:tap0 --queue-pairs 4 \\
                 --socket-group kvm
  vhostnet serve --device socket=/run/a.sock,backend=tap:tap0,queue-pairs=2 \\
                 --device socket=/run/b.sock,backend=gen:size=64,client=on
  vhostnet serve --device socket=/run/a.sock,backend=port:x \\
                 --device socket=/run/b.sock,backend=port:x

  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on \\
      -machine q35,memory-backend=mem -chardev socket,id=c0,path=/run/vm1.sock,reconnect=1 \\
      -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0 ...

exit status:
  0  ended by SIGTERM or SIGINT, or (--one-off, --fd) the front-end went away
  2  the options make no sense   4  this host refused (TAP, socket, permission)
  5  (--one-off, --fd) the front-end broke the protocol   70  a bug in vhostnet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet serve`."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    where = parser.add_argument_group("where the front-end (QEMU) is")
    where.add_argument("--socket-path", metavar="PATH", help="unix socket to listen on")
    where.add_argument(
        "--client",
        action="store_true",
        help="connect to --socket-path instead (QEMU: server=on), and again when it is lost",
    )
    where.add_argument(
        "--fd",
        metavar="N",
        type=number_within(0, MAX_FD),
        help="inherited descriptor of a connected socket; its end is the daemon's end",
    )
    where.add_argument(
        "--socket-mode",
        metavar="OCTAL",
        type=octal_mode,
        help="permissions of the socket (default: 600, with --socket-group 660)",
    )
    where.add_argument("--socket-group", metavar="GROUP", help="group of the socket")
    what = parser.add_argument_group("what it is connected to")
    what.add_argument(
        "--backend", metavar="BACKEND", help=f"one of {', '.join(BACKEND_SPECS.values())}"
    )
    what.add_argument(
        "--queue-pairs",
        metavar="N",
        type=number_within(1, MAX_QUEUE_PAIRS),
        help=f"receive and transmit queues, 1 to {MAX_QUEUE_PAIRS} of each (default: 1)",
    )
    what.add_argument(
        "--fill-checksums",
        action="store_true",
        help="compute the checksums that the sender left to the card, for guests or networks "
        "that take such packets for broken",
    )
    what.add_argument(
        "--coalesce",
        choices=("on", "off"),
        help="on a TAP, hand consecutive TCP segments of one flow to the host as one large packet, "
        "as its own cards do when they receive (GRO); nothing waits for more to come (default: on)",
    )
    what.add_argument(
        "--busy-poll-us",
        metavar="N",
        type=number_within(0, MAX_BUSY_POLL_US),
        default=0,
        help="look at the rings for N microseconds before sleeping: fewer kicks, less delay, "
        "more processor time (default: 0, off)",
    )
    what.add_argument(
        "--busy-poll-adaptive",
        action="store_true",
        help="look for as long as it has proved worth it lately, at most --busy-poll-us",
    )
    what.add_argument(
        "--iommu",
        action="store_true",
        help="let the guest's IOMMU (QEMU: iommu_platform=on) say what the card may reach",
    )
    what.add_argument(
        "--linux-abi",
        metavar="VERSION",
        help="behave as the vhost_net of this Linux, for guests and tests that depend on it: "
        f"one of {', '.join(LINUX_ABIS)} (default: {NEWEST}).  6.1 and 6.12 offer neither IN_ORDER "
        "nor packed rings, and leave num_buffers alone without MRG_RXBUF; in 6.1 translations "
        "outlive the feature (--iommu)",
    )
    what.add_argument(
        "--device",
        metavar="KEY=VALUE,...",
        action="append",
        help="several devices in one daemon, instead of the options above: socket=PATH, "
        "backend=BACKEND, queue-pairs=N, client=on, fill-checksums=on, coalesce=off, "
        "busy-poll-us=N, busy-poll-adaptive=on, iommu=on, linux-abi=VERSION; "
        "a comma within a value is written twice",
    )
    how = parser.add_argument_group("how the daemon behaves (it stays in the foreground)")
    how.add_argument(
        "--one-off", action="store_true", help="end when each device has served one front-end"
    )
    add_ready_option(how, "front-ends may connect")
    add_log_options(how)
    how.add_argument(
        "--print-capabilities",
        action="store_true",
        help="print what this program can do, as JSON, and exit; all else is ignored",
    )


def main(args: argparse.Namespace) -> int:
    """Run the daemon; returns its exit status."""
    logs.set_up(args.log_level, args.log_format)
    options = _daemon_options(args)
    joined = port_pairs(options.devices)
    check_ready_fd(args.ready_fd)
    check_sockets(options)
    with leaving_at_once():
        from vhostnet.backends import open_backend
        from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
        from vhostnet.native import lost_memory_raw

        # Backends before the compiler: a TAP that may not be opened is told within a second.
        backends = [
            open_backend(device.backend, device.queue_pairs, device.fill_checksums, device.coalesce)
            for device in options.devices
        ]
        _warm(options.devices)
        memory_alarm = lost_memory_raw.install()
        with contextlib.closing(Loop()) as loop:
            devices = [
                VhostUserDevice(
                    backend,
                    queue_pairs=wanted.queue_pairs,
                    name=f"dev{number}",
                    call_later=loop.call_later,
                    busy_poll_us=wanted.busy_poll_us,
                    busy_poll_adaptive=wanted.busy_poll_adaptive,
                    iommu=wanted.iommu,
                    linux_abi=wanted.linux_abi,
                )
                for number, (backend, wanted) in enumerate(
                    zip(backends, options.devices, strict=True)
                )
            ]
            for first, second in joined:
                devices[first].join(devices[second])
            return serve(
                loop,
                options,
                devices,
                lambda: tell_ready(args.ready_fd),
                memory_alarm=memory_alarm,
            )


def _daemon_options(args: argparse.Namespace) -> DaemonOptions:
    devices = devices_of(args)
    gid = None
    mode = SOCKET_MODE
    if args.socket_group is not None:
        try:
            gid = group_id(args.socket_group)
        except UsageError as error:
            raise UsageError(f"--socket-group: {error}") from None
        mode = SOCKET_MODE_WITH_GROUP
    if args.socket_mode is not None:
        mode = args.socket_mode
    return DaemonOptions(devices, mode, gid, args.one_off)


def _warm(devices: Sequence[DeviceOptions]) -> None:
    """Load the machine code that the devices need, compiling what is not there yet."""
    from vhostnet.datapath import catalogue

    wanted = {(backend_kind(device.backend, device.coalesce), device.iommu) for device in devices}
    kinds = sorted({kind for kind, _ in wanted})
    names = {name for kind, iommu in wanted for name in catalogue.kernels_for(kind, iommu=iommu)}
    warm(names, ", ".join(kinds))
