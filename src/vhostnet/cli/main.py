"""The program `vhostnet`: find the command, run it, turn errors into a line and a status.

A command is a module with `add_arguments(parser)` and `main(args) -> int`; it is imported only
when it is called, so that none pays for what another one imports.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise

from vhostnet import __version__
from vhostnet.cli.parser import Parser, nearest
from vhostnet.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_STATUSES,
    ConfigError,
    UsageError,
    VhostnetError,
)

COMMANDS = {
    "serve": "be the host half of virtio network cards, over vhost-user",
    "run": "run a command whose /dev/vhost-net is served by us",
    "chardev": "be /dev/vhost-net for all programs of this host, through CUSE",
    "ctl": "ask and change a running daemon",
    "top": "show what the queues of a running daemon do, live",
    "check": "say which of these can work on this host, and how to mend it",
    "replay": "say a recorded vhost-user conversation again, to any back-end",
    "warm": "compile the data path now, so that no daemon has to",
    "bench": "measure vhostnet beside its peers",
    "demo": "boot a Linux guest on vhostnet and show what it can do",
}

# QEMU's "Backend program conventions" know no commands: a management layer that starts this
# program calls it with these straight away.
CONVENTIONAL = ("--socket-path", "--fd")

PRINT_CAPABILITIES = "--print-capabilities"

EPILOG = f"""\
commands:
{chr(10).join(f"  {name:8}{text}" for name, text in COMMANDS.items())}

exit status:
{chr(10).join(f"  {status:7}{text}" for status, text in EXIT_STATUSES.items())}

`vhostnet COMMAND --help` tells more.  Example:
  vhostnet serve --socket-path /run/vm1.sock --backend tap:tap0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of the process); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except ConfigError as error:
        for problem in error.problems:
            _complain(problem)
        return error.exit_status
    except VhostnetError as error:
        _complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        if _is_debugging(words):
            traceback.print_exc()
        hint = "" if _is_debugging(words) else " (--log-level debug shows where)"
        _complain(f"bug in this program: {type(error).__name__}: {error}{hint}")
        return EXIT_BUG


def _run(words: list[str]) -> int:
    if PRINT_CAPABILITIES in words[: _end_of_our_own(words)]:
        from vhostnet.cli.capabilities import capabilities

        print(capabilities(), flush=True)
        return EXIT_OK
    if words and words[0].partition("=")[0] in CONVENTIONAL:
        words = ["serve", *words]
    if not words or words[0].startswith("-"):
        _top_level_parser().parse(words)
        raise UsageError(f"a command is needed: {', '.join(COMMANDS)} (see vhostnet --help)")
    command, *rest = words
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(
            f"there is no command {command!r}{nearest(command, COMMANDS)}; commands are {known}"
        )
    module = importlib.import_module(f"vhostnet.cli.{command}")
    parser = Parser(prog=f"vhostnet {command}")
    module.add_arguments(parser)
    parse = parser.parse_with_command if getattr(module, "COMMAND_FOLLOWS", False) else parser.parse
    try:
        status: int = module.main(parse(rest))
    except VhostnetError as error:
        # A command that runs another one keeps that one's statuses free.
        error.exit_status = getattr(module, "exit_status_of", lambda e: e.exit_status)(error)
        raise
    return status


def _end_of_our_own(words: list[str]) -> int:
    """Where the words end that are for us: what follows "--" is another command's."""
    return words.index("--") if "--" in words else len(words)


def _top_level_parser() -> Parser:
    parser = Parser(
        prog="vhostnet",
        usage="vhostnet [--help] [--version] [--print-capabilities] COMMAND ...",
        description="Linux's vhost_net driver as a Python program.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"vhostnet {__version__}")
    parser.add_argument(
        PRINT_CAPABILITIES,
        action="store_true",
        help="print what this program can do, as JSON, and exit; all else is ignored",
    )
    return parser


def _is_debugging(words: Sequence[str]) -> bool:
    """Whether --log-level debug was given; asked when the parser may not have got that far."""
    given = [word.partition("=")[2] for word in words if word.startswith("--log-level=")]
    given += [value for option, value in pairwise(words) if option == "--log-level"]
    return any("debug" in value.split(",") for value in given)


def _complain(text: str) -> None:
    print(f"vhostnet: {' '.join(text.split())}", file=sys.stderr)
