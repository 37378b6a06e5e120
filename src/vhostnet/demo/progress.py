"""Progress for somebody who waits: one line a step, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Progress:
    """A list of steps that is known beforehand, with a guess for each in seconds.

    Lines go to standard error: standard output is for the result.
    """

    def __init__(self, expected_s: Mapping[str, float]) -> None:
        self._left = dict(expected_s)
        self._began = time.monotonic()

    @contextmanager
    def step(self, name: str, detail: str = "") -> Iterator[None]:
        """Announce one of the steps; it no longer counts as left once it has ended."""
        left = sum(self._left.values())
        self.say(f"{name}{detail and ' ' + detail}", f"about {left:.0f} s left")
        yield
        self._left.pop(name, None)

    def say(self, text: str, note: str = "") -> None:
        """Print one line, with the seconds since the beginning."""
        passed = time.monotonic() - self._began
        print(f"{passed:5.0f} s  {text}{note and f' ({note})'}", file=sys.stderr, flush=True)
