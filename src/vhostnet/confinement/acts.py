"""What needs rights that a sealed process has not: the closed list, and asking for it.

A function under `@act` is run where it is called, for as long as the process is not sealed, and by
the opener afterwards; its text is the same. It takes and returns what JSON can say, and
descriptors:

    @act(Policy.may_connect)
    def connect_unix(path: str) -> tuple[None, list[int]]:

An OSError, HostError or UsageError that it raises is raised where it was called.

On the wire, one packet a request, [name, arguments], and one packet an answer, {"value": ...} with
its descriptors or {"error": kind, "errno": ..., "text": ...}; before each a number, which tells the
answer that is awaited from one that was given up. The opener takes nothing from the sealed process
but these bytes.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import threading
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from vhostnet.errors import HostError, UsageError

from .policy import Policy

SYSCALLS = ("sendto", "recvmsg", "poll", "ppoll")  # to the opener, with a timeout
OPENER_SYSCALLS = ("sendmsg", "recvfrom")

#: Bytes of a message.
MAX_MESSAGE = 1 << 16
MAX_FDS = 8
#: Of the number before a message.
NUMBER_BYTES = 8
#: How long the opener may take; what may wait for somebody else does so aside, and is given up.
PATIENCE_S = 10.0

P = ParamSpec("P")
T = TypeVar("T")
_Result = tuple[T, list[int]]


@dataclass(frozen=True, slots=True)
class Act:
    """One entry of the list.

    Attributes:
        kinds: what each argument may be.
        permitted: raises HostError if the policy does not allow it with these arguments.
        done: told of the value and the arguments.
        may_wait: for a file system of somebody else's.
    """

    name: str
    run: Callable[..., tuple[Any, list[int]]]
    kinds: tuple[Any, ...]
    permitted: Callable[..., None]
    done: Callable[..., None]
    may_wait: bool


_acts: dict[str, Act] = {}
_asked: Asked | None = None


def acts() -> dict[str, Act]:
    """The list, as far as modules are loaded."""
    return dict(_acts)


def _nothing(*_: object) -> None:
    pass


def act(
    permitted: Callable[..., None],
    done: Callable[..., None] = _nothing,
    *,
    may_wait: bool = False,
) -> Callable[[Callable[P, _Result[T]]], Callable[P, _Result[T]]]:
    """Put a function on the list.  Called with positional arguments only."""

    def declare(fn: Callable[P, _Result[T]]) -> Callable[P, _Result[T]]:
        name = fn.__name__
        hints = typing.get_type_hints(fn)
        hints.pop("return", None)
        kinds = tuple(typing.get_args(hint) or (hint,) for hint in hints.values())
        _acts[name] = Act(name, fn, kinds, permitted, done, may_wait)

        @functools.wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> _Result[T]:
            if _asked is None:
                return fn(*args, **kwargs)
            assert not kwargs
            return typing.cast(_Result[T], _asked.ask(name, args))

        return call

    return declare


def ask_from_now_on(asked: Asked | None) -> None:
    """Have the opener do what is on the list; None: we again."""
    global _asked
    _asked = asked


class Asked:
    """The sealed process's end.

    Args:
        channel: to the opener, ours from now on.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._n_asked = 0
        channel.settimeout(PATIENCE_S)

    def ask(self, name: str, args: tuple[Any, ...]) -> tuple[Any, list[int]]:
        """Have an act done; from any thread."""
        request = json.dumps([name, list(args)]).encode()
        with self._lock:
            try:
                message, fds = self._exchange(request)
            except TimeoutError as error:
                raise HostError(f"the opener does not answer: {name}", errno.ETIMEDOUT) from error
            except OSError as error:
                self._channel.close()
                raise HostError(f"{_GONE} ({error})", error.errno or 0) from error
        if not message:
            raise HostError(_GONE)
        return _value(json.loads(message)), fds

    def _exchange(self, request: bytes) -> tuple[bytes, list[int]]:
        self._n_asked += 1
        number = self._n_asked.to_bytes(NUMBER_BYTES, "little")
        self._channel.send(number + request)
        while True:
            packet, fds, _, _ = socket.recv_fds(
                self._channel, NUMBER_BYTES + MAX_MESSAGE, MAX_FDS, socket.MSG_CMSG_CLOEXEC
            )
            if not packet or packet[:NUMBER_BYTES] == number:
                return packet[NUMBER_BYTES:], list(fds)
            for fd in fds:  # nobody waits for it any more
                os.close(fd)

    def close(self) -> None:
        """Let the opener go."""
        self._channel.close()


_GONE = "the opener has gone, and with it the right to do this: restart the daemon"
_ERRORS = {"HostError": HostError, "UsageError": UsageError}


def _value(answer: dict[str, Any]) -> Any:
    if "error" not in answer:
        return answer["value"]
    kind, code, text = answer["error"], answer["errno"], answer["text"]
    if kind == "OSError":
        raise OSError(code, text)
    raise UsageError(text) if kind == "UsageError" else HostError(text, code)


def perform(policy: Policy, message: bytes) -> tuple[bytes, list[int]]:
    """Do what a request says, if it may be; returns the answer and its descriptors."""
    try:
        wanted, args = _understood(message)
    except ValueError as error:
        return _failure("HostError", 0, str(error)), []
    try:
        wanted.permitted(policy, *args)
        value, fds = wanted.run(*args)
        wanted.done(policy, value, *args)
    except HostError as error:
        return _failure("HostError", error.errno, str(error)), []
    except UsageError as error:
        return _failure("UsageError", 0, str(error)), []
    except OSError as error:
        return _failure("OSError", error.errno or 0, error.strerror or str(error)), []
    except (ValueError, LookupError, OverflowError) as error:  # a zero byte in a path, for example
        return _failure("HostError", 0, f"{wanted.name}: {error}"), []
    return json.dumps({"value": value}).encode(), fds


def may_wait(message: bytes) -> bool:
    """Whether what a request says may wait for somebody else."""
    try:
        return _understood(message)[0].may_wait
    except ValueError:
        return False


def too_many() -> bytes:
    """The answer to a request for which too many others wait."""
    return _failure("HostError", errno.EBUSY, "too many requests wait for somebody's file system")


def _understood(message: bytes) -> tuple[Act, list[Any]]:
    """The act and its arguments; ValueError for anything but what `ask` writes."""
    try:
        request = json.loads(message)
    except RecursionError:
        raise ValueError("no request") from None
    if not (isinstance(request, list) and len(request) == 2 and isinstance(request[0], str)):
        raise ValueError("no request")
    name, args = request
    if name not in _acts:
        raise ValueError(f"{name!r} is not on the list")
    found = _acts[name]
    if not isinstance(args, list) or len(args) != len(found.kinds):
        raise ValueError(f"{name}: takes {len(found.kinds)} arguments")
    for arg, kinds in zip(args, found.kinds, strict=True):
        if type(arg) not in kinds:
            raise ValueError(f"{name}: {arg!r} is of a wrong kind")
    return found, args


def _failure(kind: str, code: int, text: str) -> bytes:
    return json.dumps({"error": kind, "errno": code, "text": text}).encode()


def answer(channel: socket.socket, reply: bytes, fds: list[int]) -> None:
    """Send an answer; the descriptors are closed here."""
    try:
        socket.send_fds(channel, [reply], fds)
    finally:
        for fd in fds:
            os.close(fd)
