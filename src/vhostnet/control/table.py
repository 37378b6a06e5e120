"""All commands of the control socket.

To add one: write a function as `registry` says, and name it here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vhostnet import events

from . import captures, changes, inspect, queries, sandbox
from .daemon import Daemon
from .registry import Argument, Command, commands_of


def query_events(daemon: Daemon) -> list[dict[str, Any]]:  # noqa: ARG001
    """All events that a client may be sent."""
    return [{"name": name, "help": text} for name, text in events.EVENTS.items()]


def commands(device: Sequence[Argument]) -> dict[str, Command]:
    """The table, by name.

    Args:
        device: what a device is made of, the arguments of `device-add`: the command line's room
            declares them, and is above this one.
    """

    def query_commands(daemon: Daemon) -> list[dict[str, Any]]:  # noqa: ARG001
        """All commands: names, arguments, what they do."""
        return [command.describe() for command in table.values()]

    table = commands_of(
        (
            query_commands,
            query_events,
            queries.query_version,
            queries.query_devices,
            queries.query_vrings,
            queries.query_memory,
            queries.query_workers,
            queries.query_stats,
            inspect.inspect,
            sandbox.query_sandbox,
            changes.query_log,
            changes.log_set,
            changes.device_add,
            changes.device_del,
            captures.capture_start,
            captures.capture_stop,
            captures.query_capture,
        )
    )
    table["device-add"] = dataclasses.replace(table["device-add"], arguments=tuple(device))
    return table
