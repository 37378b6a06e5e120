"""`vhostnet bench`: one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import result

from vhostnet.bench import publish, run_bench
from vhostnet.bench.results import load
from vhostnet.cli.main import main
from vhostnet.errors import EXIT_USAGE

WRONG = [
    (["g2x"], "there is no workload 'g2x'; there are g2d, d2g"),
    (["--runs", "0"], "--runs: '0' is not a number from 1"),
    (["--seconds", "0"], "--seconds: '0' is not a number of seconds"),
    (["--seconds", "x"], "--seconds: 'x' is not a number of seconds"),
    (["--quik"], "there is no option --quik (did you mean --quick?)"),
    (["--quick", "--publish"], "--quick is not for publication"),
    (["--only", "no such case"], "no case has all of these words"),
    (["--report", "no-such.json"], "no-such.json: "),
    (["--report", "x.json", "g2d"], "--report measures nothing"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_line_and_status_2(words, message, capsys) -> None:
    assert main(["bench", *words]) == EXIT_USAGE
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_publishing_is_for_a_checkout(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_bench, "require", lambda tool: tool)
    assert main(["bench", "--publish", "g2d"]) == EXIT_USAGE
    assert "there is no docs/benchmarks.md here" in capsys.readouterr().err


def test_list_names_workloads_cases_and_sides(capsys) -> None:
    assert main(["bench", "--list", "g2d", "--only", "split", "--only", "1514"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("g2d: ")
    assert lines[1].startswith("DPDK's virtio_user (testpmd txonly")
    cases = [line for line in lines if line.startswith("  ")]
    assert len(cases) == 4  # mrg_rxbuf and in_order, on and off
    assert all("(vhostnet, DPDK net_vhost)" in line for line in cases)
    main(["bench", "--list", "--quick"])
    assert "1514" not in capsys.readouterr().out.partition("g2tap")[0]


def test_a_report_is_the_table_of_a_kept_file(tmp_path, capsys) -> None:
    result().save(tmp_path / "g2d.json")
    assert main(["bench", "--report", str(tmp_path / "g2d.json")]) == 0
    assert "| 64 B |" in capsys.readouterr().out


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder with a page for results, to work in."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text(f"{publish.BEGIN}\n{publish.END}\n")
    return tmp_path


def test_an_undisturbed_report_is_published(checkout) -> None:
    result().save(checkout / "g2d.json")
    assert main(["bench", "--report", "g2d.json", "--publish"]) == 0
    assert "| 64 B |" in (checkout / "docs" / "benchmarks.md").read_text()
    assert load(checkout / "benchmarks" / "results" / "g2d.json") == result()


def test_a_disturbed_report_is_not_published_but_the_others_are(checkout, capsys) -> None:
    result(disturbances=["noise"]).save(checkout / "g2d.json")
    result(workload="d2g").save(checkout / "d2g.json")
    words = ["--report", "g2d.json", "--report", "d2g.json", "--publish"]
    assert main(["bench", *words]) == EXIT_USAGE
    assert "g2d: not for publication: noise" in capsys.readouterr().err
    results = checkout / "benchmarks" / "results"
    assert {place.name for place in results.iterdir()} == {"d2g.json", "d2g.md", "d2g.svg"}
    assert "### g2d" not in (checkout / "docs" / "benchmarks.md").read_text()
