"""What readers see is computed from the runs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from samples import DELAY, RATE, result, side

from vhostnet.bench import publish
from vhostnet.bench.plots import as_svg
from vhostnet.bench.tables import as_markdown, number
from vhostnet.errors import UsageError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.56, "1235"),
        (100.0, "100"),
        (99.94, "99.9"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (0.01234, "0.0123"),
        (0.0001, "0.000100"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def rows(text: str) -> dict[str, list[str]]:
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row for row in cells}


def test_medians_spreads_ratios_and_bars() -> None:
    table = rows(as_markdown(result()))
    assert table["case"][2:] == ["vhostnet", "peer", "ratio to peer", "bar"]
    # turn by turn: 2.0, 2.2, 1.5
    assert table["64 B"][1:] == [
        "packets, million/s",
        "21.0 (20.0–22.0)",
        "10.0 (10.0–14.0)",
        "2.00 (1.50–2.20)",
        "≥ 1: reached",
    ]
    # lower is better: 1/3, 1/4
    assert table["asleep"][4:] == ["0.292 (0.250–0.333)", "≥ 0.5: **not reached**"]


def test_no_bar_with_more_busy_threads_than_cores() -> None:
    crowded = result()
    crowded.cases[0].busy_threads = 3
    text = as_markdown(crowded)
    assert rows(text)["64 B"][-1] == "no bar: more busy threads than cores"
    assert "More busy threads than cores: 64 B." in text


def test_a_peer_that_failed_leaves_the_bar_open_and_says_why() -> None:
    failed = result()
    failed.cases[0].sides["peer"].runs["mpps"] = [None, None, None]
    failed.cases[0].sides["peer"].failures = ["it fell over"]
    text = as_markdown(failed)
    assert rows(text)["64 B"][3:] == ["–", "–", "≥ 1: not measured"]
    assert "Failed: 64 B, peer, 1 time: it fell over" in text


def test_with_several_peers_each_bar_names_its_own() -> None:
    several = result()
    several.cases[0].sides["other"] = side(mpps=[40.0, 44.0, 42.0])
    several.cases[0].metrics = [replace(RATE, bars={"other": 0.6, "peer": 1.0})]
    assert rows(as_markdown(several))["64 B"][-1] == (
        "≥ 0.6 to other: **not reached**; ≥ 1 to peer: reached"
    )


@pytest.mark.parametrize(("limit", "answer"), [(35.0, "kept"), (34.9, "**not kept**")])
def test_a_limit_is_for_our_median(limit: float, answer: str) -> None:
    limited = result()
    limited.cases[1].metrics = [replace(DELAY, bars={}, limit=limit)]
    assert rows(as_markdown(limited))["asleep"][-1] == f"≤ {limit:g}: {answer}"


def test_a_disturbed_result_says_so_first() -> None:
    disturbed = result(disturbances=["only 2 of 5 runs"])
    notes = as_markdown(disturbed).split("\n\n")[1]
    assert notes.startswith("**Not for publication**: only 2 of 5")
    assert "not for publication" in as_svg(disturbed)
    assert "not for publication" not in as_svg(result())


def test_a_plot_is_an_image_with_bars_of_the_right_length() -> None:
    ns = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(as_svg(result()))
    bars = [
        float(bar.get("width", ""))
        for bar in root.iter(f"{ns}rect")
        if bar.get("x") == "300" and bar.get("height") == "11"
    ]
    # one scale for each metric: 21 to 10, 35 to 10; the longest run fills the room
    assert bars[0] / bars[1] == pytest.approx(2.1, abs=0.01)
    assert bars[2] / bars[3] == pytest.approx(3.5, abs=0.01)
    assert bars[0] == pytest.approx((860 - 300 - 150) * 21 / 22, abs=0.1)
    assert "guest to device: <fast>" in [text.text for text in root.iter(f"{ns}text")]


def test_a_plot_without_any_number() -> None:
    failed = result()
    for case in failed.cases:
        for measured in case.sides.values():
            measured.runs = {}
    assert as_svg(failed).count("no result") == 4
    as_markdown(failed)


def test_the_docs_get_what_lies_in_the_folder_and_keep_the_rest(tmp_path) -> None:
    folder, page = tmp_path / "benchmarks" / "results", tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text(f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n")
    for _ in range(2):  # again: nothing doubles
        publish.write_all(result(), folder)
        publish.write_docs(folder, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{publish.END}\nafter\n")
    assert "old" not in text
    assert text.count("### g2d") == 1
    assert "](../benchmarks/results/g2d.svg)" in text
    assert {file.name for file in folder.iterdir()} == {"g2d.json", "g2d.md", "g2d.svg"}


def test_what_was_disturbed_is_not_published() -> None:
    publish.check_publishable(result())
    with pytest.raises(UsageError, match="g2d: not for publication: noise"):
        publish.check_publishable(result(disturbances=["noise"]))


def test_a_page_without_a_place_for_results(tmp_path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(UsageError, match="No such file"):
        publish.write_docs(tmp_path, page)
    page.write_text("nothing")
    with pytest.raises(UsageError, match="no place"):
        publish.write_docs(tmp_path, page)
