"""One client of the control socket, sans-IO: received bytes in, answers and events out.

The protocol is QMP, so that QEMU's own clients (`qemu.qmp`, `qmp-shell`, `qmp-tui`) work as they
are.  Until `qmp_capabilities` is executed there are no other commands and no events.

Source: QEMU docs/interop/qmp-spec.rst.  There are no capabilities (out-of-band execution has
nothing to overtake: a command is answered before the next one is looked at).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .qmp_json import JsonError, JsonStream

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_FOUND = "DeviceNotFound"

_NEGOTIATE = "qmp_capabilities"


class QmpError(Exception):
    """A command's refusal: what the client is answered.

    Args:
        desc: one line for humans.
        error_class: one of the constants above.
    """

    def __init__(self, desc: str, error_class: str = GENERIC_ERROR) -> None:
        super().__init__(desc)
        self.error_class = error_class


class QmpSession:
    """A conversation.

    Args:
        execute: runs a command, given its name and arguments; returns what JSON can say, or
            raises QmpError.
        version: of this program: major, minor, micro; and as a package calls it.
    """

    def __init__(
        self,
        execute: Callable[[str, dict[str, Any]], Any],
        version: tuple[int, int, int],
        package: str,
    ) -> None:
        self._execute = execute
        self._stream = JsonStream()
        self._negotiated = False
        major, minor, micro = version
        self.version = {
            # the member has this name because it is where clients look
            "qemu": {"major": major, "minor": minor, "micro": micro},
            "package": package,
        }

    def greeting(self) -> bytes:
        """What the client is told first."""
        return _line({"QMP": {"version": self.version, "capabilities": []}})

    def feed(self, data: bytes) -> bytes:
        """Take what was received; returns the answers, in the order of the commands."""
        answers = []
        for item in self._stream.feed(data):
            if isinstance(item, JsonError):
                answers.append(_line({"error": _error(QmpError(str(item)))}))
            else:
                answers.append(self._answer(item))
        return b"".join(answers)

    def event(self, name: str, data: Mapping[str, Any], seconds: float) -> bytes:
        """An event of *seconds* since the epoch; nothing before the negotiation."""
        if not self._negotiated:
            return b""
        whole = int(seconds)
        timestamp = {"seconds": whole, "microseconds": int((seconds - whole) * 1_000_000)}
        return _line({"event": name, "data": dict(data), "timestamp": timestamp})

    def _answer(self, request: dict[str, Any]) -> bytes:
        try:
            reply = {"return": self._run(request)}
        except QmpError as error:
            reply = {"error": _error(error)}
        if "id" in request:
            reply["id"] = request["id"]
        return _line(reply)

    def _run(self, request: dict[str, Any]) -> Any:
        for key in request:
            if key not in ("execute", "arguments", "id"):
                raise QmpError(f"QMP input member '{key}' is unexpected")
        command = request.get("execute")
        arguments = request.get("arguments", {})
        if not isinstance(command, str):
            raise QmpError("QMP input lacks member 'execute', a string")
        if not isinstance(arguments, dict):
            raise QmpError("QMP input member 'arguments' must be an object")
        if command == _NEGOTIATE:
            return self._negotiate(arguments)
        if not self._negotiated:
            raise QmpError(
                f"Expecting capabilities negotiation with '{_NEGOTIATE}'", COMMAND_NOT_FOUND
            )
        return self._execute(command, arguments)

    def _negotiate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._negotiated:
            raise QmpError(
                "Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND
            )
        enable = arguments.get("enable", [])
        if set(arguments) - {"enable"} or not isinstance(enable, list):
            raise QmpError("'enable', a list, is all that qmp_capabilities takes")
        for capability in enable:
            raise QmpError(f"Capability {json.dumps(capability)} is not available")
        self._negotiated = True
        return {}


def _error(error: QmpError) -> dict[str, str]:
    return {"class": error.error_class, "desc": str(error)}


def _line(message: Mapping[str, Any]) -> bytes:
    """In ASCII, as QEMU writes it, so that it is UTF-8 whatever is in its strings."""
    return json.dumps(message).encode() + b"\r\n"
