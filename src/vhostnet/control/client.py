"""A client of the control socket, for programs that wait for each answer.

Nothing of the daemon is imported: whoever asks may be a short command.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from vhostnet.errors import HostError, PeerError, VhostnetError

TIMEOUT_S = 10.0
EXIT_REFUSED = 1


class Refused(VhostnetError):
    """The daemon's refusal of a command, in its words."""

    exit_status = EXIT_REFUSED


class ControlClient:
    """A connection, negotiated; a context manager.

    Args:
        path: of --control.
        timeout: for each answer, seconds; `TIMEOUT_S` if None.

    Raises:
        HostError: nobody listens there, or nothing is answered in time.
        PeerError: whoever is there hangs up, or does not speak QMP.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self._path = path
        self._timeout = TIMEOUT_S if timeout is None else timeout
        self._buffer = b""
        self._events: deque[dict[str, Any]] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(self._timeout)
        try:
            try:
                self._socket.connect(path)
            except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
                text = getattr(error, "strerror", None) or error
                number = getattr(error, "errno", None) or 0
                raise HostError(f"{path}: cannot connect: {text}", number) from error
            if "QMP" not in self._read(self._deadline()):
                raise PeerError(f"{path}: is no control socket")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; returns what it returns, or raises Refused.

        Args:
            arguments: with "_" for "-".
        """
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": given})
        deadline = self._deadline()
        try:
            self._socket.sendall(request.encode() + b"\n")
        except TimeoutError:
            raise self._silence() from None
        except OSError:
            raise self._hung_up() from None
        while True:
            answer = self._read(deadline)
            if "event" in answer:
                self._events.append(answer)
            elif "return" in answer:
                return answer["return"]
            else:
                raise Refused(str(answer.get("error", {}).get("desc", answer)))

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come, those of before first; ends with PeerError when the daemon does."""
        while True:
            while self._events:
                yield self._events.popleft()
            self._events.append(self._read(None))

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _read(self, deadline: float | None) -> dict[str, Any]:
        """One message; None waits for ever."""
        while b"\n" not in self._buffer:
            patience = None if deadline is None else max(0.001, deadline - time.monotonic())
            self._socket.settimeout(patience)
            try:
                chunk = self._socket.recv(65536)
            except TimeoutError:
                raise self._silence() from None
            except OSError:
                chunk = b""
            if not chunk:
                raise self._hung_up()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise PeerError(f"{self._path}: is no control socket")
        return message

    def _silence(self) -> HostError:
        return HostError(f"{self._path}: no answer within {self._timeout:g} s")

    def _hung_up(self) -> PeerError:
        return PeerError(f"{self._path}: the daemon has hung up")
