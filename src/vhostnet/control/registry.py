"""A command is a function; its name, arguments and help are those of the function.

    def log_set(daemon: Daemon, *, level: str, area: str = "") -> None:
        \"\"\"Change how much is logged.\"\"\"

is the command `log-set` with a required string `level` and an optional string `area`.  It
returns what JSON can say, nothing being `{}`, and refuses with QmpError, or with any VhostnetError.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vhostnet.errors import VhostnetError
from vhostnet.protocol.qmp_session import COMMAND_NOT_FOUND, QmpError

from .daemon import Daemon

log = logging.getLogger("vhostnet.control")

#: What an argument may be, and how it is called.
_KINDS: dict[type, str] = {str: "string", int: "number", bool: "boolean"}


@dataclass(frozen=True, slots=True)
class Argument:
    """One member of a command's arguments."""

    name: str
    kind: type
    required: bool

    def check(self, command: str, value: Any) -> Any:
        """*value*, or QmpError if it is of another kind."""
        if type(value) is not self.kind:
            raise QmpError(f"{command}: '{self.name}' must be a {_KINDS[self.kind]}")
        return value


@dataclass(frozen=True, slots=True)
class Command:
    """A command, as its function declares it."""

    name: str
    run: Callable[..., Any]
    arguments: tuple[Argument, ...]

    @property
    def help(self) -> str:
        """Its first paragraph, one line."""
        return " ".join((inspect.getdoc(self.run) or "").split("\n\n")[0].split())

    def describe(self) -> dict[str, Any]:
        """For `query-commands`; clients of QEMU look at the name only."""
        return {
            "name": self.name,
            "help": self.help,
            "arguments": [
                {"name": a.name, "type": _KINDS[a.kind], "required": a.required}
                for a in self.arguments
            ],
        }


def commands_of(functions: Iterable[Callable[..., Any]]) -> dict[str, Command]:
    """The table of these functions, by name."""
    commands = (_command(function) for function in functions)
    return {command.name: command for command in commands}


def execute(
    commands: Mapping[str, Command], daemon: Daemon, name: str, given: Mapping[str, Any]
) -> Any:
    """Run a command with these arguments; QmpError if it does not exist or refuses."""
    command = commands.get(name)
    if command is None:
        raise QmpError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
    arguments = _arguments(command, given)
    try:
        result = command.run(daemon, **arguments)
    except VhostnetError as error:
        raise QmpError(str(error)) from None
    except QmpError:
        raise
    except Exception as error:
        log.exception("bug in this program: %s failed", name)
        raise QmpError(f"bug in this program: {error!r}") from error
    return {} if result is None else result


def _arguments(command: Command, given: Mapping[str, Any]) -> dict[str, Any]:
    known = {argument.name: argument for argument in command.arguments}
    for name in given:
        if name not in known:
            raise QmpError(f"{command.name}: parameter '{name}' is unexpected")
    for argument in command.arguments:
        if argument.required and argument.name not in given:
            raise QmpError(f"{command.name}: parameter '{argument.name}' is missing")
    return {
        name.replace("-", "_"): known[name].check(command.name, value)
        for name, value in given.items()
    }


def _command(function: Callable[..., Any]) -> Command:
    hints = typing.get_type_hints(function)
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    arguments = tuple(
        Argument(
            p.name.replace("_", "-"), _kind(hints[p.name]), p.default is inspect.Parameter.empty
        )
        for p in parameters
    )
    return Command(function.__name__.replace("_", "-"), function, arguments)


def _kind(hint: Any) -> type:
    """The one of `_KINDS` that an annotation is: str, or str | None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    (kind,) = (option for option in options if option in _KINDS)
    return typing.cast(type, kind)
