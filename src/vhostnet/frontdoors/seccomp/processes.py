"""What the processes of a tree have in common: forking, statuses, what they tell each other."""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from vhostnet.errors import HostError

from .abi import Architecture
from .path_calls import PathCalls

log = logging.getLogger("vhostnet")

#: Statuses of commands that run other commands (env, timeout, nohup).
EXIT_OWN_FAILURE = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
_BY_SIGNAL = 128

PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NAME = 15
#: The most of a message.
MOST = 4096


class CommandError(HostError):
    """The command could not be run; `exit_status` says why as env(1) does."""

    def __init__(self, message: str, exit_status: int = EXIT_OWN_FAILURE) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True)
class Ends:
    """What our processes share from the first fork on."""

    keeper: tuple[socket.socket, socket.socket]
    report: tuple[socket.socket, socket.socket]
    slot: mmap.mmap
    architecture: Architecture
    reserved: range
    paths: PathCalls


def pair_of_sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def prctl(*words: int) -> None:
    ctypes.CDLL(None).prctl(*(ctypes.c_ulong(word) for word in (*words, 0, 0, 0)[:5]))


def name_process(name: bytes) -> None:
    ctypes.CDLL(None).prctl(ctypes.c_int(_PR_SET_NAME), ctypes.c_char_p(name))


def fork(child: Callable[[], None]) -> int:
    """The new process runs *child* and ends, without a word to what its parent has set up."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = EXIT_OWN_FAILURE
        try:
            child()
            status = 0
        except BaseException:
            log.exception("bug in this program")
        finally:
            os._exit(status)
    return pid


def exit_status_of(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _BY_SIGNAL - code


def failure(text: str, status: int) -> bytes:
    return json.dumps({"failed": text, "status": status}).encode()
