"""`vhostnet top`: devices and queues of a running daemon, live.

textual is imported only for the live view (the extra `top`); --once and --json need nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from vhostnet.cli.ctl_views import table
from vhostnet.cli.parser import seconds_within
from vhostnet.cli.top_model import Top, cells
from vhostnet.control.client import ControlClient
from vhostnet.errors import EXIT_OK, HostError, UsageError

DESCRIPTION = "Show what the queues of a running daemon do, live."

EPILOG = """\
columns:
  pkt/s, bit/s   moved between guest and backend (rx: to the guest, tx: from it)
  drop/s         packets dropped, whatever the cause (`vhostnet ctl stats DEVICE` names it)
  kick/s, call/s notifications from and to the guest
  fill           of the ring: chains that the device has seen and not taken yet
  kick-used      from a kick to the first used entry: in half of the cases no longer than this
  busy           share of the time that the queue pair's worker had a processor
  errors         how often the ring was found broken

keys of the live view:
  space  pause, and go on      left, right  a sample back or forward      q  quit
  home, end  the oldest sample that is kept, and now

examples:
  vhostnet top --control /run/vm1.ctl
  vhostnet top --control /run/vm1.ctl --once
  vhostnet top --control /run/vm1.ctl --json --interval 0.5 | jq '.queues[0].packets'

exit status:
  0  ended by q, or --once has printed   2  the options make no sense
  4  nobody listens at PATH, or textual is not installed (pip install 'vhostnet[top]')
  5  the daemon hung up, or is none
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet top`."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--control", metavar="PATH", help="the daemon's control socket")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=seconds_within(0.1, 60),
        default=1.0,
        help="between two samples, 0.1 to 60 (default: 1)",
    )
    parser.add_argument(
        "--once", action="store_true", help="print one interval as a table, and end"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print each interval as a line of JSON, until interrupted (with --once: one)",
    )


def main(args: argparse.Namespace) -> int:
    """Show it; returns the exit status."""
    if args.control is None:
        raise UsageError("--control PATH is needed: the socket of the daemon's --control")
    if args.once or args.json:
        return _print(args.control, args.interval, args.once, args.json)
    try:
        from vhostnet.cli.top_screen import TopApp
    except ImportError as error:
        raise HostError(
            f"the live view needs textual ({error}): pip install 'vhostnet[top]', or --once"
        ) from None
    with ControlClient(args.control) as client:
        app = TopApp(Top(client), args.interval)
        app.run()
    if app.failure is not None:
        raise app.failure
    return EXIT_OK


def _print(control: str, interval: float, once: bool, as_json: bool) -> int:
    with ControlClient(control) as client:
        top = Top(client)
        top.take()
        while True:
            time.sleep(interval)
            sample = top.take()
            if as_json:
                print(json.dumps(sample.as_json()), flush=True)
            else:
                rows = [cells(row) for row in sample.rows]
                sys.stdout.writelines(f"{line}\n" for line in (table(rows) if rows else ["(none)"]))
            if once:
                return EXIT_OK
