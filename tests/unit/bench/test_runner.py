"""The order of runs, failures, and what may be published."""

from __future__ import annotations

import pytest
from samples import DELAY, RATE

from vhostnet.bench import environment, runner
from vhostnet.bench.catalogue import WORKLOADS
from vhostnet.bench.model import OURS, Case, Run, Workload
from vhostnet.bench.runner import Settings, expected_s, run_workload
from vhostnet.demo.progress import Progress
from vhostnet.errors import HostError


@pytest.fixture(autouse=True)
def clean_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "git_revision", lambda: ("1234", False))


class Sides:
    """Two sides that write down who was called; the peer can be told to fail."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing = False
        self.folders: set[str] = set()

    def ours(self, run: Run) -> dict[str, float]:
        self.calls.append("ours")
        run.note(["serve", "--socket-path", f"{run.folder}/socket"])
        self.folders.add(str(run.folder))
        return {"mpps": float(len(self.calls))}

    def peer(self, _run: Run) -> dict[str, float]:
        self.calls.append("peer")
        if self.failing:
            raise HostError("it\nfell over")
        return {"mpps": 1.0}

    def workload(self, **changes) -> Workload:
        case = Case("a 64 B", {}, (RATE,), {OURS: self.ours, "peer": self.peer}, **changes)
        other = Case("b 64 B", {}, (RATE,), {OURS: self.ours}, quick=True)
        return Workload("w", "title", "how", (), lambda: [case, other])


@pytest.fixture
def sides() -> Sides:
    return Sides()


def run(workload: Workload, settings: Settings, busy: float = 0.0):
    progress = Progress(expected_s([workload], settings))
    return run_workload(workload, settings, progress, busy=lambda: busy)


def test_sides_take_turns(sides: Sides) -> None:
    found = run(sides.workload(), Settings(runs=3, only=("a ",)))
    assert sides.calls == ["ours", "peer"] * 3
    assert found.cases[0].sides[OURS].runs == {"mpps": [1.0, 3.0, 5.0]}
    assert found.cases[0].sides["peer"].runs == {"mpps": [1.0, 1.0, 1.0]}
    assert len(sides.folders) == 3
    assert found.cases[0].sides[OURS].commands == ["serve --socket-path DIR/socket"]


def test_only_what_was_asked_for(sides: Sides) -> None:
    workload = sides.workload()
    assert [c.name for c in Settings(quick=True).chosen(workload)] == ["b 64 B"]
    assert [c.name for c in Settings(only=("64", "a")).chosen(workload)] == ["a 64 B"]
    assert not expected_s([workload], Settings(only=("c",)))


def test_a_side_that_fails_is_left_alone_and_the_other_goes_on(sides: Sides) -> None:
    sides.failing = True
    found = run(sides.workload(), Settings(runs=5, only=("a ",)))
    peer = found.cases[0].sides["peer"]
    assert peer.runs == {"mpps": [None] * 5}
    assert peer.failures == ["it fell over"] * runner.PATIENCE
    assert sides.calls.count("peer") == runner.PATIENCE
    assert len(found.cases[0].sides[OURS].runs["mpps"]) == 5


def test_results_are_kept_after_each_case(sides: Sides) -> None:
    kept: list[int] = []
    settings = Settings(runs=1)
    run_workload(
        sides.workload(),
        settings,
        Progress({}),
        lambda result: kept.append(len(result.cases)),
        busy=lambda: 0.0,
    )
    assert kept == [1, 2]


@pytest.mark.parametrize(
    ("settings", "busy", "reason"),
    [
        (Settings(), 0.05, None),
        (Settings(runs=4), 0.0, "only 4 of 5 runs"),
        (Settings(seconds=1.0), 0.0, "1 s a run"),
        (Settings(), 0.5, "other programs used up to 0.50 cores"),
    ],
)
def test_few_short_or_disturbed_runs_are_not_for_publication(sides, settings, busy, reason) -> None:
    found = run(sides.workload(), settings, busy)
    if reason is None:
        assert found.disturbances == []
    else:
        assert len(found.disturbances) == 1
        assert reason in found.disturbances[0]


def test_a_machine_that_comes_to_rest_is_waited_for(sides: Sides) -> None:
    looks = iter([0.9, 0.5, 0.0])
    settings = Settings(only=("b ",))
    found = run_workload(sides.workload(), settings, Progress({}), busy=lambda: next(looks, 0.0))
    assert found.disturbances == []


def test_changed_sources_are_not_for_publication(sides, monkeypatch) -> None:
    monkeypatch.setattr(environment, "git_revision", lambda: ("1234", True))
    assert run(sides.workload(), Settings()).disturbances == [
        "the sources differ from the git revision"
    ]


def test_every_workload_is_well_formed() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    for workload in WORKLOADS:
        cases = workload.cases()
        assert len({case.name for case in cases}) == len(cases)
        for case in cases:
            assert next(iter(case.sides)) == OURS
            assert case.metrics
            assert case.busy_threads > 0
    assert DELAY.better == "lower"


def test_quick_is_done_in_about_two_minutes() -> None:
    assert 60 < sum(expected_s(WORKLOADS, Settings(1, 1.0, quick=True)).values()) < 180


def test_the_environment_has_what_a_reader_needs() -> None:
    found = environment.describe()
    assert found["revision"] == "1234"
    assert found["cores"] >= 1
    assert {"Python", "numba", "llvmlite", "numpy", "vhostnet"} <= found["versions"].keys()
    assert "(family" in found["cpu"]
    assert environment.busy_cores(0.05) >= 0.0
