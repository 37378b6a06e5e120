"""Puts results of one workload together that were measured in parts.

A whole table takes half an hour of a machine with nothing else to do; its parts may be measured
one by one, as long as nothing but the time of day differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vhostnet.bench.catalogue import WORKLOADS
from vhostnet.bench.results import CaseResult, WorkloadResult
from vhostnet.errors import UsageError


def joined(results: Sequence[WorkloadResult]) -> list[WorkloadResult]:
    """Return one result a workload, with the cases of all its parts in the catalogue's order.

    Raises:
        UsageError: two parts have a case in common, or were made of other sources, on another
            machine or in another way.
    """
    found: dict[str, WorkloadResult] = {}
    for part in results:
        before = found.get(part.workload)
        found[part.workload] = part if before is None else _join(before, part)
    return list(found.values())


def _join(a: WorkloadResult, b: WorkloadResult) -> WorkloadResult:
    for what, ours, theirs in (
        ("environment", _lasting(a.environment), _lasting(b.environment)),
        ("settings", _lasting(a.settings), _lasting(b.settings)),
    ):
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise UsageError(
                    f"{a.workload}: the parts do not fit together: {what}.{key} is "
                    f"{ours.get(key)!r:.60} and {theirs.get(key)!r:.60}"
                )
    if a.how != b.how:
        raise UsageError(f"{a.workload}: the parts were not measured in the same way")
    twice = {case.name for case in a.cases} & {case.name for case in b.cases}
    if twice:
        raise UsageError(f"{a.workload}: {min(twice)!r} is in two of the files")
    return replace(
        a,
        settings={**a.settings, "only": [*a.settings.get("only", []), *b.settings.get("only", [])]},
        environment={**a.environment, "date": min(a.environment["date"], b.environment["date"])},
        cases=_in_order(a.workload, [*a.cases, *b.cases]),
        disturbances=[*a.disturbances, *b.disturbances],
    )


def _lasting(facts: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all parts."""
    return {key: value for key, value in facts.items() if key not in ("date", "only")}


def _in_order(workload: str, cases: Sequence[CaseResult]) -> list[CaseResult]:
    names = [case.name for w in WORKLOADS if w.name == workload for case in w.cases()]
    place = {name: k for k, name in enumerate(names)}
    return sorted(cases, key=lambda case: place.get(case.name, len(place)))
