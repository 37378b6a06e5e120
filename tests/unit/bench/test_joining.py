"""Results of one workload that were measured in parts become one, if they fit together."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from samples import result

from vhostnet.bench.joining import joined
from vhostnet.bench.results import WorkloadResult
from vhostnet.errors import UsageError

FIRST, SECOND = "split mrg_rxbuf=1 in_order=0 64 B", "packed mrg_rxbuf=0 in_order=1 IMIX"


def part(name: str, **changes: Any) -> WorkloadResult:
    """A result with one case of g2d."""
    whole = result(**{"settings": {"runs": 5, "seconds": 2.0, "only": [name]}, **changes})
    whole.cases = [dataclasses.replace(whole.cases[0], name=name)]
    return whole


def test_cases_stand_in_the_catalogues_order() -> None:
    early = {**result().environment, "date": "2026-01-01T00:00:00+00:00"}
    (whole,) = joined([part(SECOND, disturbances=["noise"]), part(FIRST, environment=early)])
    assert [case.name for case in whole.cases] == [FIRST, SECOND]
    assert whole.environment == early
    assert whole.settings["only"] == [SECOND, FIRST]
    assert whole.disturbances == ["noise"]


def test_other_workloads_stay_what_they_are() -> None:
    other = part("64 B", workload="g2tap")
    assert joined([part(FIRST), other]) == [part(FIRST), other]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": {**result().environment, "revision": "f00"}}, "environment.revision"),
        ({"environment": {**result().environment, "cpu": "another"}}, "environment.cpu"),
        ({"settings": {"runs": 6, "seconds": 2.0, "only": []}}, "settings.runs is 5.* and 6"),
        ({"how": "By guessing."}, "not measured in the same way"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"g2d: .*{message}"):
        joined([part(FIRST), part(SECOND, **change)])


def test_a_case_measured_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=f"'{FIRST}' is in two"):
        joined([part(FIRST), part(FIRST)])
