"""The processes of `vhostnet run`.

    ours         what the user has started: waits for the command's status, passes signals on
      keeper     takes over the listener if the supervisor dies (see keeper.py)
      opener     opens what the supervisor, which is sealed, may not (`confinement.opener`)
        supervisor answers calls; the parent of
          command  and of every process of its tree that has lost its own (a subreaper)

The supervisor is not ours itself, because it goes on for as long as anybody is left under the
filter, and we end with the command.  The command stays in our process group and session, as if
there were nothing between; supervisor and keeper have sessions of their own, where no terminal
reaches them.  The opener is above the supervisor, because some systems (Yama) let a process look
into its descendants only; without a sandbox there is none.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vhostnet.frontdoors.foreign_process import check_descriptors

from .abi import native
from .keeper import keep
from .listener_raw import new_slot
from .node import Node
from .path_calls import PathCalls
from .processes import (
    EXIT_OWN_FAILURE,
    PR_SET_CHILD_SUBREAPER,
    CommandError,
    Ends,
    fork,
    name_process,
    pair_of_sockets,
    prctl,
)
from .supervision import supervise
from .waiting import Waiting

if TYPE_CHECKING:
    from .supervisor import Devices

__all__ = ["EXIT_OWN_FAILURE", "CommandError", "run"]

#: How many open files a process may have whose every call is exact; see open_file.py.
N_RESERVED = 32
_USUAL_LIMIT = 1024


def run(
    command: Sequence[str], load: Callable[[], Devices], guard: Callable[[], None] = lambda: None
) -> int:
    """Run a command whose /dev/vhost-net is ours.

    Args:
        load: brings the devices; called in the supervisor, when the command's process is there.
        guard: called in the supervisor before that; it may go on in a child.

    Returns:
        The command's exit status; 128 and the signal's number if one has ended it.

    Raises:
        CommandError: it was not run at all.
        HostError: this machine does not let us.
    """
    architecture = native()
    check_descriptors()
    ends = Ends(
        pair_of_sockets(),
        pair_of_sockets(),
        new_slot(),
        architecture,
        _reserved_numbers(),
        PathCalls(Node(), architecture),
    )
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    fork(lambda: _keeper(ends))
    supervisor = fork(lambda: supervise(ends, command, guard, load))
    for pair in (ends.keeper, ends.report):
        pair[1].close()
    ends.keeper[0].close()
    return Waiting(ends.report[0], supervisor).status()


def _reserved_numbers() -> range:
    """The last of those that a process may have, by the usual limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = _USUAL_LIMIT
    stop = max(min(soft, _USUAL_LIMIT), 2 * N_RESERVED)
    return range(stop - N_RESERVED, stop)


def _keeper(ends: Ends) -> None:
    for end in (ends.keeper[0], *ends.report):
        end.close()
    name_process(b"vhostnet-keeper")
    keep(ends.keeper[1], ends.slot, ends.architecture, ends.paths)
