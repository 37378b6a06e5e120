"""`vhostnet ctl`: ask and change a running daemon.

Its commands are those of the daemon, which says what there is and what they take: a new one needs
nothing here, and a view in `ctl_views` if a table of all that it returns is not what one wants.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vhostnet.cli.ctl_views import view
from vhostnet.cli.parser import nearest
from vhostnet.cli.ring_view import ring_view
from vhostnet.control.client import ControlClient
from vhostnet.errors import EXIT_OK, UsageError

#: Arguments that are paths; what is relative is so to the shell, and not to the daemon.
PATHS = ("file", "socket")
#: `inspect` has found the ring to break a rule.
EXIT_BROKEN = 6

DESCRIPTION = """\
Ask and change a running daemon, through the socket of its --control option.
"""

EPILOG = """\
commands:
  commands                      what this daemon knows, with arguments and a line of help
  devices [DEVICE]              front-end, backend, negotiated features
  vrings [DEVICE]               indices, distances, last errors
  memory [DEVICE]               the guest's memory as the daemon has mapped it
  workers [DEVICE]              threads, their wake-ups and processor time
  stats [DEVICE]                counters
  inspect DEVICE QUEUE          one ring as the specification draws it, and what is wrong with it
  log-set LEVEL [AREA]          how much is logged, of all or of one area (see log)
  device-add SOCKET BACKEND     a new device; NAME=VALUE for what --device takes
  device-del DEVICE             the end of a device
  events [NAME ...]             what happens, line by line, until interrupted
Any other of the daemon's commands works too; "query-" may be left out.  Arguments come in
their order, or as NAME=VALUE; files and sockets are those that the shell would find.

examples:
  vhostnet ctl --control /run/vm1.ctl devices
  vhostnet ctl --control /run/vm1.ctl vrings dev0
  vhostnet ctl --control /run/vm1.ctl inspect dev0 tx0
  vhostnet ctl --control /run/vm1.ctl log-set debug device
  vhostnet ctl --control /run/vm1.ctl device-add /run/vm2.sock tap:tap2 queue-pairs=4
  vhostnet ctl --control /run/vm1.ctl --json stats | jq '.[0].pairs[0].tx.counters'

exit status:
  0  done          1  the daemon refused the command, and has said why
  2  the command or its arguments do not exist
  4  nobody listens at PATH, or nothing was answered in time
  5  the daemon hung up, or is none
  6  inspect: the ring breaks a rule of the specification
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vhostnet ctl`."""
    parser.usage = "vhostnet ctl --control PATH [--json] COMMAND [VALUE | NAME=VALUE] ..."
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("--control", metavar="PATH", help="the daemon's control socket")
    parser.add_argument(
        "--json", action="store_true", help="print what the daemon answers, one JSON value a line"
    )
    parser.add_argument("command", metavar="COMMAND", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("words", metavar="VALUE", nargs="*", help=argparse.SUPPRESS)


def main(args: argparse.Namespace) -> int:
    """Run one command; returns the exit status."""
    if args.control is None:
        raise UsageError("--control PATH is needed: the socket of the daemon's --control")
    if args.command is None:
        raise UsageError("a command is needed: devices, vrings, ... (see vhostnet ctl --help)")
    with ControlClient(args.control) as client:
        if args.command == "events":
            return _follow(client, args.words, args.json)
        commands = {command["name"]: command for command in client.execute("query-commands")}
        command = commands[_resolve(args.command, commands)]
        given = _arguments(command, args.words)
        answer = client.execute(command["name"], **given)
    if args.json:
        print(json.dumps(answer))
    else:
        is_ring = command["name"] == "inspect"
        lines = ring_view(answer) if is_ring else view(command["name"], given, answer)
        sys.stdout.writelines(f"{line}\n" for line in lines)
    is_broken = command["name"] == "inspect" and bool(answer.get("problems"))
    return EXIT_BROKEN if is_broken else EXIT_OK


def _resolve(word: str, commands: Mapping[str, Any]) -> str:
    """The daemon's name of a command."""
    for name in (word, f"query-{word}"):
        if name in commands:
            return name
    known = [name.removeprefix("query-") for name in commands] + ["events"]
    suggestion = nearest(word, known) or f"; commands are {', '.join(known)}"
    raise UsageError(f"this daemon has no command {word!r}{suggestion}")


def _arguments(command: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """What the words of the command line are to this command."""
    known = {argument["name"]: argument for argument in command["arguments"]}
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            free = [name for name in known if name not in given]
            if not free:
                raise UsageError(f"{command['name']}: what is {word!r} for? {_usage(command)}")
            name, value = free[0], word
        if name in given:
            raise UsageError(f"{command['name']}: {name} is given twice")
        given[name] = _value(known[name], value)
    for name, argument in known.items():
        if argument["required"] and name not in given:
            raise UsageError(f"{command['name']}: {name} is needed: {_usage(command)}")
    return given


def _value(argument: Mapping[str, Any], text: str) -> Any:
    kind, name = argument["type"], argument["name"]
    if kind == "number":
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise UsageError(f"{name}: {text!r} is not a number")
        return int(text)
    if kind == "boolean":
        if text not in ("on", "off"):
            raise UsageError(f"{name}: {text!r} must be on or off")
        return text == "on"
    return os.path.abspath(text) if name in PATHS and text not in ("", "-") else text


def _usage(command: Mapping[str, Any]) -> str:
    words = (
        argument["name"].upper() if argument["required"] else f"[{argument['name']}=...]"
        for argument in command["arguments"]
    )
    return " ".join((command["name"].removeprefix("query-"), *words))


def _follow(client: ControlClient, names: Sequence[str], as_json: bool) -> int:
    known = {event["name"] for event in client.execute("query-events")}
    for name in names:
        if name not in known:
            suggestion = nearest(name, known) or f"; events are {', '.join(sorted(known))}"
            raise UsageError(f"there is no event {name!r}{suggestion}")
    for event in client.events():
        if names and event["event"] not in names:
            continue
        if as_json:
            print(json.dumps(event), flush=True)
        else:
            at = event["timestamp"]
            clock = time.strftime("%H:%M:%S", time.localtime(at["seconds"]))
            data = " ".join(f"{name}={value}" for name, value in event["data"].items())
            print(f"{clock}.{at['microseconds']:06d} {event['event']} {data}", flush=True)
    return EXIT_OK
