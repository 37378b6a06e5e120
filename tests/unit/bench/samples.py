"""A result to show, check and break."""

from __future__ import annotations

from typing import Any

from vhostnet.bench.model import OURS, Metric
from vhostnet.bench.results import CaseResult, SideResult, WorkloadResult

RATE = Metric("mpps", "packets", "million/s", "higher", {"peer": 1.0})
DELAY = Metric("us", "delay", "µs", "lower", {"peer": 0.5})


def side(**runs: list[float | None]) -> SideResult:
    return SideResult({name: list(values) for name, values in runs.items()}, ["a command"])


def result(**changes: Any) -> WorkloadResult:
    values: dict[str, Any] = {
        "workload": "g2d",
        "title": "guest to device: <fast>",
        "how": "By counting.",
        "settings": {"runs": 3, "seconds": 3.0, "hugepages": False},
        "environment": {
            "cores": 2,
            "cpu": "a processor",
            "kernel": "6.1",
            "versions": {"vhostnet": "0.1"},
            "revision": "0123456789abcdef",
            "uncommitted_changes": False,
            "date": "2026-01-02T03:04:05+00:00",
        },
        "cases": [
            CaseResult(
                "64 B",
                {"size": 64},
                [RATE],
                2,
                {OURS: side(mpps=[20.0, 22.0, 21.0]), "peer": side(mpps=[10.0, 10.0, 14.0])},
            ),
            CaseResult(
                "asleep",
                {},
                [DELAY],
                2,
                {OURS: side(us=[30.0, 40.0]), "peer": side(us=[10.0, 10.0])},
            ),
        ],
    }
    return WorkloadResult(**{**values, **changes})
