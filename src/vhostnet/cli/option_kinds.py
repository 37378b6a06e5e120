"""What the value of an option can be, and how it is written: on the command line and in TOML.

A kind has two converters, `from_text` and `from_toml`, that give the same value.  Both raise
`WrongValue`, whose message says what would be right and leaves it to the caller to name the option.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from vhostnet.backends import BACKEND_SPECS, check_spec
from vhostnet.cli.logs import Levels, parse_levels
from vhostnet.cli.parser import nearest
from vhostnet.device.scheduling import POLICIES, Scheduling
from vhostnet.errors import UsageError
from vhostnet.frontdoors.cuse_node import check_name
from vhostnet.frontdoors.listening_socket import check_path, group_id
from vhostnet.frontdoors.metrics_server import MetricsAddress, parse_address

#: What a device can be called: in log lines, in systemd's LISTEN_FDNAMES, in a file's header.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")

_CPU_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
#: Of Linux's largest kernels.
MAX_CPUS = 8192

#: argparse writes the name of the option before the message of this one.
WrongValue = argparse.ArgumentTypeError


class Kind(Protocol):
    """The values that an option takes."""

    @property
    def metavar(self) -> str:
        """What help calls the value."""

    def from_text(self, text: str) -> object:
        """The value of a word of a command line, or WrongValue."""

    def from_toml(self, value: object) -> object:
        """The value of what `tomllib` has read, or WrongValue."""


def text_of(value: object, example: str) -> str:
    """A string of TOML, or WrongValue."""
    if not isinstance(value, str):
        raise WrongValue(f"{shown(value)} must be text in quotes, such as {json.dumps(example)}")
    if "\0" in value or "\n" in value:
        raise WrongValue(f"{json.dumps(value)} must be one line")
    return value


def shown(value: object) -> str:
    """A value of TOML as its author would recognise it."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    return json.dumps(value, default=str)


def one_of(names: Iterable[str]) -> str:
    """ "one of a, b, c", for messages and help."""
    return f"one of {', '.join(names)}"


@dataclass(frozen=True, slots=True)
class Text:
    """Any text, for example a path."""

    metavar: str
    example: str

    def from_text(self, text: str) -> str:
        return text_of(text, self.example)

    def from_toml(self, value: object) -> str:
        return text_of(value, self.example)


@dataclass(frozen=True, slots=True)
class Name:
    """What a device is called."""

    metavar: str = "NAME"

    def from_text(self, text: str) -> str:
        if not _NAME.fullmatch(text):
            raise WrongValue(f"{text!r} is not a name of 1 to 32 letters, digits, '_', '.' and '-'")
        return text

    def from_toml(self, value: object) -> str:
        return self.from_text(text_of(value, "vm1"))


@dataclass(frozen=True, slots=True)
class NodeName:
    """What a node below /dev can be called."""

    metavar: str = "NAME"

    def from_text(self, text: str) -> str:
        try:
            return check_name(text)
        except UsageError as error:
            raise WrongValue(str(error)) from None

    def from_toml(self, value: object) -> str:
        return self.from_text(text_of(value, "vhost-net"))


@dataclass(frozen=True, slots=True)
class SocketPath:
    """Where a unix socket can be."""

    metavar: str = "PATH"

    def from_text(self, text: str) -> str:
        try:
            check_path(text)
        except UsageError as error:
            raise WrongValue(str(error)) from None
        return text

    def from_toml(self, value: object) -> str:
        return self.from_text(text_of(value, "/run/vm1.sock"))


@dataclass(frozen=True, slots=True)
class Directories:
    """Some folders; the value is their absolute paths."""

    metavar: str = "DIR[,DIR...]"

    def from_text(self, text: str) -> tuple[str, ...]:
        found = tuple(os.path.abspath(part) for part in text.split(",") if part)
        if not found:
            raise WrongValue(f"{text!r} is not a list of folders such as /run/vms,/var/tmp")
        for path in found:
            if not os.path.isdir(path):
                raise WrongValue(f"{path} is not a folder")
        return found

    def from_toml(self, value: object) -> tuple[str, ...]:
        return self.from_text(text_of(value, "/run/vms,/var/tmp"))


