"""Our device against what Linux's own has done: every scenario, field by field."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oracle import scenarios
from oracle.compare import judge
from oracle.differences import DIFFERENCES, REASONS
from oracle.lab import SCENARIOS, Device, Lab, NotHere
from oracle.namespace import Namespace, namespace_or_skip
from oracle.our_device import OurDevice, OurMemory, OutOfReach
from oracle.rules import RULES
from oracle.session import run
from vhostnet.device import owner_memory
from vhostnet.device.kernel_verbs import OwnerMemory
from vhostnet.native._jit import JIT_ENABLED

assert scenarios
HERE = Path(__file__).parent
DIFFERENCES_MD = HERE.parents[1] / "docs" / "differences.md"
VERSIONS = sorted(file.stem.removeprefix("linux-") for file in (HERE / "golden").glob("*.json"))
#: Versions differ in what control does; the interpreter, which is slow, looks at one.
COMPARED = VERSIONS if JIT_ENABLED else VERSIONS[-1:]
#: Rules that no scenario shows yet; to become empty, never to grow.
TO_DO = {id_ for id_, rule in RULES.items() if rule.to_do}


@functools.cache
def golden(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "golden" / f"linux-{version}.json").read_text())
    return found


def shown() -> set[str]:
    return {rule for scenario in SCENARIOS.values() for rule in scenario.rules}


# --- the lists are complete ---------------------------------------------------------------------


def test_every_rule_has_a_scenario_or_a_reason_for_none() -> None:
    missing = [
        id_
        for id_, rule in RULES.items()
        if id_ not in shown() and not rule.not_applicable and not rule.to_do
    ]
    assert missing == []


def test_no_rule_is_both_shown_and_excused() -> None:
    assert [id_ for id_ in sorted(shown()) if RULES[id_].not_applicable] == []
    assert sorted(TO_DO & shown()) == []


def test_every_scenario_names_rules_that_exist() -> None:
    assert sorted(shown() - RULES.keys()) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_linux_was_recorded_with_the_scenarios_of_today(version: str) -> None:
    assert golden(version)["outcomes"].keys() == SCENARIOS.keys()


def test_every_difference_has_a_row_in_the_document() -> None:
    text = " ".join(DIFFERENCES_MD.read_text().split())
    assert {d.reason for d in DIFFERENCES} == REASONS.keys()
    assert [row for row in REASONS.values() if row not in text] == []
    assert [d.scenario for d in DIFFERENCES if d.scenario not in SCENARIOS] == []


# --- the comparison -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with namespace_or_skip() as made:
        yield made


#: How our device gets at the memory of the scenario, which is this process's.
WAYS: dict[str, Callable[[OurMemory], Callable[[int], OwnerMemory]]] = {
    "all is mapped": lambda stand_in: lambda _pid: stand_in,
    "shared with its owner": lambda _: owner_memory.OwnerMemory,
    "in batches": lambda _: lambda pid: OutOfReach(pid, batched=True),
    "one by one": lambda _: lambda pid: OutOfReach(pid, batched=False),
}


def our_outcome(name: str, version: str, namespace: Namespace, way: str) -> Any:
    memory = OurMemory()

    def open_device() -> Device:
        return OurDevice(version, WAYS[way](memory))

    try:
        return namespace.run(run, SCENARIOS[name], Lab(open_device, memory.note))
    except NotHere as e:
        pytest.skip(str(e))


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", COMPARED)
@pytest.mark.parametrize("name", [s.name for s in SCENARIOS.values() if not s.needs])
def test_our_device_does_what_linux_does(
    name: str, version: str, way: str, namespace: Namespace
) -> None:
    ours = our_outcome(name, version, namespace, way)
    new, stale = judge(name, version, golden(version)["outcomes"][name], ours)
    assert new == [], "differs from Linux: fix it, or list it with its reason"
    assert stale == [], "is listed as a difference and does not occur any more"


# --- the comparison itself ----------------------------------------------------------------------


def test_a_difference_that_is_not_listed_is_found() -> None:
    linux = {"tx": {"calls": 1, "used": [[0, 0]]}, "list": [{"a": 1}]}
    ours = {"tx": {"calls": 2, "used": [[0, 0]]}, "list": [{"a": 1}, {"a": 2}]}
    new, stale = judge("what_is_offered", "6.1", linux, ours)
    assert new == ["list.1.a: Linux '-', ours 2", "tx.calls: Linux 1, ours 2"]
    assert stale == []


def test_a_listed_difference_that_does_not_occur_is_found() -> None:
    new, stale = judge("sending_logs_no_data", "6.1", {"tx": {"calls": 1}}, {"tx": {"calls": 1}})
    assert (new, stale) == ([], ["tx.calls"])
