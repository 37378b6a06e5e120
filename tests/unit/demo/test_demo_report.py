"""The demo's JSON is read by others: its shape and its arithmetic are kept here."""

from __future__ import annotations

from vhostnet.demo.measure import PingResult
from vhostnet.demo.report import Report


def _report() -> Report:
    report = Report(PingResult(20, 1, 0.5), "tcg", {"vhostnet": "1"}, 2.0)
    for ours, theirs in ((100.0, 50.0), (300.0, 60.0), (200.0, 40.0)):
        report.add("vhostnet", "to_host", ours)
        report.add("qemu", "to_host", theirs)
        report.add("vhostnet", "to_guest", theirs)
        report.add("qemu", "to_guest", ours)
    return report


def test_json_has_medians_and_ratios() -> None:
    result = _report().as_json()
    assert result["ping"] == {"sent": 20, "lost": 1, "average_ms": 0.5}
    to_host, to_guest = result["tcp"]["to_host"], result["tcp"]["to_guest"]
    assert (to_host["vhostnet_mbps"], to_host["qemu_mbps"], to_host["ratio"]) == (200, 50, 4)
    assert (to_guest["vhostnet_mbps"], to_guest["qemu_mbps"], to_guest["ratio"]) == (50, 200, 0.25)
    assert to_host["runs"]["vhostnet_mbps"] == [100, 300, 200]


def test_table_fits_a_terminal() -> None:
    table = _report().as_table()
    assert "4.00" in table
    assert "median of 3 runs" in table
    assert max(map(len, table.splitlines()[:-1])) <= 80