@dataclass(frozen=True, slots=True)
class Group:
    """A group of this host, by name or number; the value is its number."""

    metavar: str = "GROUP"

    def from_text(self, text: str) -> int:
        try:
            return group_id(text)
        except UsageError as error:
            raise WrongValue(str(error)) from None

    def from_toml(self, value: object) -> int:
        return self.from_text(text_of(value, "kvm"))


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number from `low` to `high`."""

    low: int
    high: int
    metavar: str = "N"

    def from_text(self, text: str) -> int:
        # int() would also take " 1_0", which nobody means, and long texts for long.
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise WrongValue(f"{text!r} is not {self._expected}")
        return self._within(int(text), repr(text))

    def from_toml(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            hint = " (without quotes)" if isinstance(value, str) else ""
            raise WrongValue(f"{shown(value)} is not {self._expected}{hint}")
        return self._within(value, str(value))

    def _within(self, number: int, as_written: str) -> int:
        if not self.low <= number <= self.high:
            raise WrongValue(f"{as_written} is not {self._expected}")
        return number

    @property
    def _expected(self) -> str:
        return f"a number from {self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Switch:
    """Something that is on or off."""

    metavar: str = "on|off"

    def from_text(self, text: str) -> bool:
        if text not in ("on", "off"):
            raise WrongValue(f"{text!r} must be on or off")
        return text == "on"

    def from_toml(self, value: object) -> bool:
        if not isinstance(value, bool):
            hint = " (without quotes)" if isinstance(value, str) else ""
            raise WrongValue(f"{shown(value)} must be true or false{hint}")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]
    metavar: str

    def from_text(self, text: str) -> str:
        if text not in self.names:
            raise WrongValue(f"{text!r} is not {one_of(self.names)}{nearest(text, self.names)}")
        return text

    def from_toml(self, value: object) -> str:
        return self.from_text(text_of(value, self.names[0]))


@dataclass(frozen=True, slots=True)
class LogLevels:
    """How much is logged, of all and by area."""

    metavar: str = "LEVEL[,AREA=LEVEL...]"

    def from_text(self, text: str) -> Levels:
        try:
            return parse_levels(text)
        except ValueError as error:
            raise WrongValue(str(error)) from None

    def from_toml(self, value: object) -> Levels:
        return self.from_text(text_of(value, "info,device=debug"))


@dataclass(frozen=True, slots=True)
class Cpus:
    """Processors that this process may use, as "2-5,8"; the value is their numbers."""

    metavar: str = "CPUS"

    def from_text(self, text: str) -> tuple[int, ...]:
        found: list[int] = []
        for part in text.split(","):
            bounds = _CPU_RANGE.fullmatch(part)
            first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
            if last < first:
                raise WrongValue(f"{text!r} is not a list of processors such as 2-5 or 2-5,8")
            found += range(first, min(last, first + MAX_CPUS) + 1)
        allowed = os.sched_getaffinity(0)
        for cpu in found:
            if cpu not in allowed:
                names = ", ".join(str(n) for n in sorted(allowed))
                raise WrongValue(
                    f"processor {cpu} is not for this process to use; there are {names}"
                )
        return tuple(found)

    def from_toml(self, value: object) -> tuple[int, ...]:
        return self.from_text(text_of(value, "2-5,8"))


@dataclass(frozen=True, slots=True)
class SchedulingPolicy:
    """How threads are scheduled, as "fifo:50" or "other:-5"; see `device.scheduling`."""

    metavar: str = "POLICY[:N]"

    def from_text(self, text: str) -> Scheduling:
        name, colon, number = text.partition(":")
        if name not in POLICIES:
            raise WrongValue(f"{name!r} is not {one_of(POLICIES)}{nearest(name, POLICIES)}")
        allowed = POLICIES[name][1]
        if not colon and 0 in allowed:
            return Scheduling(name)
        digits = number.removeprefix("-")
        is_number = digits.isascii() and digits.isdigit() and len(digits) < 4
        if not is_number or int(number) not in allowed:
            raise WrongValue(f"{text!r} must be {name}:N, N from {allowed[0]} to {allowed[-1]}")
        return Scheduling(name, int(number))

    def from_toml(self, value: object) -> Scheduling:
        return self.from_text(text_of(value, "fifo:50"))


@dataclass(frozen=True, slots=True)
class Mode:
    """Permissions such as 660; a string in TOML, since 660 there is a decimal number."""

    metavar: str = "OCTAL"

    def from_text(self, text: str) -> int:
        if not (0 < len(text) <= 4 and set(text) <= set("01234567") and int(text, 8) <= 0o777):
            raise WrongValue(f"{text!r} is not an octal mode such as 660")
        return int(text, 8)

    def from_toml(self, value: object) -> int:
        return self.from_text(text_of(value, "660"))


def json_type(kind: Kind) -> type:
    """What `from_toml` takes, and JSON has: int, bool or str."""
    return int if isinstance(kind, Number) else bool if isinstance(kind, Switch) else str


@dataclass(frozen=True, slots=True)
class Backend:
    """What a device is connected to, see `vhostnet.backends`."""

    metavar: str = "BACKEND"

    def from_text(self, text: str) -> str:
        kind = text.partition(":")[0]
        suggestion = "" if kind in BACKEND_SPECS else nearest(kind, BACKEND_SPECS)
        try:
            check_spec(text)
        except UsageError as error:
            raise WrongValue(f"{error}{suggestion}") from None
        return text

    def from_toml(self, value: object) -> str:
        return self.from_text(text_of(value, "tap:tap0"))


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where metrics are to be had, see `frontdoors.metrics_server`."""

    metavar: str = "tcp:HOST:PORT|unix:PATH"

    def from_text(self, text: str) -> MetricsAddress:
        try:
            return parse_address(text)
        except UsageError as error:
            raise WrongValue(str(error)) from None

    def from_toml(self, value: object) -> MetricsAddress:
        return self.from_text(text_of(value, "tcp:127.0.0.1:9743"))
