"""What people get wrong with the commands that are not served by a table of options.

Made from their parsers and, for `ctl`, from what a running daemon says that its commands take.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_wrong_options import ALL as OF_OPTIONS
from test_wrong_options import MISSPELLINGS

from serve_process import ServeProcess
from vhostnet.bench.catalogue import chosen
from vhostnet.cli.control_socket import device_arguments
from vhostnet.cli.main import COMMANDS, main
from vhostnet.cli.parser import Parser
from vhostnet.control.table import commands
from vhostnet.events import EVENTS

#: Of these the parser's declaration is all that there is.
PARSED = ("ctl", "top", "check", "replay", "warm", "bench", "demo")
SECONDS = ("", "x", "-1", "0", "1e9", "nan", "inf", "1:00")
WORKLOADS = ", ".join(workload.name for workload in chosen([]))

#: What ctl says of another kind of value.
RIGHT = {int: "is not a number", bool: "must be on or off"}

#: (words, status, what the answer has to have in it)
Mistake = tuple[tuple[str, ...], int, tuple[str, ...]]


def parser_of(command: str) -> Parser:
    parser = Parser(prog=f"vhostnet {command}")
    importlib.import_module(f"vhostnet.cli.{command}").add_arguments(parser)
    return parser


def of_parsers() -> Iterator[Mistake]:
    """Each option misspelt, without its value, and with one where it takes none."""
    for command in PARSED:
        actions = [a for a in parser_of(command)._actions if a.option_strings[-1:] != ["--help"]]
        names = [action.option_strings[-1] for action in actions if action.option_strings]
        for action in actions:
            if not action.option_strings:
                continue
            name = action.option_strings[-1]
            for misspell in MISSPELLINGS:
                if misspell(name) not in names:
                    wanted = f"there is no option {misspell(name)} (did you mean {name}?)"
                    yield (command, misspell(name)), 2, (wanted,)
            if action.nargs == 0:
                yield (command, f"{name}=1"), 2, (f"{name}: ",)
            else:
                yield (command, name), 2, (f"{name}: expected one argument",)
            if action.choices:
                for wrong in ("", "x", next(iter(action.choices)).upper()):
                    yield (command, f"{name}={wrong}"), 2, (f"{name}: ", *map(str, action.choices))
        if not any(action.nargs in ("*", "?") for action in actions if not action.option_strings):
            rest = ["f", "--socket-path=s"] if command == "replay" else []
            yield (command, *rest, "extra"), 2, ("what is 'extra' for?", f"{command} --help")


def by_hand() -> Iterator[Mistake]:
    for command in ("ctl", "top"):
        yield (command,), 2, ("--control PATH is needed",)
        for path, why in (
            ("/no/such", "No such file or directory"),
            ("/dev/null", "cannot connect"),
            ("x" * 200, "too long"),
            ("a\0b", "cannot connect"),
        ):
            words = ("devices",) if command == "ctl" else ("--once",)
            yield (command, f"--control={path}", *words), 4, (path, why)
    yield ("ctl", "--control=s"), 2, ("a command is needed: devices",)
    for text in SECONDS:
        yield ("top", "--control=s", f"--interval={text}"), 2, ("--interval: ", "from 0.1 to 60")
        yield ("bench", f"--seconds={text}"), 2, ("--seconds: ", "from 0.1 to 600")
    for text in ("", "x", "0", "-1", "1001", "1.5", "1e2"):
        yield ("bench", f"--runs={text}"), 2, ("--runs: ", "from 1 to 1000")
    for text in ("g2dd", "", "G2D", "g2d,d2g"):
        yield ("bench", text), 2, (f"there is no workload {text!r}; there are {WORKLOADS}",)
    yield ("bench", "--report=/no/such"), 2, ("/no/such: No such file or directory",)
    yield ("bench", "--report=/"), 2, ("/: Is a directory",)
    yield ("bench", "--report=f", "--list"), 2, ("--report measures nothing", "--list")
    yield ("bench", "--report=f", "g2d"), 2, ("--report measures nothing", "workloads")
    yield ("bench", "--quick", "--publish"), 2, ("--quick is not for publication",)
    for text in ("serv", "chardve", "ran", "SERVE"):
        wanted = f"there is no front door {text!r}"
        yield ("check", text), 2, (wanted, "serve, run, chardev", f"./{text}")
    yield ("check", "/no/such.toml"), 3, ("/no/such.toml: No such file or directory",)
    yield ("check", "serve", "./f"), 2, ("check serve and ./f one after the other",)
    yield ("replay",), 2, ("FILE", "--socket-path")
    yield ("replay", "f"), 2, ("--socket-path",)
    yield ("replay", "--socket-path=s"), 2, ("FILE",)
    yield ("replay", "/no/such", "--socket-path=s"), 4, ("/no/such: No such file or directory",)


ALL = [*of_parsers(), *by_hand()]


def check(words: tuple[str, ...], status: int, says: tuple[str, ...], capsys) -> None:
    assert main(words) == status, words
    out, err = capsys.readouterr()
    assert out == "", words
    assert err.startswith("vhostnet: "), words
    assert err.count("\n") == 1, err
    assert "Traceback" not in err, err
    assert "bug in this program" not in err, err
    for text in says:
        assert text in err, (words, err)


@pytest.mark.parametrize(("words", "status", "says"), ALL, ids=lambda x: ascii(x)[:60])
def test_a_mistake_is_answered_with_one_line_and_a_status(words, status, says, capsys):
    check(words, status, says, capsys)


def test_no_command_is_left_out():
    tried = Counter(command for command, *_ in [wrong.words for wrong in OF_OPTIONS])
    tried += Counter(words[0] for words, *_ in ALL)
    assert tried["warm"] >= 4
    assert {command for command in COMMANDS if tried[command] < 10} <= {"warm"}


# --- ctl, with a daemon that answers --------------------------------------------------------------


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("serve")
    path = str(folder / "control")
    daemon = ServeProcess(folder, "--backend", "null", "--control", path)
    yield path
    daemon.check_and_stop()


def of_ctl() -> Iterator[Mistake]:
    """Commands and arguments that there are not, too few, too many, and of another kind."""
    table = commands(device_arguments())
    short = [name.removeprefix("query-") for name in table]
    for name, command in table.items():
        word = name.removeprefix("query-")
        for misspell in MISSPELLINGS:
            if misspell(word) not in {*short, *table}:
                says = (f"this daemon has no command {misspell(word)!r} (did you mean ",)
                yield (misspell(word),), 2, says
        arguments = command.arguments
        needed = [argument for argument in arguments if argument.required]
        if needed:
            yield (
                (word,),
                2,
                (f"{name}: {needed[0].name} is needed: {word} ", needed[0].name.upper()),
            )
        full = [f"{argument.name}=1" for argument in arguments if argument.kind is not bool]
        full += [f"{argument.name}=on" for argument in arguments if argument.kind is bool]
        extra = (name if word == "events" else word, *full, "extra")  # `events` follows them
        yield extra, 2, (f"{name}: what is 'extra' for? {word}",)
        for argument in arguments:
            if argument.kind in RIGHT:
                given = (word, *(f"{one.name}=1" for one in needed), f"{argument.name}=maybe")
                yield given, 2, (f"{argument.name}: 'maybe' {RIGHT[argument.kind]}",)
            once = f"{argument.name}={'on' if argument.kind is bool else 1}"
            yield (word, once, once), 2, (f"{name}: {argument.name} is given twice",)
        if [argument.name for argument in arguments][:1] == ["device"]:
            rest = [f"{argument.name}=tx0" for argument in needed if argument.name != "device"]
            yield (word, "dev9", *rest), 1, ("there is no device 'dev9' (there is: dev0)",)
    yield ("events", "VRING_STARTD"), 2, ("there is no event 'VRING_STARTD' (did you mean VRING_",)
    yield ("events", "x"), 2, ("there is no event 'x'; events are ", *EVENTS)
    yield ("log-set", "loud"), 1, ("log-set: 'loud' is not one of error, warning, info, debug",)
    yield ("log-set", "info", "devcie"), 1, ("there is no area 'devcie' (there is: all, ",)
    yield ("inspect", "dev0", "tx9"), 1, ("rx0 to tx0",)


def test_ctl_says_what_the_daemon_would_take(control, capsys):
    mistakes = list(of_ctl())
    assert len({words for words, *_ in mistakes}) > 100
    for words, status, says in mistakes:
        check(("ctl", f"--control={control}", *words), status, says, capsys)
