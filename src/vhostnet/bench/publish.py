"""Puts results where they are kept: JSON, plot and table in a folder, the tables in the docs.

Only numbers that nothing disturbed are published; the docs are made from all results files
that lie in the folder, so that one workload can be measured anew alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vhostnet.bench.catalogue import WORKLOADS
from vhostnet.bench.plots import as_svg
from vhostnet.bench.results import WorkloadResult, load
from vhostnet.bench.tables import as_markdown
from vhostnet.errors import UsageError

BEGIN, END = "<!-- results: made by script/bench -->", "<!-- end of results -->"


def write_all(result: WorkloadResult, folder: Path) -> None:
    """Write one workload's JSON, table and plot."""
    result.save(folder / f"{result.workload}.json")
    (folder / f"{result.workload}.md").write_text(f"# {result.title}\n\n{as_markdown(result)}\n")
    (folder / f"{result.workload}.svg").write_text(as_svg(result))


def check_publishable(result: WorkloadResult) -> None:
    """Raise UsageError if something disturbed these numbers."""
    if result.disturbances:
        why = "; ".join(result.disturbances)
        raise UsageError(f"{result.workload}: not for publication: {why}")


def write_docs(folder: Path, page: Path) -> None:
    """Replace the part of a page between the two marks by what *folder* holds.

    Raises:
        UsageError: a file is no result, or the page has no marks.
    """
    try:
        text = page.read_text()
    except OSError as err:
        raise UsageError(f"{page}: {err.strerror}") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UsageError(f"{page}: has no place for the results")
    found = [load(file) for file in folder.glob("*.json")]
    order = [workload.name for workload in WORKLOADS]
    known = [result for result in found if result.workload in order]
    known.sort(key=lambda result: order.index(result.workload))
    link = _relative(folder, page.parent)
    parts = [_section(result, link) for result in known] or ["No results yet.\n"]
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{rest.partition(END)[2]}")


def _section(result: WorkloadResult, link: str) -> str:
    title = f"{result.workload}: {result.title.partition(': ')[2] or result.title}"
    data = f"{result.workload}.json"
    plot = f"{link}/{result.workload}.svg"
    alternative = re.sub(r"[^\w ,:-]", "", result.title)
    return (
        f"### {title}\n\n{result.how}\n\n{as_markdown(result)}\n\n"
        f"![{alternative}]({plot})\n\n"
        f"Every run, and the command lines: [{data}]({link}/{data})\n"
    )


def _relative(folder: Path, base: Path) -> str:
    return os.path.relpath(folder, base)
