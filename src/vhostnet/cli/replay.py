"""`vhostnet replay`: a recorded vhost-user conversation once more, to any back-end.

Not here: how it is said again (see `vhostnet_frontend.replay`).
"""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import TYPE_CHECKING

from vhostnet.errors import EXIT_OK, EXIT_PEER, HostError, UsageError
from vhostnet.protocol.spelling import SpellingError
from vhostnet.protocol.vhost_user_trace import Event, Exchange, read_trace, stamp

if TYPE_CHECKING:
    from vhostnet_frontend.replay import Outcome

EPILOG = """\
Prints a trace of its own; a line "# was ..." follows an answer that is another one than was
recorded, "# left out ..." stands for a message that this back-end did not negotiate.

examples:
  vhostnet serve --socket-path /run/vm1.sock --backend tap:tap0 --trace boot.trace
  vhostnet replay boot.trace --socket-path /run/other-back-end.sock

exit status:
  0  all was said, and granted as it was recorded   2  the file is no trace of vhost-user
  4  nobody listens at --socket-path   5  the back-end hung up, was silent, or refused a message
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet replay`."""
    parser.description = (
        "Be the front-end that was recorded with --trace: say its messages again, with memory and "
        "descriptors made anew, to any vhost-user back-end."
    )
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE", help="a trace of `vhostnet serve`")
    parser.add_argument(
        "--socket-path", metavar="PATH", required=True, help="where the back-end listens"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="whose conversation (default: the first that spoke)"
    )


def main(args: argparse.Namespace) -> int:
    """Replay; returns the exit status."""
    said = _read(args.file)
    names = list(dict.fromkeys(name for name, _ in said))
    who = args.device or names[0]
    if who not in names:
        raise UsageError(f"--device: {who!r} says nothing in {args.file}, only {', '.join(names)}")

    from vhostnet_frontend.replay import replay

    outcomes = replay(said, who, args.socket_path, lambda outcome: _print(who, outcome))
    left_out = sum(outcome.now is None for outcome in outcomes)
    other = sum(outcome.is_other for outcome in outcomes)
    refused = sum(outcome.is_refused for outcome in outcomes)
    print(
        f"# {len(outcomes) - left_out} messages said, {left_out} left out; "
        f"{other} other answers, {refused} of them refusals"
    )
    return EXIT_PEER if refused else EXIT_OK


def _read(path: str) -> list[tuple[str, Exchange | Event]]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            said = list(read_trace(file))
    except OSError as e:
        raise HostError(f"{path}: {e.strerror}", e.errno or 0) from e
    except SpellingError as e:
        raise UsageError(f"{path}: {e}") from None
    if not said:
        raise UsageError(f"{path}: nobody says anything in it")
    return said


def _print(who: str, outcome: Outcome) -> None:
    if outcome.now is None:
        print(f"# left out {outcome.recorded.name}: {outcome.why}")
        return
    print(stamp(datetime.now(), who, outcome.now))
    if outcome.is_other:
        print(f"# was {stamp(datetime.now(), who, outcome.recorded).split(' ', 2)[2]}")
