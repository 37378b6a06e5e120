"""`vhostnet serve`: network cards for virtual machines, over vhost-user.

Not here: anything that runs after the options are understood (see
`vhostnet.frontdoors.vhost_user_daemon`).  What imports numba is imported in functions.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vhostnet.backends import backend_kind, check_spec
from vhostnet.cli import logs
from vhostnet.cli.activation import (
    Offered,
    check_all_taken,
    listeners_of,
    take_listeners,
    without_socket,
)
from vhostnet.cli.config_file import read_config
from vhostnet.cli.control_socket import check_control, control_socket, listen
from vhostnet.cli.daemon_setup import kernels_of, leaving_at_once, warm
from vhostnet.cli.device_options import devices_of, refuse_beside
from vhostnet.cli.observing import MetricsDoor, observed
from vhostnet.cli.options import (
    DAEMON_OPTIONS,
    DEVICE_KEYS,
    DEVICE_OPTIONS,
    HOW,
    WHAT,
    add_options,
    given_of,
    values_of,
)
from vhostnet.cli.pcap import check_pcap, ending_pcap, start_pcap
from vhostnet.cli.readiness import check_ready_fd, tell_ready
from vhostnet.cli.reload import Reload
from vhostnet.cli.sandbox import OF_FILES, Sandbox, policy_of, sandboxed
from vhostnet.cli.served_devices import (
    ServeDaemon,
    check_permitted,
    join_partner,
    make_device,
    open_backend_of,
    say_lone,
)
from vhostnet.cli.service_manager import Watchdog, status_lines, watchdog_s
from vhostnet.errors import ConfigError, UsageError
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.trace_file import TraceFile
from vhostnet.frontdoors.vhost_user_daemon import (
    DaemonOptions,
    DeviceOptions,
    ServedCards,
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
  port:NAME     a cable to the other device that has port:NAME (two --device, or device-add)

examples:
  vhostnet serve --socket-path /run/vm1.sock --backend tap:tap0
  vhostnet serve --socket-path /run/vm1.sock --backend tap:tap0 --queue-pairs 4 \\
                 --socket-group kvm
  vhostnet serve --device socket=/run/a.sock,backend=tap:tap0,queue-pairs=2 \\
                 --device socket=/run/b.sock,backend=gen:size=64,client=on
  vhostnet serve --config /etc/vhostnet.toml    # as many devices, with names
  vhostnet serve --device socket=/run/a.sock,backend=port:x \\
                 --device socket=/run/b.sock,backend=port:x

  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on \\
      -machine q35,memory-backend=mem -chardev socket,id=c0,path=/run/vm1.sock,reconnect=1 \\
      -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0 ...

exit status:
  0  ended by SIGTERM or SIGINT, or (--one-off, --fd) the front-end went away
  2  the options make no sense   3  the file of --config does not
  4  this host refused (TAP, socket, permission)
  5  (--one-off, --fd) the front-end broke the protocol   70  a bug in vhostnet
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet serve`."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    groups = add_options(parser, (*DEVICE_OPTIONS, *DAEMON_OPTIONS))
    keys = ", ".join(f"{o.key}={o.kind.metavar}" for o in DEVICE_KEYS.values())
    groups[WHAT].add_argument(
        "--device",
        metavar="KEY=VALUE,...",
        action="append",
        help=f"several devices in one daemon, instead of the options above: {keys}; "
        "a comma within a value is written twice",
    )
    groups[HOW].add_argument(
        "--print-capabilities",
        action="store_true",
        help="print what this program can do, as JSON, and exit; all else is ignored",
    )


def main(args: argparse.Namespace) -> int:
    """Run the daemon; returns its exit status."""
    offered = take_listeners(os.environ)
    settings, wanted_devices = _understand(args, offered)
    logs.set_up(settings["log-level"], settings["log-format"])
    listeners, left = listeners_of(wanted_devices, offered)
    check_all_taken(wanted_devices, left)
    options = _daemon_options(wanted_devices, settings, listeners)
    check_ready_fd(settings["ready-fd"])
    check_sockets(options)
    check_control(settings["control"])
    check_pcap(settings)
    if settings["trace"] is not None:
        options = dataclasses.replace(options, trace=TraceFile(settings["trace"]))
    with (
        leaving_at_once(),
        sandboxed(
            settings,
            policy_of(settings, wanted_devices, args.config),
            lambda: policy_of(*_understand(args, offered), args.config),
            _inherited(settings, wanted_devices, listeners),
            others=OF_FILES,
            adds_devices=settings["control"] is not None or args.config is not None,
        ) as sandbox,
    ):
        from vhostnet.native import lost_memory_raw

        for device in options.devices:
            check_permitted(device)
        # Backends before the compiler: a TAP that may not be opened is told within a second.
        backends = [open_backend_of(device) for device in options.devices]
        kinds = {backend_kind(device.backend, device.coalesce) for device in options.devices}
        warm(kernels_of(options.devices), ", ".join(sorted(kinds)))
        memory_alarm = lost_memory_raw.install()
        with (
            contextlib.closing(MetricsDoor(settings["metrics"])) as metrics,
            ending_pcap(),
            contextlib.closing(Loop()) as loop,
        ):
            sandbox.close_doors()
            start_pcap(settings)
            devices = [
                make_device(loop, wanted, backend)
                for backend, wanted in zip(backends, options.devices, strict=True)
            ]
            for number, wanted in enumerate(options.devices):
                before = zip(options.devices, devices[:number], strict=False)
                join_partner(wanted, devices[number], before)
            say_lone(options.devices)
            return serve(
                loop,
                options,
                devices,
                lambda: tell_ready(settings["ready-fd"]),
                memory_alarm=memory_alarm,
                serving=lambda cards: _beside(
                    loop, args, offered, settings, cards, metrics, sandbox
                ),
            )


@contextlib.contextmanager
def _beside(
    loop: Loop,
    args: argparse.Namespace,
    offered: Sequence[Offered],
    settings: Mapping[str, Any],
    cards: ServedCards,
    metrics: MetricsDoor,
    sandbox: Sandbox,
) -> Iterator[None]:
    """What there is beside the devices: control socket, reload, service manager."""
    daemon = ServeDaemon(loop, cards)
    if args.config is not None:
        reload = Reload(lambda: _understand(args, offered), settings, daemon, cards)
        loop.on_each_signal(signal.SIGHUP, reload)
    with contextlib.ExitStack() as undo:
        undo.enter_context(control_socket(loop, listen(settings["control"]), lambda: daemon))
        undo.enter_context(observed(loop, daemon.cards, metrics))
        undo.enter_context(sandbox.watched(loop))
        undo.enter_context(status_lines(loop, daemon.occupancy))
        within_s = watchdog_s(os.environ)
        if within_s is not None:
            undo.callback(Watchdog(loop, within_s, daemon.workers).close)
        yield


def _understand(
    args: argparse.Namespace, offered: Sequence[Offered]
) -> tuple[Mapping[str, Any], tuple[DeviceOptions, ...]]:
    """What holds for the daemon, by key, and its devices; UsageError or ConfigError."""
    if args.config is None:
        devices = devices_of(args, is_activated=bool(offered))
        for device in without_socket(devices, listeners_of(devices, offered)[0]):
            raise UsageError(
                f"{device.name}: no socket of its name was handed over (LISTEN_FDNAMES)"
            )
        return values_of(args, DAEMON_OPTIONS), devices
    if args.device:
        raise UsageError("--device and --config exclude each other; make it a [device.NAME]")
    refuse_beside("--config", given_of(args, DEVICE_OPTIONS))
    config = read_config(args.config)
    lacking = without_socket(config.devices, listeners_of(config.devices, offered)[0])
    if lacking:
        raise ConfigError(
            [
                f"{device.option} socket is needed, or one from systemd with "
                f"FileDescriptorName={device.name}"
                for device in lacking
            ]
        )
    defaults: dict[str, Any] = {option.key: option.default for option in DAEMON_OPTIONS}
    return {**defaults, **config.settings, **given_of(args, DAEMON_OPTIONS)}, config.devices


def _inherited(
    settings: Mapping[str, Any], devices: Sequence[DeviceOptions], listeners: Mapping[str, int]
) -> set[int]:
    """Descriptors that the options speak of."""
    wanted = {*listeners.values()}
    wanted |= {fd for fd in (settings["ready-fd"], *(d.fd for d in devices)) if fd is not None}
    for device in devices:
        kind, argument = check_spec(device.backend)
        if kind == "tap-fd":
            wanted |= {int(number) for number in argument.split("+")}
    return wanted


def _daemon_options(
    devices: tuple[DeviceOptions, ...],
    settings: Mapping[str, Any],
    listeners: Mapping[str, int],
) -> DaemonOptions:
    gid, mode = settings["socket-group"], settings["socket-mode"]
    if mode is None:
        mode = SOCKET_MODE if gid is None else SOCKET_MODE_WITH_GROUP
    return DaemonOptions(devices, mode, gid, settings["one-off"], listeners=listeners)
