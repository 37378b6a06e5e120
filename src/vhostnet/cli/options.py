"""The options of the commands that serve: declared once.

The command line, `--device KEY=VALUE`, the file of `--config`, the manual page and the diff of a
reload are all made from these tables.  A new option is a new entry, and for a device a field of
`DeviceOptions` of the same name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vhostnet.backends import BACKEND_SPECS
from vhostnet.cli.logs import AREAS, FORMATS
from vhostnet.cli.option_kinds import (
    Backend,
    Choice,
    Cpus,
    Directories,
    Group,
    Kind,
    LogLevels,
    Metrics,
    Mode,
    Name,
    Number,
    SchedulingPolicy,
    SocketPath,
    Switch,
    Text,
)
from vhostnet.confinement.seal import AUTO, MODES
from vhostnet.device.linux_abi import LINUX_ABIS, NEWEST
from vhostnet.errors import UsageError
from vhostnet.log_levels import LEVELS

# 254 rings: a ring's index has 8 bits, see vhost_user_session.
MAX_QUEUE_PAIRS = 127
# A second of spinning is more than any driver needs, and a typing error otherwise.
MAX_BUSY_POLL_US = 1_000_000
MAX_FD = 2**31 - 1
MAX_SNAPLEN = 262144

WHERE = "where the front-end (QEMU) is"
WHAT = "what it is connected to"
HOW = "how the daemon behaves (it stays in the foreground)"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        key: its name in --device and in the file; with "--" before it, on the command line.
        kind: the values that it takes.
        help: one sentence; what argparse makes of % holds.
        group: the title under which --help lists it.
        default: what holds when it is not given.
        flag: on the command line, if it has another name there.
        field: of `DeviceOptions`, if it has another name there.
        in_file: whether it can be a key there; a number of a descriptor, for example, cannot.
        in_device: whether it can be a key of --device.
        live: whether a reload of the file changes it in a daemon, or a device, that runs.
    """

    key: str
    kind: Kind
    help: str
    group: str
    default: object = None
    flag: str = ""
    field: str = ""
    in_file: bool = True
    in_device: bool = True
    live: bool = False

    @property
    def option_string(self) -> str:
        """ "--queue-pairs"."""
        return self.flag or f"--{self.key}"

    @property
    def dest(self) -> str:
        """Where argparse puts it: "queue_pairs"."""
        return self.option_string[2:].replace("-", "_")

    @property
    def attribute(self) -> str:
        """The field of `DeviceOptions`."""
        return self.field or self.key.replace("-", "_")


LINUX_ABI = Option(
    "linux-abi",
    Choice(tuple(LINUX_ABIS), "VERSION"),
    "behave as the vhost_net of this Linux, for guests and tests that depend on it: one of "
    f"{', '.join(LINUX_ABIS)} (default: {NEWEST}).  6.1 and 6.12 offer neither IN_ORDER nor "
    "packed rings, and leave num_buffers alone without MRG_RXBUF; in 6.1 translations outlive "
    "the feature (--iommu)",
    WHAT,
    default=NEWEST,
)

PACKED_RINGS = Option(
    "packed-rings",
    Switch(),
    "offer packed rings too, which Linux's driver does not have",
    WHAT,
    default=False,
)

DEVICE_OPTIONS = (
    Option(
        "name",
        Name(),
        "what the device is called, in log lines for example (default: dev0)",
        WHERE,
        in_file=False,
    ),
    Option(
        "socket",
        SocketPath(),
        "unix socket to listen on",
        WHERE,
        flag="--socket-path",
        field="socket_path",
    ),
    Option(
        "client",
        Switch(),
        "connect to the socket instead (QEMU: server=on), and again when it is lost",
        WHERE,
        default=False,
        field="is_client",
    ),
    Option(
        "fd",
        Number(0, MAX_FD),
        "inherited descriptor of a connected socket; its end is the daemon's end",
        WHERE,
        in_file=False,
        in_device=False,
    ),
    Option("backend", Backend(), "one of " + ", ".join(BACKEND_SPECS.values()), WHAT),
    Option(
        "queue-pairs",
        Number(1, MAX_QUEUE_PAIRS),
        f"receive and transmit queues, 1 to {MAX_QUEUE_PAIRS} of each (default: 1)",
        WHAT,
        default=1,
    ),
    Option(
        "fill-checksums",
        Switch(),
        "compute the checksums that the sender left to the card, for guests or networks that take "
        "such packets for broken",
        WHAT,
        default=False,
    ),
    Option(
        "coalesce",
        Switch(),
        "on a TAP, hand consecutive TCP segments of one flow to the host as one large packet, as "
        "its own cards do when they receive (GRO); nothing waits for more to come (default: on)",
        WHAT,
        default=True,
    ),
    Option(
        "busy-poll-us",
        Number(0, MAX_BUSY_POLL_US),
        "look at the rings for N microseconds before sleeping: fewer kicks, less delay, more "
        "processor time (default: 0, off)",
        WHAT,
        default=0,
        live=True,
    ),
    Option(
        "busy-poll-adaptive",
        Switch(),
        "look for as long as it has proved worth it lately, at most --busy-poll-us",
        WHAT,
        default=False,
        live=True,
    ),
    Option(
        "iommu",
        Switch(),
        "let the guest's IOMMU (QEMU: iommu_platform=on) say what the card may reach",
        WHAT,
        default=False,
    ),
    LINUX_ABI,
    Option(
        "worker-cpus",
        Cpus(),
        "processors for the worker threads, such as 2-5 or 2,4: one each, and from the first again "
        "when there are more queue pairs (default: any)",
        WHAT,
    ),
    Option(
        "worker-scheduling",
        SchedulingPolicy(),
        "how the kernel schedules the worker threads: other or batch, perhaps with a niceness "
        "(other:-5), or fifo:N or rr:N, in real time with priority N (default: as the process)",
        WHAT,
    ),
)

