"""The file of `vhostnet serve --config`: TOML, the same options as on the command line.

    socket-group = "kvm"            # what holds for the daemon

    [device.vm1]                    # a device, and what it is called
    socket = "/run/vm1.sock"
    backend = "tap:tap1"

All that is wrong with a file is said together, a line for each, with the line of the file.  Only
where it is no TOML at all there is one.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from vhostnet.cli import toml_lines
from vhostnet.cli.device_options import conflicts_between, conflicts_within, make_device
from vhostnet.cli.option_kinds import Name, WrongValue, shown
from vhostnet.cli.options import DAEMON_OPTIONS, DEVICE_OPTIONS, Option
from vhostnet.cli.parser import nearest
from vhostnet.confinement.acts import act
from vhostnet.confinement.policy import Policy
from vhostnet.errors import ConfigError, HostError
from vhostnet.frontdoors.vhost_user_daemon import DeviceOptions

DEVICE = "device"
#: Nobody writes one by hand that is longer; a device has some 500 bytes.
MAX_SIZE = 1 << 20

_AT_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says.

    Attributes:
        path: of the file, for messages.
        settings: of the daemon, by key; what is not in the file is not in here.
        devices: in the order of the file.
    """

    path: str
    settings: Mapping[str, object]
    devices: tuple[DeviceOptions, ...]


def read_config(path: str) -> ConfigFile:
    """Read and check a file; ConfigError with all that is wrong."""
    try:
        _, [fd] = open_config(path)
        with open(fd, "rb") as file:
            raw = file.read(MAX_SIZE + 1)
    except HostError as error:
        raise ConfigError([str(error)]) from None
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except ValueError as error:  # a zero byte in the path
        raise ConfigError([f"{path!r}: {error}"]) from None
    if len(raw) > MAX_SIZE:
        raise ConfigError([f"{path}: longer than {MAX_SIZE} bytes, so no file of ours"])
    try:
        return parse_config(path, raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8"]) from None


@act(Policy.may_read_config, Policy.has_read_config)
def open_config(path: str) -> tuple[None, list[int]]:
    """The file, for reading; OSError."""
    return None, [os.open(path, os.O_RDONLY | os.O_CLOEXEC)]


def parse_config(path: str, text: str) -> ConfigFile:
    """Check the text of a file; ConfigError with all that is wrong."""
    text = text.replace("\r\n", "\n")
    try:
        document = tomllib.loads(text)
        lines = toml_lines.key_lines(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = _AT_LINE.search(message)
        where = f"{path}:{at[1]}" if at else f"{path}:{text.count(chr(10)) + 1}"
        column = f", column {at[2]}" if at else ""
        reason = _AT_LINE.sub("", message).removesuffix(" (at end of document)")
        raise ConfigError([f"{where}: is not TOML{column}: {reason}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: is nested too deeply"]) from None
    return _Checked(path, document, lines).result()


class _Checked:
    """One pass over a document."""

    def __init__(
        self, path: str, document: dict[str, object], lines: dict[toml_lines.Path, int]
    ) -> None:
        self._path = path
        self._lines = lines
        self._problems: list[tuple[int, str]] = []
        self._devices: list[DeviceOptions] = []
        tables = document.pop(DEVICE, None)
        self._settings = self._values((), document, DAEMON_OPTIONS)
        if tables is None:
            self._problem((), "there is no [device.NAME], so nothing to serve")
        elif not isinstance(tables, dict):
            self._problem((DEVICE,), "write a table for each device, [device.NAME]")
        else:
            for name, table in tables.items():
                self._device(name, table)
            self._check_together()

    def result(self) -> ConfigFile:
        if self._problems:
            raise ConfigError([text for _, text in sorted(self._problems)])
        return ConfigFile(self._path, self._settings, tuple(self._devices))

    def _problem(self, path: toml_lines.Path, text: str) -> None:
        line = next(
            (self._lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._lines), 1
        )
        header = f"[device.{path[1]}] " if len(path) > 1 else ""
        key = f"{path[-1]}: " if len(path) in (1, 3) and path != (DEVICE,) else ""
        self._problems.append((line, f"{self._path}:{line}: {header}{key}{text}"))

    def _device(self, name: str, table: object) -> None:
        path = (DEVICE, name)
        try:
            Name().from_text(name)
        except WrongValue as error:
            self._problem(path, str(error))
        if not isinstance(table, dict):
            self._problem(path, f"must be a table, not {shown(table)}")
            return
        given = self._values(path, table, DEVICE_OPTIONS)
        if "backend" not in table:
            self._problem(path, "backend is needed")
        for key, text in conflicts_within(given):
            self._problem((*path, key), text)
        if "backend" in given:
            option = f"{self._path}:{self._lines.get(path, 1)}: [device.{name}]"
            self._devices.append(make_device(option, 0, {**given, "name": name}))

    def _values(
        self, path: toml_lines.Path, table: dict[str, object], options: tuple[Option, ...]
    ) -> dict[str, object]:
        known = {option.key: option for option in options}
        in_file = [key for key, option in known.items() if option.in_file]
        given = {}
        for key, value in table.items():
            if key not in in_file:
                self._problem((*path, key), self._unknown(key, path, in_file))
                continue
            try:
                given[key] = known[key].kind.from_toml(value)
            except WrongValue as error:
                self._problem((*path, key), str(error))
        return given

    def _unknown(self, key: str, path: toml_lines.Path, in_file: list[str]) -> str:
        others = DAEMON_OPTIONS if path else DEVICE_OPTIONS
        if key in {option.key for option in others if option.in_file}:
            where = "before the first [device.NAME]" if path else "in a [device.NAME]"
            return f"belongs elsewhere, {where}"
        if path and key == "name":
            return "the name is in the header, [device.NAME]"
        if key in {option.key for option in (*DAEMON_OPTIONS, *DEVICE_OPTIONS)}:
            return "is for the command line only"
        more = [*in_file, DEVICE] if not path else in_file
        suggestion = nearest(key, more) or f"; there are {', '.join(more)}"
        return f"there is no such key{suggestion}"

    def _check_together(self) -> None:
        """What fits together is only said of values that are known: no error follows another."""
        wrong_alone = bool(self._problems)
        for number, key, text in conflicts_between(self._devices):
            if key == "queue-pairs" and wrong_alone:
                continue
            self._problem((DEVICE, self._devices[number].name, key), text)
