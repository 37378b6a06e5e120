"""Medians, spreads and ratios of runs that were made in turns.

A ratio is taken within each turn (our run and the peer's that followed it), and the median of
those is what counts: what slowed the machine for a while has slowed both.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Summary:
    """Of some runs: the middle one, the ends, and how many there were."""

    median: float
    low: float
    high: float
    n: int

    @property
    def spread(self) -> float:
        """The distance of the ends, as a part of the median; 0 if that is 0."""
        return (self.high - self.low) / self.median if self.median else 0.0


def summarise(values: Sequence[float]) -> Summary:
    """Summarise one or more numbers.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("nothing to summarise")
    return Summary(statistics.median(values), min(values), max(values), len(values))


def ratios(
    ours: Sequence[float], peers: Sequence[float], better: Literal["higher", "lower"]
) -> list[float]:
    """How many times as good as the peer we were, turn by turn; above 1: better.

    A turn in which one of the two failed to give a number, or gave 0, has no ratio.
    """
    found = []
    for mine, theirs in zip(ours, peers, strict=False):
        over, under = (mine, theirs) if better == "higher" else (theirs, mine)
        if over > 0 and under > 0:
            found.append(over / under)
    return found


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest of *ordered* that is not below `part` (0..1) of them (nearest rank)."""
    if not ordered:
        raise ValueError("nothing to rank")
    rank = -int(-part * len(ordered) // 1)  # rounded up
    return ordered[min(max(rank, 1), len(ordered)) - 1]