SOCKET_OPTIONS = (
    Option(
        "socket-mode",
        Mode(),
        "permissions of the socket (default: 600, with --socket-group 660)",
        WHERE,
    ),
    Option("socket-group", Group(), "group of the socket", WHERE),
)

ONE_OFF = Option(
    "one-off", Switch(), "end when each device has served one front-end", HOW, default=False
)


def log_options(level: str = "info") -> tuple[Option, ...]:
    """--log-level and --log-format; *level* is the default."""
    return (
        Option(
            "log-level",
            LogLevels(),
            f"how much is said: {', '.join(LEVELS)} (default: {level}); more or less of the areas "
            f"{', '.join(AREAS)}",
            HOW,
            default={"": level},
            live=True,
        ),
        Option(
            "log-format",
            Choice(tuple(FORMATS), "FORMAT"),
            f"the form of a line: {', '.join(FORMATS)} (default: text)",
            HOW,
            default="text",
            live=True,
        ),
    )


def trace_option(what: str) -> Option:
    """--trace; *what* is said, "... decoded"."""
    return Option(
        "trace",
        Text("FILE", "/tmp/vm1.trace"),
        f"write {what}, decoded, one line each with names, values, answers and times; "
        '"-" is the standard output',
        HOW,
    )


PCAP_OPTIONS = (
    Option(
        "pcap",
        Text("FILE", "/var/tmp/vm1.pcapng"),
        "write the packets of all devices, both directions, into a pcapng file; "
        '"-" is the standard output',
        HOW,
    ),
    Option(
        "pcap-filter",
        Text("EXPRESSION", "tcp port 80"),
        "only the packets that this filter, in tcpdump's language, lets through",
        HOW,
        default="",
    ),
    Option(
        "pcap-snaplen",
        Number(1, MAX_SNAPLEN),
        "bytes kept of each packet (default: all)",
        HOW,
        default=MAX_SNAPLEN,
    ),
    Option(
        "pcap-count", Number(0, 1 << 62), "end the capture after so many packets", HOW, default=0
    ),
    Option(
        "pcap-rotate",
        Number(0, 1 << 20),
        "begin a new file, FILE.1, FILE.2 and so on, after so many MiB",
        HOW,
        default=0,
    ),
)


CONTROL = Option(
    "control",
    SocketPath(),
    "unix socket at which the daemon can be asked and changed while it runs, by `vhostnet ctl` or "
    "in QMP, by QEMU's clients (mode 600)",
    HOW,
)


def ready_option(when: str) -> Option:
    """--ready-fd; *when* ends "when ..."."""
    text = f'descriptor to write "READY=1" to, and close, when {when}'
    return Option("ready-fd", Number(0, MAX_FD), text, HOW, in_file=False)


METRICS = Option(
    "metrics",
    Metrics(),
    "answer Prometheus there, at /metrics (default: nowhere)",
    HOW,
)

CONFIG = Option(
    "config",
    Text("FILE", "/etc/vhostnet.toml"),
    "read devices and options from this TOML file; what is said here too, here counts",
    WHERE,
    in_file=False,
)

SANDBOX = Option(
    "sandbox",
    Choice(MODES, "MODE"),
    "what the daemon gives up before front-ends may connect: all that this host has (auto), the "
    "same and an error if a part is not to be had (required), nothing (none) (default: auto)",
    HOW,
    default=AUTO,
)
SANDBOX_DIRS = Option(
    "sandbox-dirs",
    Directories(),
    "where clients of --control may have sockets and captures made, and sockets connected to, in "
    "the sandbox (default: made where the daemon's sockets and --pcap are, /tmp and /var/tmp)",
    HOW,
)

#: What holds for the whole daemon of `vhostnet serve`.
DAEMON_OPTIONS = (
    CONFIG,
    *SOCKET_OPTIONS,
    ONE_OFF,
    METRICS,
    ready_option("front-ends may connect"),
    CONTROL,
    *log_options(),
    trace_option("the vhost-user conversation (`vhostnet replay` says it again)"),
    *PCAP_OPTIONS,
    SANDBOX,
    SANDBOX_DIRS,
)

#: What --device knows.
DEVICE_KEYS = {option.key: option for option in DEVICE_OPTIONS if option.in_device}
#: Those that a device is not made without.
NEEDED_KEYS = ("socket", "backend")


def add_options(
    parser: argparse.ArgumentParser, options: Iterable[Option]
) -> dict[str, argparse._ArgumentGroup]:
    """Add options to a parser; one that is not given is None.  Returns the groups by title."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        if isinstance(option.kind, Switch) and not option.default:
            groups[option.group].add_argument(
                option.option_string, action="store_true", default=None, help=option.help
            )
        else:
            groups[option.group].add_argument(
                option.option_string,
                metavar=option.kind.metavar,
                type=option.kind.from_text,
                help=option.help,
            )
    return groups


def check_packed_rings(settings: Mapping[str, Any]) -> None:
    """Raise UsageError if they are to be offered by a version that cannot."""
    version = settings[LINUX_ABI.key]
    if settings[PACKED_RINGS.key] and not LINUX_ABIS[version].packed_rings:
        raise UsageError(f"{PACKED_RINGS.option_string}: no driver of Linux {version} has them")


def given_of(args: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """What was given on the command line, by key."""
    given = {option.key: getattr(args, option.dest) for option in options}
    return {key: value for key, value in given.items() if value is not None}


def values_of(args: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """What was given on the command line or, where nothing was, the defaults; by key."""
    return {option.key: option.default for option in options} | given_of(args, options)
