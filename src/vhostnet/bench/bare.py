"""Builds `bare`, the little C program of limits and of a packet source (bare.c), and starts it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vhostnet.bench.model import Run
from vhostnet.bench.pair import pinned
from vhostnet.demo.tools import cache_dir, output_of, require, spawn

SOURCE = Path(__file__).with_name("bare.c")
_FLAGS = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]


def program() -> str:
    """Return the program's path; it is built if this source has not been built before."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:16]
    place = cache_dir("bench") / f"bare-{key}"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=place.parent) as room:
            made = Path(room, "bare")
            output_of([require("gcc"), *_FLAGS, "-o", str(made), str(SOURCE)])
            os.rename(made, place)
    return str(place)


def start(
    run: Run, cpu: int, *words: object, prefix: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start it on one core; the caller ends it."""
    argv = [program(), *(str(word) for word in words)]
    run.note(["taskset", "-c", str(cpu), "bare", *argv[1:]])
    return spawn(argv, prefix=[*prefix, *pinned(cpu)])


def output(
    run: Run, words: Sequence[object], *, cpu: int | None = None, prefix: Sequence[str] = ()
) -> str:
    """Run it to its end, on one core or on any; returns what it printed."""
    argv = [program(), *(str(word) for word in words)]
    pin = [] if cpu is None else pinned(cpu)
    run.note(["bare", *argv[1:]])
    return output_of(argv, prefix=[*prefix, *pin], timeout=120)
