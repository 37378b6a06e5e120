"""The machine code of a capture: what all configurations have in common, compiled once."""

from __future__ import annotations

import functools
from typing import Any

from numba import types

from vhostnet.native._jit import JIT_ENABLED
from vhostnet.native.code_address import code_address

from .capture import begin_code, end_code
from .capture_merge import capture_merge


@functools.cache
def load_capture() -> tuple[int, int]:
    """Addresses for CAPTURE's `begin_code` and `end_code`; compiles what is not in the cache."""
    if JIT_ENABLED:
        words, octets = types.Array(types.int64, 1, "C"), types.Array(types.uint8, 1, "C")
        merge: Any = capture_merge
        merge.compile((words, types.int64, types.int64, octets, types.int64))
    return code_address(begin_code), code_address(end_code)
