"""A function becomes a command: its name, its arguments, its refusals."""

from __future__ import annotations

from typing import Any

import pytest

from vhostnet import events
from vhostnet.control.registry import commands_of, execute
from vhostnet.control.table import commands
from vhostnet.errors import HostError
from vhostnet.protocol.qmp_session import QmpError


def do_this(daemon: Any, *, name: str, how_many: int = 1, fast: bool | None = None) -> Any:
    """Do this.

    And more.
    """
    return {"daemon": daemon, "name": name, "how_many": how_many, "fast": fast}


def do_nothing(daemon: Any) -> None:
    """Do
    nothing.
    """
    assert daemon is not None, "a bug"


def refuse(daemon: Any) -> None:  # noqa: ARG001
    """Refuse."""
    raise HostError("the host says no")


TABLE = commands_of((do_this, do_nothing, refuse))


def run(command: str, on: Any = "d", /, **arguments: Any) -> Any:
    return execute(TABLE, on, command, {k.replace("_", "-"): v for k, v in arguments.items()})


def test_arguments_come_under_their_names():
    assert run("do-this", name="a", how_many=3, fast=True) == {
        "daemon": "d",
        "name": "a",
        "how_many": 3,
        "fast": True,
    }
    assert run("do-this", name="a")["how_many"] == 1
    assert run("do-nothing") == {}


def test_a_command_describes_itself():
    assert TABLE["do-this"].describe() == {
        "name": "do-this",
        "help": "Do this.",
        "arguments": [
            {"name": "name", "type": "string", "required": True},
            {"name": "how-many", "type": "number", "required": False},
            {"name": "fast", "type": "boolean", "required": False},
        ],
    }
    assert TABLE["do-nothing"].help == "Do nothing."


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "'name' is missing"),
        ({"name": 1}, "'name' must be a string"),
        ({"name": None}, "'name' must be a string"),
        ({"name": "a", "how_many": True}, "'how-many' must be a number"),
        ({"name": "a", "how_many": 1.5}, "'how-many' must be a number"),
        ({"name": "a", "fast": "on"}, "'fast' must be a boolean"),
        ({"name": "a", "daemon": "x"}, "'daemon' is unexpected"),
    ],
)
def test_wrong_arguments_are_named(arguments, why):
    with pytest.raises(QmpError, match=why):
        run("do-this", **arguments)


def test_an_unknown_command_a_refusal_and_a_bug(caplog):
    with pytest.raises(QmpError, match="x has not been found") as unknown:
        run("x")
    assert unknown.value.error_class == "CommandNotFound"
    with pytest.raises(QmpError, match="the host says no"):
        run("refuse")
    with pytest.raises(QmpError, match=r"bug in this program.*a bug"):
        run("do-nothing", None)
    assert "do-nothing failed" in caplog.text


def test_every_command_and_event_has_its_line_of_help():
    for name, command in commands(()).items():
        assert name == command.run.__name__.replace("_", "-")
        assert 10 < len(command.help) < 120, name
        assert command.help.endswith(".") or ":" in command.help, name
    assert all(name.isupper() and text for name, text in events.EVENTS.items())


def test_events_reach_those_who_listen_and_nobody_else():
    heard: list[events.Event] = []
    events.tell("DEVICE_ADDED", device="before")
    end = events.listen(heard.append)
    events.tell("DEVICE_ADDED", device="dev1")
    end()
    events.tell("DEVICE_ADDED", device="after")
    assert [(e.name, dict(e.data)) for e in heard] == [("DEVICE_ADDED", {"device": "dev1"})]
    with pytest.raises(AssertionError):
        events.tell("NO_SUCH_EVENT")
