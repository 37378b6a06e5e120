"""The command that tells what holds (docs/confinement.md)."""

from __future__ import annotations

from typing import Any

from vhostnet.confinement import seal

from .daemon import Daemon


def query_sandbox(daemon: Daemon) -> dict[str, Any]:  # noqa: ARG001
    """What this daemon has given up: its stages, what the kernel says, and what is refused.

    `attempts` are made by the thread that answers: to open a file, make a socket, map executable
    memory and start a program; "possible", or the errno.
    """
    report = seal.report()
    return {
        "sandbox": report.mode,
        **({"why": report.why} if report.why else {}),
        "stages": [
            {"stage": stage.name, "holds": stage.holds, "detail": stage.detail}
            for stage in report.stages
        ],
        "kernel": seal.kernel_facts(),
        "attempts": seal.attempts(),
    }
