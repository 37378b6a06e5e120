"""Medians, spreads, ratios within a turn."""

from __future__ import annotations

import pytest

from vhostnet.bench.statistics import percentile, ratios, summarise


def test_a_summary_has_the_middle_the_ends_and_their_distance() -> None:
    found = summarise([5.0, 1.0, 3.0])
    assert (found.median, found.low, found.high, found.n) == (3.0, 1.0, 5.0, 3)
    assert found.spread == pytest.approx(4 / 3)
    assert summarise([0.0, 0.0]).spread == 0.0


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="nothing"):
        summarise([])
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_ratios_are_taken_turn_by_turn_and_above_one_is_better() -> None:
    assert ratios([4.0, 9.0], [2.0, 3.0], "higher") == [2.0, 3.0]
    assert ratios([4.0, 9.0], [2.0, 3.0], "lower") == [0.5, 1 / 3]


def test_a_machine_that_slows_down_changes_no_ratio() -> None:
    assert set(ratios([8.0, 4.0, 2.0], [4.0, 2.0, 1.0], "higher")) == {2.0}


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_turn_without_a_number_has_no_ratio(better) -> None:
    assert ratios([0.0, 2.0], [1.0, 0.0], better) == []
    assert len(ratios([2.0, 2.0, 2.0], [1.0], better)) == 1


def test_percentiles_by_nearest_rank() -> None:
    ordered = [float(n) for n in range(1, 1001)]
    assert percentile(ordered, 0.5) == 500
    assert percentile(ordered, 0.999) == 999
    assert percentile(ordered, 0.9995) == 1000
    assert percentile([7.0], 0.0) == percentile([7.0], 1.0) == 7.0
