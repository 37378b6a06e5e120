"""A minimal client for QEMU's control channel (QMP): one command, one answer."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from vhostnet.errors import HostError


class QmpError(HostError):
    """QEMU refused a command; the message is QEMU's own."""


class Qmp:
    """One QMP connection.

    Source: QEMU docs/interop/qmp-spec.rst.
    """

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        self.events: list[str] = []
        deadline = time.monotonic() + timeout
        try:
            self._connect(path, deadline)
            self._read(deadline)  # the greeting
            self.call("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def call(self, command: str, timeout: float = 60.0, **arguments: Any) -> Any:
        """Run one command and return its result; events that come in between are kept.

        Raises:
            QmpError: QEMU refused it, did not answer in time or is gone.
        """
        deadline = time.monotonic() + timeout
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as err:
            raise QmpError(f"QMP {command}: {err.strerror}") from err
        while True:
            answer = self._read(deadline)
            if "event" in answer:
                self.events.append(answer["event"])
            elif "error" in answer:
                raise QmpError(f"QMP {command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def close(self) -> None:
        """Close the connection; QEMU does not mind."""
        self._socket.close()

    def _connect(self, path: Path, deadline: float) -> None:
        while True:
            try:
                return self._socket.connect(str(path))
            except OSError as err:
                if time.monotonic() > deadline:
                    raise QmpError(f"QMP: cannot connect to {path}: {err.strerror}") from err
                time.sleep(0.05)

    def _read(self, deadline: float) -> Any:
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                chunk = self._socket.recv(65536)
            except TimeoutError:
                raise QmpError("QMP: no answer in time") from None
            if not chunk:
                raise QmpError("QMP: QEMU closed the channel")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)
