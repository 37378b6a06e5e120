"""`vhostnet top`: rates from two answers, the past, the screen, and what it prints without one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Static

from front_end import FrontEnd, Guest
from serve_process import ServeProcess
from vhostnet.cli.main import main
from vhostnet.cli.top_model import Top, cells, human, sparkline
from vhostnet.cli.top_screen import TopApp
from vhostnet.errors import PeerError

S = 1_000_000_000


class FakeClient:
    """A daemon of one device that moves 1000 packets more in each second."""

    def __init__(self) -> None:
        self.second = 0
        self.packets = 0
        self.failure: Exception | None = None
        self.devices = ["dev0"]

    def execute(self, command: str) -> list[dict[str, Any]]:
        if self.failure is not None:
            raise self.failure
        if command == "query-vrings":
            ring = {"running": True, "num": 16, "waiting": 4}
            return [{"device": d, "queue": q, **ring} for d in self.devices for q in ("rx0", "tx0")]
        self.second += 1
        self.packets += 1000 * (self.second - 1)
        return [self._device(name) for name in self.devices]

    def _device(self, name: str) -> dict[str, Any]:
        names = ("bytes", "kicks", "calls", "drop_full", "drop_short", "ring_errors")
        counters = {"packets": self.packets, **dict.fromkeys(names, self.second)}
        latency = {"counts": [[1000, 0], [2000, 3 * self.second], [None, self.second]], "total": 0}
        ring = {"active": True, "counters": counters, "kick_to_used_ns": latency}
        worker = {"busy_ns": self.second * S // 4}
        pair = {"name": name, "rx": ring, "tx": ring, "worker": worker, "backend": {}}
        return {"name": name, "pairs": [pair], "clock-ns": self.second * S}


def test_rates_are_of_the_interval():
    top = Top(FakeClient())
    first, second = top.take(), top.take()
    assert {row.packets for row in first.rows} == {0.0}
    (rx, tx) = second.rows
    assert (rx.queue, tx.queue, rx.running) == ("rx0", "tx0", True)
    assert (rx.packets, rx.bytes, rx.kicks, rx.drops) == (1000.0, 1.0, 1.0, 2.0)
    assert (rx.fill, rx.busy, rx.latency_ns) == (0.25, 0.25, 2000.0)
    assert json.loads(json.dumps(second.as_json()))["queues"][0]["packets"] == 1000.0


def test_the_past_is_kept_by_queue():
    client = FakeClient()
    top = Top(client)
    for _ in range(5):
        top.take()
    assert top.history(("dev0", "tx0"), 4, 3) == [2000.0, 3000.0, 4000.0]
    assert top.history(("dev0", "tx0"), 1, 40) == [0.0, 1000.0]
    client.devices = ["dev1"]
    assert {row.packets for row in top.take().rows} == {0.0}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1.00k"),
        (12_345, "12.3k"),
        (4_560_000, "4.56M"),
        (3e9, "3.00G"),
    ],
)
def test_numbers_for_humans(number, text):
    assert human(number) == text


def test_a_sparkline_has_a_mark_for_whatever_moved():
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
    assert sparkline([]) == ""


def conversation(steps: Any) -> TopApp:
    client = FakeClient()
    app = TopApp(Top(client), interval=3600)  # the test takes the samples

    async def run() -> None:
        async with app.run_test(size=(150, 20)) as pilot:
            await steps(app, client, pilot)

    asyncio.run(run())
    return app


def shown(app: TopApp) -> str:
    return str(app.query_one("#when", Static).render())


def first_row(app: TopApp) -> list[str]:
    board = app.query_one(DataTable)
    return [str(cell).strip() for cell in board.get_row_at(0)]


def test_the_screen_pauses_and_goes_back_in_time():
    async def steps(app: TopApp, _client: FakeClient, pilot: Any) -> None:
        for _ in range(3):
            app._take()
        assert shown(app).startswith("live   sample 4 of 4")
        row = first_row(app)
        assert row[:4] == ["dev0", "rx0", "run", "3.00k"]
        assert row[-1] == "▃▅█"
        await pilot.press("left")
        assert shown(app).startswith("paused, 1.0 s ago   sample 3 of 4")
        assert first_row(app)[3] == "2.00k"
        app._take()  # what comes meanwhile does not move what is shown
        assert shown(app).startswith("paused, 2.0 s ago   sample 3 of 5")
        await pilot.press("home")
        assert shown(app).startswith("paused, 4.0 s ago   sample 1 of 5")
        await pilot.press("left")
        assert "sample 1 of 5" in shown(app)
        await pilot.press("right", "right")
        assert "sample 3 of 5" in shown(app)
        await pilot.press("end")
        assert shown(app).startswith("live   sample 5 of 5")
        await pilot.press("space")
        app._take()
        assert shown(app).startswith("paused, 1.0 s ago   sample 5 of 6")
        await pilot.press("space")
        assert shown(app).startswith("live   sample 6 of 6")

    conversation(steps)


def test_the_screen_ends_with_its_daemon():
    async def steps(app: TopApp, client: FakeClient, _pilot: Any) -> None:
        client.failure = PeerError("the daemon has hung up")
        app._take()

    app = conversation(steps)
    assert str(app.failure) == "the daemon has hung up"


def test_no_devices_are_shown_as_such():
    async def steps(app: TopApp, client: FakeClient, _pilot: Any) -> None:
        client.devices = []
        app._take()
        assert [str(c.label) for c in app.query_one(DataTable).columns.values()] == ["no devices"]

    conversation(steps)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("top")
    path = str(folder / "control")
    daemon = ServeProcess(folder, "--backend", "null", "--control", path)
    guest = Guest()
    with FrontEnd(daemon.socket) as front_end:
        front_end.start(guest)
        yield path
    guest.close()
    daemon.check_and_stop()


def test_once_and_json_of_a_daemon(control, capsys):
    assert main(["top", "--control", control, "--once", "--interval", "0.1"]) == 0
    head, rx, tx = capsys.readouterr().out.splitlines()
    assert head.split() == list(cells(Top(FakeClient()).take().rows[0]))
    assert (rx.split()[:3], tx.split()[1]) == (["dev0", "rx0", "run"], "tx0")
    words = ["top", "--control", control, "--once", "--json", "--interval", "0.1"]
    assert main(words) == 0
    sample = json.loads(capsys.readouterr().out)
    assert [queue["queue"] for queue in sample["queues"]] == ["rx0", "tx0"]


def test_mistakes_are_one_line(tmp_path, capsys):
    for words, status, why in (
        (["top"], 2, "--control PATH is needed"),
        (["top", "--control", "x", "--interval", "0"], 2, "seconds from 0.1 to 60"),
        (["top", "--control", str(tmp_path / "x"), "--once"], 4, "cannot connect"),
    ):
        assert main(words) == status
        err = capsys.readouterr().err
        assert why in err
        assert err.count("\n") == 1


def test_without_textual_it_says_what_to_install():
    code = (
        "import sys; sys.modules['textual'] = None\n"
        "from vhostnet.cli.main import main; raise SystemExit(main(['top', '--control', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert "pip install 'vhostnet[top]'" in done.stderr
