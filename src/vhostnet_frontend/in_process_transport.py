"""A device object in this process: each verb is a method call.

The object is the caller's and known by its methods only: those of Linux's driver, named after
its ioctls (`set_vring_num(index, num)`, ...), with -1 for "no descriptor", owning the
descriptors they are given, and raising exceptions that carry `errno`.  What such an object
wants in place of a wire struct (a memory table, ring addresses, a backend) is made by three
functions that the caller gives too, so nothing of the device is imported here.

An exception without an `errno` is a bug of the device and passes through.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vhostnet.uapi.vhost import IotlbMsg, VringAddr

from .guest_memory import DirtyLog, Region
from .transport import NoSuchVerb, VerbError


@dataclass(frozen=True, slots=True)
class Conversions:
    """How the device's own arguments are made.

    Attributes:
        mem_table: regions -> what `set_mem_table` takes.  If that has a method `release`, it
            is called once the next table is in use, and at the end.
        vring_addr: wire struct -> what `set_vring_addr` takes.
        backend: (ring, descriptor) -> what `set_backend` takes.
        log: bitmap -> what `set_log_base` takes.
    """

    mem_table: Callable[[Sequence[Region]], Any]
    vring_addr: Callable[[VringAddr], Any]
    backend: Callable[[int, int], Any]
    log: Callable[[DirtyLog], Any] = lambda log: log


class InProcessTransport:
    """A front-end of *net*.

    Args:
        net: the device.
        conversions: see there.
        features: what it offers, if it has no `get_features` of its own.

    Attributes:
        net: the device, for looking at what no verb tells.
    """

    name = "in process"
    n_rings = 2

    def __init__(self, net: Any, conversions: Conversions, *, features: int = 0) -> None:
        self.net = net
        self._make = conversions
        self._features = features
        self._table: Any = None

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except VerbError:
            raise
        except Exception as e:
            number = getattr(e, "errno", None)
            if not isinstance(number, int):
                raise
            raise VerbError(number, f"{verb}: {e}") from e

    def _method(self, verb: str) -> Any:
        method = getattr(self.net, verb, None)
        if method is None:
            raise NoSuchVerb(f"{verb}: this device does not have it")
        return method

    def _call(self, verb: str, *arguments: Any) -> Any:
        method = self._method(verb)
        with self._errors(verb):
            return method(*arguments)

    def flush(self) -> None:
        """Return when the device has handled everything that was there before."""
        self._call("flush")

    # --- features and owner --------------------------------------------------------------

    def get_features(self) -> int:
        if hasattr(self.net, "get_features"):
            return int(self._call("get_features"))
        return self._features

    def set_features(self, features: int) -> None:
        self._call("set_features", features)

    def get_features_array(self, count: int) -> list[int]:
        return list(self._call("get_features_array", count))

    def set_features_array(self, words: Sequence[int]) -> None:
        self._call("set_features_array", words)

    def get_backend_features(self) -> int:
        return int(self._call("get_backend_features"))

    def set_backend_features(self, features: int) -> None:
        self._call("set_backend_features", features)

    def set_owner(self) -> None:
        self._call("set_owner", os.getpid())

    def reset_owner(self) -> None:
        self._call("reset_owner")
        self._hold(None)

    # --- memory and rings ----------------------------------------------------------------

    def set_mem_table(self, regions: Sequence[Region]) -> None:
        with self._errors("set_mem_table"):
            table = self._make.mem_table(regions)
        try:
            self._call("set_mem_table", table)
        except BaseException:
            _release(table)
            raise
        self._hold(table)

    def _hold(self, table: Any) -> None:
        old, self._table = self._table, table
        _release(old)

    def set_vring_num(self, index: int, num: int) -> None:
        self._call("set_vring_num", index, num)

    def set_vring_base(self, index: int, base: int) -> None:
        self._call("set_vring_base", index, base)

    def get_vring_base(self, index: int) -> int:
        return int(self._call("get_vring_base", index))

    def set_vring_addr(self, addr: VringAddr) -> None:
        with self._errors("set_vring_addr"):
            addresses = self._make.vring_addr(addr)
        self._call("set_vring_addr", addr.index, addresses)

    def _set_fd(self, verb: str, index: int, fd: int | None) -> None:
        self._method(verb)  # before there is a descriptor that nobody owns
        self._call(verb, index, -1 if fd is None else os.dup(fd))

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        self._set_fd("set_vring_kick", index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self._set_fd("set_vring_call", index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._set_fd("set_vring_err", index, fd)

    def set_log_base(self, log: DirtyLog) -> None:
        with self._errors("set_log_base"):
            made = self._make.log(log)
        self._call("set_log_base", made)

    def set_log_fd(self, fd: int | None) -> None:
        self._method("set_log_fd")
        self._call("set_log_fd", -1 if fd is None else os.dup(fd))

    def set_busyloop(self, index: int, timeout_us: int) -> None:
        self._call("set_vring_busyloop_timeout", index, timeout_us)

    def get_busyloop(self, index: int) -> int:
        return int(self._call("get_vring_busyloop_timeout", index))

    def set_backend(self, index: int, fd: int | None) -> None:
        if fd is None:
            self._call("set_backend", index, None)
            return
        with self._errors("set_backend"):
            backend = self._make.backend(index, fd)
        self._call("set_backend", index, backend)

    def send_iotlb(self, message: IotlbMsg) -> None:
        self._call("send_iotlb", message)

    def receive_iotlb(self, timeout: float = 0.0) -> IotlbMsg | None:
        received: IotlbMsg | None = self._call("receive_iotlb", timeout)
        return received

    def close(self) -> None:
        self.reset_owner()


def _release(table: Any) -> None:
    release = getattr(table, "release", None)
    if release is not None:
        release()
