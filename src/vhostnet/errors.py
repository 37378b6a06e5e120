"""Who is to blame: one exception a party, each with the exit status it ends a command with.

The message of each is one line that says which rule was broken and, where a human can
mend it, what to do.  A door turns these into its own answer: an errno, a refused message,
a closed session.
"""

from __future__ import annotations

import contextlib
import errno as _errno
from collections.abc import Iterator, Sequence

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_HOST = 4
EXIT_PEER = 5
EXIT_BUG = 70

#: What each means, for --help and the manual; docs/use.md has the same table.
EXIT_STATUSES = {
    "0": "ended as asked",
    "1": "`ctl`, `bench`, `demo`, `replay`: it was done, and the answer is no",
    "2": "the options make no sense",
    "3": "the configuration file is wrong; each error has a line",
    "4": "this host refused: a TAP, a socket, a permission, a missing kernel feature",
    "5": "the other side broke the protocol (`serve`: with `--fd` and `--one-off` only)",
    "6": "`ctl inspect`: the ring breaks a rule of the specification",
    "70": "a bug in vhostnet; `--log-level debug` shows where",
    "125": "`run`: vhostnet itself failed",
    "126": "`run`: the command cannot be executed",
    "127": "`run`: the command was not found",
    "128+N": "ended by signal N, for example 130 after Ctrl-C; `run`: the command was",
}


class VhostnetError(Exception):
    """Base of all errors that vhostnet raises on purpose."""

    exit_status = EXIT_BUG


class UsageError(VhostnetError):
    """The operator asked for something that does not exist or does not fit together."""

    exit_status = EXIT_USAGE


class ConfigError(VhostnetError):
    """A configuration file is wrong.

    Args:
        problems: a line for each thing, naming the file and its line.
    """

    exit_status = EXIT_CONFIG

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class HostError(VhostnetError):
    """This host refused: a TAP, a socket path, a permission.  Keeps the errno."""

    exit_status = EXIT_HOST

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class PeerError(VhostnetError):
    """The front-end (VMM) broke a rule of the protocol.  `errno` is what Linux would say."""

    exit_status = EXIT_PEER

    def __init__(self, message: str, errno: int = _errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = errno


def reason_of(error: OSError | HostError) -> str:
    """What went wrong, without the errno and the path that Python puts around it."""
    return str(error) if isinstance(error, HostError) else error.strerror or str(error)


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """Errors of the operator's and of the host's say which option they are about."""
    try:
        yield
    except HostError as error:
        raise HostError(f"{option}: {error}", error.errno) from error
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error
