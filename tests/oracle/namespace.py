"""A thread in a network namespace of its own, for TAPs that nobody else sees."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

_CLONE_NEWNET = 0x40000000


class NoNamespace(Exception):
    """This machine does not let us; the text says what is missing."""


def _enter() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise PermissionError("unshare")
    with contextlib.suppress(OSError):  # router solicitations would be packets for the guest
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")


class Namespace:
    """The thread; `run` runs something in it."""

    def __init__(self) -> None:
        if not Path("/dev/net/tun").exists():
            raise NoNamespace("there is no /dev/net/tun")
        self._thread = ThreadPoolExecutor(1, initializer=_enter)
        try:
            self.run(os.getpid)
        except Exception as e:
            raise NoNamespace("network namespaces need root") from e

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._thread.submit(function, *arguments).result(120)

    def close(self) -> None:
        self._thread.shutdown()


@contextlib.contextmanager
def namespace_or_skip() -> Iterator[Namespace]:
    """One for the length of the block; where there can be none, the test is skipped."""
    try:
        made = Namespace()
    except NoNamespace as e:
        pytest.skip(str(e))
    yield made
    made.close()
