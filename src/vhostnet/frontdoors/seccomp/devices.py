"""What is behind the open files of a tree: devices, and the memory of their owners."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from vhostnet.capture import running
from vhostnet.device.kernel_verbs import KernelVerbs
from vhostnet.device.owner_memory import OwnerMemory
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import HostError
from vhostnet.frontdoors.event_loop import Loop
from vhostnet.frontdoors.trace_file import TraceFile
from vhostnet.frontdoors.traced_ioctl import TracedFile
from vhostnet.frontdoors.vhost_ioctl import VhostFile

from .abi import native
from .listener_raw import PathReader
from .supervisor import Supervisor
from .tree_acts import find_parent

#: Of a child's memory, by its pid: the one right over others that the supervisor keeps.
SYSCALLS = ("process_vm_readv", "process_vm_writev")


class TreeDevices:
    """Makes devices; knows whose memory may be reached by its pid.

    A pid stands for an address space until the process runs exec or its pid is given to another
    one.  Both we know beforehand for a child of ours: its exec is trapped, and nobody else may
    reap it.  (Some containers forbid reaching memory by pid altogether.)

    Args:
        linux_abi: the version of Linux to behave as.
        memory_alarm: an eventfd that tells when an owner's memory file was cut short.
        serving: entered while calls are answered: the control socket.
        trace: is told the calls.
        packed_rings: offer them, beyond Linux.
    """

    def __init__(
        self,
        linux_abi: str,
        memory_alarm: int | None = None,
        serving: Callable[
            [Loop, Supervisor], AbstractContextManager[object]
        ] = lambda _loop, _calls: nullcontext(),
        trace: TraceFile | None = None,
        *,
        packed_rings: bool = False,
    ) -> None:
        self.serving = serving
        self._linux_abi = linux_abi
        self._packed_rings = packed_rings
        self._trace = trace
        self.memory_alarm = memory_alarm
        self._remote = PathReader(native()).remote
        #: Processes of which a thread was let go on into an exec while there were others: it may
        #: come to its end at any time.
        self._in_exec: set[int] = set()

    def open(self, name: str) -> VhostFile:
        """A device of its own for an open file."""
        net = VhostNet(name, self._linux_abi)
        running.joined([net])
        verbs = KernelVerbs(net, self._memory_of, packed_rings=self._packed_rings)
        return VhostFile(verbs) if self._trace is None else TracedFile(verbs, self._trace, name)

    def _memory_of(self, pid: int) -> OwnerMemory:
        try:
            is_child = find_parent(pid)[0] == os.getpid()
        except (OSError, HostError):
            is_child = False
        batched = self._remote and pid not in self._in_exec and is_child
        return OwnerMemory(pid, batched=batched)

    def before_exec(self, pid: int, has_other_threads: bool) -> None:
        """A thread of process *pid* is about to run exec (which may fail)."""
        if has_other_threads:
            self._in_exec.add(pid)

    def process_is_gone(self, pid: int) -> None:
        """Process *pid* has ended, and its number is not free yet."""
        self._in_exec.discard(pid)
