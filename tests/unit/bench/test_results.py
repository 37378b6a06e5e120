"""The results file: what is written can be read, anything else is refused with the place."""

from __future__ import annotations

import copy
import json

import pytest
from samples import result

from vhostnet.bench.results import from_json, load
from vhostnet.errors import UsageError


def test_what_is_saved_is_what_is_loaded(tmp_path) -> None:
    kept = result(disturbances=["noise"])
    kept.save(tmp_path / "deep" / "g2d.json")
    assert load(tmp_path / "deep" / "g2d.json") == kept
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "g2d.json"]


def test_a_failed_run_is_kept_as_none(tmp_path) -> None:
    kept = result()
    kept.cases[0].sides["peer"].runs["mpps"][1] = None
    kept.save(tmp_path / "g2d.json")
    assert load(tmp_path / "g2d.json") == kept


@pytest.fixture
def data(tmp_path):
    result().save(tmp_path / "g2d.json")
    return json.loads((tmp_path / "g2d.json").read_text())


BREAKS = {
    "schema": (lambda d: d.update(schema=2), "schema 2"),
    "no schema": (lambda d: d.pop("schema"), "schema None"),
    "title": (lambda d: d.update(title=7), "title is 7, not a text"),
    "cases": (lambda d: d.update(cases={}), "cases is {}, not a list"),
    "disturbances": (lambda d: d.update(disturbances=[1]), "disturbances is 1"),
    "case": (lambda d: d.update(cases=["x"]), "cases[0] is 'x'"),
    "threads": (lambda d: d["cases"][1].update(busy_threads="2"), "cases[1].busy_threads is '2'"),
    "better": (lambda d: d["cases"][0]["metrics"][0].update(better="more"), "better is 'more'"),
    "bar": (lambda d: d["cases"][0]["metrics"][0].update(bars=1), "bars is 1, not"),
    "a bar": (
        lambda d: d["cases"][0]["metrics"][0].update(bars={"peer": True}),
        "bars.peer is True",
    ),
    "ours": (lambda d: d["cases"][0]["sides"].pop("vhostnet"), "there is no side 'vhostnet'"),
    "run": (
        lambda d: d["cases"][0]["sides"]["peer"]["runs"]["mpps"].append("9"),
        "cases[0].sides.peer.runs.mpps is '9'",
    ),
    "metric": (
        lambda d: d["cases"][0]["sides"]["peer"]["runs"].update(other=[1]),
        "'other' is no metric",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_does_not_fit_is_refused_with_file_and_place(data, name) -> None:
    change, message = BREAKS[name]
    from_json(copy.deepcopy(data), "it.json")
    change(data)
    with pytest.raises(UsageError) as caught:
        from_json(data, "it.json")
    assert message in str(caught.value)
    assert "it.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_a_file_that_holds_something_else(tmp_path, text) -> None:
    place = tmp_path / "g2d.json"
    place.write_text(text)
    with pytest.raises(UsageError, match=r"g2d\.json"):
        load(place)
    with pytest.raises(UsageError, match="no-such"):
        load(tmp_path / "no-such")
