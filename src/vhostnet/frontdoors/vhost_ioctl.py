"""One open file of the character device: ioctl numbers and the caller's memory onto verbs.

What `/dev/vhost-net` is to a program, however the program's calls reach us: through CUSE, or
trapped by a filter in its own process.  Both doors make one `VhostFile` an open, and hand it
each call together with its `Caller`.

The order of checks decides which errno wins, and is Linux's: features, owner and backend copy
their argument first; every other number, known or not, meets the owner check; what is left is
taken for a ring's, so its first word is read as an index before the number is looked at.

Source: Linux vhost_net_ioctl(), vhost_dev_ioctl(), vhost_vring_ioctl().
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from vhostnet.device.kernel_verbs import MAX_MEM_REGIONS, KernelVerbs
from vhostnet.errors import PeerError
from vhostnet.uapi import vhost
from vhostnet.uapi.vhost import MemoryRegion, VringFile, VringState
from vhostnet.uapi.wire import Layout

T = TypeVar("T")
_WORD = 8
#: Words of a features array that mean something: 64 bits each.
_FEATURE_WORDS = 2
#: Words that we look at; Linux goes on for as long as the caller's memory does.
_MAX_FEATURE_WORDS = 4096
_NO_DESCRIPTOR = -1
_NOT_OPEN = -2
_N_RINGS = 2


class Caller(Protocol):
    """The thread that calls: what only its own process can see."""

    @property
    def pid(self) -> int:
        """Its thread group, as we see it."""

    def read(self, address: int, size: int) -> bytes:
        """*size* bytes of its memory; PeerError EFAULT."""

    def write(self, address: int, data: bytes) -> None:
        """Into its memory; PeerError EFAULT."""

    def descriptor(self, fd: int) -> int:
        """A descriptor of ours, close-on-exec, for the open file that is its *fd*.

        Raises PeerError EBADF.
        """


class VhostFile:
    """An open file; the doors call, the verbs answer.

    Args:
        verbs: a device of its own.

    Every call may raise PeerError; its errno is the caller's answer.
    """

    def __init__(self, verbs: KernelVerbs) -> None:
        self.verbs = verbs
        self._fork_from_owner = True
        self._first: dict[int, Callable[[Caller, int], None]] = {
            vhost.VHOST_NET_SET_BACKEND: self._set_backend,
            vhost.VHOST_GET_FEATURES: self._get_features,
            vhost.VHOST_SET_FEATURES: self._set_features,
            vhost.VHOST_GET_BACKEND_FEATURES: self._get_backend_features,
            vhost.VHOST_SET_BACKEND_FEATURES: self._set_backend_features,
            vhost.VHOST_SET_OWNER: self._set_owner,
            vhost.VHOST_RESET_OWNER: self._reset_owner,
        }
        if verbs.net.abi.features_array:
            self._first[vhost.VHOST_GET_FEATURES_ARRAY] = self._get_features_array
            self._first[vhost.VHOST_SET_FEATURES_ARRAY] = self._set_features_array
        if verbs.net.abi.fork_owner:
            self._first[vhost.VHOST_GET_FORK_FROM_OWNER] = self._get_fork_from_owner
            self._first[vhost.VHOST_SET_FORK_FROM_OWNER] = self._set_fork_from_owner
        self._owners = {
            vhost.VHOST_SET_MEM_TABLE: self._set_mem_table,
            vhost.VHOST_SET_LOG_BASE: self._set_log_base,
            vhost.VHOST_SET_LOG_FD: self._set_log_fd,
        }
        self._rings = {
            vhost.VHOST_SET_VRING_NUM: self._set_vring_num,
            vhost.VHOST_SET_VRING_BASE: self._set_vring_base,
            vhost.VHOST_GET_VRING_BASE: self._get_vring_base,
            vhost.VHOST_SET_VRING_ADDR: self._set_vring_addr,
            vhost.VHOST_SET_VRING_KICK: self._set_vring_kick,
            vhost.VHOST_SET_VRING_CALL: self._set_vring_call,
            vhost.VHOST_SET_VRING_ERR: self._set_vring_err,
            vhost.VHOST_SET_VRING_BUSYLOOP_TIMEOUT: self._set_busyloop,
            vhost.VHOST_GET_VRING_BUSYLOOP_TIMEOUT: self._get_busyloop,
        }

    def ioctl(self, caller: Caller, number: int, argument: int) -> int:
        """ioctl(2): *argument* is an address in the caller's memory; returns 0."""
        number &= 0xFFFFFFFF
        verb = self._first.get(number)
        if verb is not None:
            verb(caller, argument)
            return 0
        self._check_owner(caller)
        verb = self._owners.get(number)
        if verb is not None:
            try:
                verb(caller, argument)
            finally:
                self.verbs.net.flush()
            return 0
        index = int.from_bytes(caller.read(argument, 4), "little")
        if index >= _N_RINGS:
            raise PeerError(f"there is no ring {index}", errno.ENOBUFS)
        verb = self._rings.get(number)
        if verb is None:
            raise PeerError(f"ioctl {number:#x} is not known", errno.ENOTTY)
        verb(caller, argument)
        return 0

    def write(self, data: bytes) -> int:
        """write(2) of an IOTLB message; returns 72, whatever was given.  Anybody may."""
        return self.verbs.messages.write(data)

    def read(self, size: int) -> bytes:
        """read(2) that does not wait: EAGAIN if there is nothing."""
        return self.verbs.messages.read(size)

    def unread(self, messages: Sequence[bytes]) -> None:
        """Messages that `read` has given, and that did not reach anybody: they come first."""
        self.verbs.messages.unread(messages)

    def would_sleep_for_ever(self) -> bool:
        """Whether a read that waits is to be refused (EBADFD): there is no IOTLB to miss."""
        return self.verbs.net.iotlb is None

    def readable(self) -> bool:
        """poll(2): POLLIN | POLLRDNORM, or nothing."""
        return self.verbs.messages.readable()

    def runs(self) -> bool:
        """Whether a ring has a backend."""
        return any(map(self.verbs.net.active, range(_N_RINGS)))

    def release(self) -> None:
        """The last reference to the open file is gone."""
        self.verbs.close()

    def owner_is_gone(self) -> None:
        """The owner's process has ended, but its file is still open somewhere.

        Linux goes on with its memory; ours ends with the process.
        """
        self.verbs.close()

    # --- what comes first ---------------------------------------------------------------------

    def _check_owner(self, caller: Caller) -> None:
        self.verbs.check_owner()
        if caller.pid != self.verbs.owner_pid:
            raise PeerError("the caller is not the owner", errno.EPERM)

    def _get_features(self, caller: Caller, argument: int) -> None:
        caller.write(argument, self.verbs.get_features().to_bytes(_WORD, "little"))

    def _set_features(self, caller: Caller, argument: int) -> None:
        self.verbs.set_features(_u64(caller, argument))

    def _get_features_array(self, caller: Caller, argument: int) -> None:
        count = _u64(caller, argument)
        if count > _MAX_FEATURE_WORDS:
            raise PeerError(f"a features array of {count} words", errno.EFAULT)
        words = self.verbs.get_features_array(count)
        caller.write(argument + _WORD, b"".join(w.to_bytes(_WORD, "little") for w in words))

    def _set_features_array(self, caller: Caller, argument: int) -> None:
        count = _u64(caller, argument)
        if count > _MAX_FEATURE_WORDS:
            raise PeerError(f"a features array of {count} words", errno.EFAULT)
        data = caller.read(argument + _WORD, count * _WORD)
        words = [int.from_bytes(data[at : at + _WORD], "little") for at in range(0, len(data), 8)]
        self.verbs.set_features_array(words)

    def _get_backend_features(self, caller: Caller, argument: int) -> None:
        caller.write(argument, self.verbs.get_backend_features().to_bytes(_WORD, "little"))

    def _set_backend_features(self, caller: Caller, argument: int) -> None:
        self.verbs.set_backend_features(_u64(caller, argument))

    def _get_fork_from_owner(self, caller: Caller, argument: int) -> None:
        caller.write(argument, bytes([self._fork_from_owner]))

    def _set_fork_from_owner(self, caller: Caller, argument: int) -> None:
        """Whose child the worker would be: remembered, it is a thread of ours."""
        if self.verbs.owner_pid:
            raise PeerError("the device has an owner", errno.EBUSY)
        wanted = caller.read(argument, 1)[0]
        if wanted > 1:
            raise PeerError(f"fork from owner: {wanted}")
        self._fork_from_owner = bool(wanted)

    def _set_owner(self, caller: Caller, argument: int) -> None:  # noqa: ARG002
        self.verbs.set_owner(caller.pid)

    def _reset_owner(self, caller: Caller, argument: int) -> None:  # noqa: ARG002
        self._check_owner(caller)
        self.verbs.reset_owner()
        self._fork_from_owner = True

    def _set_backend(self, caller: Caller, argument: int) -> None:
        file = _struct(caller, argument, vhost.VRING_FILE)
        self._check_owner(caller)
        with _descriptor(caller, file) as fd:
            self.verbs.set_backend(file.index, fd)

    # --- the owner's --------------------------------------------------------------------------

    def _set_mem_table(self, caller: Caller, argument: int) -> None:
        head = _struct(caller, argument, vhost.MEMORY_HEAD)
        count = head.nregions
        regions = [MemoryRegion(0, 0, 0, 0)] * min(count, MAX_MEM_REGIONS + 1)
        if not head.padding and count <= MAX_MEM_REGIONS:  # else refused, and never read
            size = vhost.MEMORY_REGION.size
            data = caller.read(argument + vhost.MEMORY_HEAD.size, count * size)
            regions = [vhost.MEMORY_REGION.unpack(data, k * size) for k in range(count)]
        self.verbs.set_mem_table(regions, head.padding)

    def _set_log_base(self, caller: Caller, argument: int) -> None:
        self.verbs.set_log_base(_u64(caller, argument))

    def _set_log_fd(self, caller: Caller, argument: int) -> None:
        fd = int.from_bytes(caller.read(argument, 4), "little", signed=True)
        with _descriptor(caller, VringFile(0, fd)) as ours:
            self.verbs.set_log_fd(ours)

    # --- a ring's -----------------------------------------------------------------------------

    def _set_vring_num(self, caller: Caller, argument: int) -> None:
        index = int.from_bytes(caller.read(argument, 4), "little")
        if self.verbs.net.active(index):  # before the rest is copied, as in Linux
            raise PeerError(f"ring {index}: it runs", errno.EBUSY)
        state = _struct(caller, argument, vhost.VRING_STATE)
        self.verbs.set_vring_num(index, state.num)

    def _set_vring_base(self, caller: Caller, argument: int) -> None:
        index = int.from_bytes(caller.read(argument, 4), "little")
        if self.verbs.net.active(index):
            raise PeerError(f"ring {index}: it runs", errno.EBUSY)
        state = _struct(caller, argument, vhost.VRING_STATE)
        self.verbs.set_vring_base(index, state.num)

    def _get_vring_base(self, caller: Caller, argument: int) -> None:
        state = _struct(caller, argument, vhost.VRING_STATE)
        base = self.verbs.get_vring_base(state.index)
        caller.write(argument, vhost.VRING_STATE.pack(VringState(state.index, base)))

    def _set_vring_addr(self, caller: Caller, argument: int) -> None:
        self.verbs.set_vring_addr(_struct(caller, argument, vhost.VRING_ADDR))

    def _set_vring_kick(self, caller: Caller, argument: int) -> None:
        file = _struct(caller, argument, vhost.VRING_FILE)
        with _descriptor(caller, file) as fd:
            self.verbs.set_vring_kick(file.index, fd)

    def _set_vring_call(self, caller: Caller, argument: int) -> None:
        file = _struct(caller, argument, vhost.VRING_FILE)
        with _descriptor(caller, file) as fd:
            self.verbs.set_vring_call(file.index, fd)

    def _set_vring_err(self, caller: Caller, argument: int) -> None:
        file = _struct(caller, argument, vhost.VRING_FILE)
        with _descriptor(caller, file) as fd:
            self.verbs.set_vring_err(file.index, fd)

    def _set_busyloop(self, caller: Caller, argument: int) -> None:
        state = _struct(caller, argument, vhost.VRING_STATE)
        self.verbs.set_vring_busyloop_timeout(state.index, state.num)

    def _get_busyloop(self, caller: Caller, argument: int) -> None:
        state = _struct(caller, argument, vhost.VRING_STATE)
        timeout_us = self.verbs.get_vring_busyloop_timeout(state.index)
        caller.write(argument, vhost.VRING_STATE.pack(VringState(state.index, timeout_us)))


def _u64(caller: Caller, argument: int) -> int:
    return int.from_bytes(caller.read(argument, _WORD), "little")


def _struct(caller: Caller, argument: int, layout: Layout[T]) -> T:
    return layout.unpack(caller.read(argument, layout.size))


@contextlib.contextmanager
def _descriptor(caller: Caller, file: VringFile) -> Iterator[int]:
    """Ours for the length of the block; -1 stays -1, one that is not open becomes -2."""
    if file.fd == _NO_DESCRIPTOR:
        yield _NO_DESCRIPTOR
        return
    try:
        ours = caller.descriptor(file.fd)
    except PeerError:
        ours = _NOT_OPEN
    try:
        yield ours
    finally:
        if ours >= 0:
            os.close(ours)
