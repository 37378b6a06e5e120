"""`vhostnet demo`: boot a Linux guest on vhostnet and show what it can do.

Not here: the demo itself (see `vhostnet.demo`), which is loaded only when it is run.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet demo`."""
    parser.description = (
        "Boot a Linux guest that has two cards, vhostnet's and QEMU's own; ping the host and\n"
        "compare their speed.  All of it happens in a network namespace of its own."
    )
    parser.epilog = (
        "examples:\n"
        "  vhostnet demo --quick\n"
        "  vhostnet demo --door run       /dev/vhost-net, with no kernel module\n"
        "  vhostnet demo --shell          look around in the guest yourself\n"
        "  vhostnet demo --json out.json\n"
        "\n"
        "exit status:\n"
        "  0  the guest was reached and nothing was lost\n"
        "  1  pings were lost   4  this host cannot do it, or something ended early"
    )
    parser.add_argument(
        "--quick", action="store_true", help="shorter runs, one of each: within a minute"
    )
    parser.add_argument(
        "--shell", action="store_true", help="boot the guest and give its console, measure nothing"
    )
    parser.add_argument(
        "--door",
        choices=("vhost-user", "run"),
        default="vhost-user",
        help="how the guest's card reaches vhostnet: a vhost-user socket (the default), or "
        "QEMU's own tap,vhost=on in `vhostnet run`",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers to FILE too")
    parser.add_argument(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="auto (the default) takes KVM if a guest really boots with it",
    )
    parser.add_argument(
        "--prepare", action="store_true", help="only fetch and build what a guest needs, then end"
    )


def main(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit status (130 after Ctrl-C)."""
    from vhostnet.demo.run_demo import DemoOptions, prepare, run_demo

    if args.prepare:
        prepare()
        return 0
    options = DemoOptions(args.quick, args.shell, args.json, args.accel, args.door)
    try:
        return run_demo(options)
    except KeyboardInterrupt:
        return 130
