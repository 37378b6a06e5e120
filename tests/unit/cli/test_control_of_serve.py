"""`vhostnet serve --control`, with QEMU's own client library on the other side."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from driver_ring import GPA
from front_end import FrontEnd, Guest
from serve_process import ServeProcess
from vhostnet.cli import logs
from vhostnet.cli.options import DEVICE_KEYS
from vhostnet.control.table import commands
from vhostnet.datapath.codes import RING_BAD_NEXT, RING_ERRORS
from vhostnet.events import EVENTS

PATIENCE_S = 60.0


class Daemon(ServeProcess):
    """A daemon with a control socket."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.control = str(folder / "control")
        super().__init__(folder, *options, "--control", self.control)

    def talk(self, about: Callable[[QMPClient], Awaitable[Any]]) -> Any:
        """Run a conversation."""

        async def conversation() -> Any:
            qmp = QMPClient("test")
            await qmp.connect(self.control)
            try:
                return await asyncio.wait_for(about(qmp), PATIENCE_S)
            finally:
                await qmp.disconnect()

        return asyncio.run(conversation())

    def execute(self, command: str, **arguments: Any) -> Any:
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.talk(lambda qmp: qmp.execute(command, given))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    it = Daemon(tmp_path_factory.mktemp("serve"), "--backend", "null")
    yield it
    it.check_and_stop()
    assert not os.path.exists(it.control)


@pytest.fixture
def guest() -> Iterator[Guest]:
    it = Guest()
    yield it
    it.close()


class Heard:
    """Events, in their order; to be used within a conversation."""

    def __init__(self, qmp: QMPClient) -> None:
        self._listener = EventListener()
        qmp.register_listener(self._listener)

    async def until(self, name: str, n: int = 1) -> list[tuple[str, dict[str, Any]]]:
        """All that come, up to and with the n-th of this name."""
        found: list[tuple[str, dict[str, Any]]] = []
        while n:
            event = await self._listener.get()
            assert isinstance(event["data"], dict)
            found.append((str(event["event"]), event["data"]))
            n -= event["event"] == name
        return found


def test_the_socket_is_the_users_own(daemon):
    assert stat.S_IMODE(os.stat(daemon.control).st_mode) == 0o600


def test_every_command_that_is_listed_is_driven_by_qemus_library(daemon):
    new = {"socket": f"{daemon.socket}-all", "backend": "null", "name": "new"}
    # what each is asked, and what has to be in its answer; in an order that makes sense
    asked: dict[str, tuple[dict[str, Any], str]] = {
        "query-commands": ({}, "capture-start"),
        "query-events": ({}, "VRING_STALLED"),
        "query-version": ({}, "serve"),
        "query-devices": ({"device": "dev0"}, "dev0"),
        "query-vrings": ({"device": "dev0"}, "tx0"),
        "query-memory": ({"device": "dev0"}, "regions"),
        "query-workers": ({}, "[]"),
        "query-stats": ({"device": "dev0"}, "clock-ns"),
        "inspect": ({"device": "dev0", "queue": "tx0", "chains": 3}, "running"),
        "query-sandbox": ({}, "stages"),
        "query-log": ({}, "all"),
        "log-set": ({"level": "info"}, "info"),
        "device-add": (new, "new"),
        "capture-start": ({"file": f"{daemon.socket}.pcapng", "device": "new"}, "new-tx"),
        "query-capture": ({}, ".pcapng"),
        "capture-stop": ({}, ".pcapng"),
        "device-del": ({"device": "new"}, "{}"),
    }
    listed = [command["name"] for command in daemon.execute("query-commands")]
    assert listed == list(commands(()))
    assert set(listed) == set(asked)

    async def conversation(qmp: QMPClient) -> None:
        for name, (arguments, wanted) in asked.items():
            assert wanted in json.dumps(await qmp.execute(name, arguments)), name

    daemon.talk(conversation)
    daemon.wait_idle()


def test_qmp_shell_works_as_it_is(daemon):
    shell = Path(sys.executable).with_name("qmp-shell")
    lines = (
        "query-version",
        f"device-add socket={daemon.socket}-shell backend=null name=shell queue-pairs=2",
        "query-vrings device=shell",
        "device-del device=shell",
        "no-such-command",
    )
    done = subprocess.run(
        [shell, daemon.control],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    said = [line.removeprefix("(QEMU) ") for line in done.stdout.splitlines() if "{" in line]
    answers = [json.loads(line) for line in said]
    assert answers[0]["return"]["pid"] == daemon.process.pid
    assert answers[1]["return"] == {"device": "shell"}
    assert [ring["queue"] for ring in answers[2]["return"]] == ["rx0", "tx0", "rx1", "tx1"]
    assert answers[3]["return"] == {}
    assert answers[4]["error"]["class"] == "CommandNotFound"


def test_version_and_events(daemon):
    version = daemon.execute("query-version")
    assert (version["command"], version["pid"]) == ("serve", daemon.process.pid)
    assert {event["name"] for event in daemon.execute("query-events")} == set(EVENTS)


def test_a_device_that_nobody_uses(daemon):
    (device,) = daemon.execute("query-devices")
    assert device["device"] == "dev0"
    assert device["socket"] == daemon.socket
    assert (device["backend"], device["queue-pairs"]) == ("null", 1)
    assert (device["connected"], device["pid"], device["running"]) == (False, None, False)
    assert daemon.execute("query-workers") == []
    assert [ring["running"] for ring in daemon.execute("query-vrings")] == [False, False]


def test_a_session_is_seen_from_connect_to_disconnect(daemon, guest):
    async def conversation(qmp: QMPClient) -> None:
        heard = Heard(qmp)
        front_end = await asyncio.to_thread(lambda: FrontEnd(daemon.socket).start(guest))
        began = await heard.until("VRING_STARTED", 2)
        assert began[0] == ("DEVICE_CONNECTED", {"device": "dev0", "pid": os.getpid()})
        assert began[1:] == [
            (
                "VRING_STARTED",
                {"device": "dev0", "vring": n, "queue": queue, "num": 16, "base": 0},
            )
            for n, queue in enumerate(("rx0", "tx0"))
        ]
        guest.tx.send(*[b"x" * 60] * 5)
        await asyncio.to_thread(guest.tx.wait_used, 5)

        rx, tx = await qmp.execute("query-vrings", {"device": "dev0"})
        assert (rx["running"], rx["last-avail"], rx["last-used"]) == (True, 0, 0)
        assert (tx["running"], tx["last-avail"], tx["avail"], tx["waiting"]) == (True, 5, 5, 0)
        assert (tx["last-used"], tx["num"], tx["format"]) == (5, 16, "split")
        assert (tx["kick"], tx["call"], tx["err"]) == ("eventfd", True, True)
        assert (tx["hdr-len"], tx["mergeable"], tx["last-error"]) == (12, True, None)

        (device,) = await qmp.execute("query-devices")
        assert (device["connected"], device["pid"]) == (True, os.getpid())
        assert {"VERSION_1", "MRG_RXBUF", "PROTOCOL_FEATURES"} <= set(device["features"])

        (memory,) = await qmp.execute("query-memory")
        (region,) = memory["regions"]
        assert (region["gpa"], region["size"]) == (f"{GPA:#x}", guest.memory.size)
        assert (memory["size"], region["lost"]) == (guest.memory.size, False)

        (worker,) = await qmp.execute("query-workers")
        assert worker["worker"] == f"vhost-{os.getpid()}"
        assert os.path.exists(f"/proc/{daemon.process.pid}/task/{worker['tid']}")
        assert worker["busy-ns"] > 0
        assert worker["runs"] > 0

        (stats,) = await qmp.execute("query-stats", {"device": "dev0"})
        counters = stats["pairs"][0]["tx"]["counters"]
        assert (counters["packets"], counters["bytes"]) == (5, 5 * 72)
        assert (stats["name"], stats["clock-ns"] > 0) == ("dev0", True)

        front_end.close()
        ended = await heard.until("DEVICE_DISCONNECTED")
        assert [name for name, _ in ended[:2]] == ["VRING_STOPPED"] * 2
        assert ended[1][1] == {"device": "dev0", "vring": 1, "queue": "tx0", "base": 5}
        assert ended[2][1] == {"device": "dev0", "reason": "the front-end disconnected"}

    daemon.talk(conversation)


def test_a_broken_ring_is_told_with_the_rule_that_it_broke(daemon, guest):
    async def conversation(qmp: QMPClient) -> None:
        heard = Heard(qmp)
        front_end = await asyncio.to_thread(lambda: FrontEnd(daemon.socket).start(guest))
        ring = guest.tx.ring
        ring.set_desc(0, guest.tx.buffers[0], 100, 1, 99)  # NEXT, beyond the table
        ring.offer(0)
        guest.tx.kick()
        *_, (_, error) = await heard.until("VRING_ERROR")
        (_, tx) = await qmp.execute("query-vrings")
        assert (error["vring"], error["queue"], error["error"]) == (1, "tx0", RING_BAD_NEXT)
        assert error["reason"] == tx["last-error"] == RING_ERRORS[RING_BAD_NEXT]
        assert tx["ring-errors"] >= 1
        picture = await qmp.execute("inspect", {"device": "dev0", "queue": "tx0"})
        assert picture["problems"] == [f"chain 0 (head 0): {error['reason']}"]
        assert (picture["running"], picture["last-error"]) == (True, error["reason"])
        for queue in ("tx1", "x0", "rx1000", "1"):
            with pytest.raises(ExecuteError, match="rx0 to tx0"):
                await qmp.execute("inspect", {"device": "dev0", "queue": queue})
        with pytest.raises(ExecuteError, match="from 1 to 256"):
            await qmp.execute("inspect", {"device": "dev0", "queue": "rx", "chains": 0})
        front_end.close()
        await heard.until("DEVICE_DISCONNECTED")

    daemon.talk(conversation)


def test_devices_come_and_go_while_another_one_moves_packets(daemon, guest):
    new = f"{daemon.socket}-new"

    async def conversation(qmp: QMPClient) -> None:
        heard = Heard(qmp)
        first = await asyncio.to_thread(lambda: FrontEnd(daemon.socket).start(guest))
        asked = {"socket": new, "backend": "null", "queue-pairs": 2, "busy-poll-us": 3}
        name = (await qmp.execute("device-add", asked))["device"]
        devices = {d["device"]: d for d in await qmp.execute("query-devices")}
        assert (devices[name]["socket"], devices[name]["queue-pairs"]) == (new, 2)

        guest_of_new = Guest(queue_pairs=2)
        second = await asyncio.to_thread(lambda: FrontEnd(new).start(guest_of_new))
        for tx in (guest.tx, guest_of_new.tx):
            tx.send(b"y" * 60)
            await asyncio.to_thread(tx.wait_used, 1)
        (_, tx_ring, *_) = await qmp.execute("query-vrings", {"device": name})
        assert (tx_ring["last-used"], tx_ring["busy-poll-us"]) == (1, 3)

        await qmp.execute("device-del", {"device": name})
        await asyncio.to_thread(second.wait_for_close)
        second.close()
        guest_of_new.close()
        assert not os.path.exists(new)
        told = await heard.until("DEVICE_DELETED")
        assert ("DEVICE_ADDED", {"device": name}) in told
        assert told[-1] == ("DEVICE_DELETED", {"device": name})
        with pytest.raises(ExecuteError, match=f"no device '{name}'") as gone:
            await qmp.execute("device-del", {"device": name})
        assert gone.value.error_class == "DeviceNotFound"

        guest.tx.send(b"z" * 60)
        await asyncio.to_thread(guest.tx.wait_used, 1)
        again = (await qmp.execute("device-add", asked))["device"]
        assert again != name
        await qmp.execute("device-del", {"device": again})
        first.close()

    daemon.talk(conversation)
    daemon.wait_idle()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "'socket' is missing"),
        ({"socket": "/tmp/x", "backend": "nul"}, "did you mean null"),
        ({"socket": "x" * 200, "backend": "null"}, "socket path of 200 bytes"),
        ({"socket": "/nowhere/x", "backend": "null"}, "outside of what the sandbox allows"),
        ({"socket": "/tmp/x", "backend": "null", "queue_pairs": 128}, "from 1 to 127"),
        ({"socket": "/tmp/x", "backend": "null", "linux_abi": "2.4"}, "not one of"),
        ({"socket": "/tmp/x", "backend": "port:"}, "a name that two devices share"),
        ({"socket": "/tmp/x", "backend": "tap-fd:999"}, "999"),
        ({"socket": "/tmp/x\0y", "backend": "null"}, "one line"),
    ],
)
def test_a_device_that_cannot_be_is_refused_in_one_line_and_leaves_nothing(daemon, arguments, why):
    if "socket" in arguments:
        arguments = arguments | {
            "socket": arguments["socket"].replace("/tmp/x", f"{daemon.socket}-x")
        }
    with pytest.raises(ExecuteError, match=why) as refused:
        daemon.execute("device-add", **arguments)
    assert "\n" not in str(refused.value)
    assert "bug" not in str(refused.value)
    assert len(daemon.execute("query-devices")) == 1
    daemon.wait_idle()


def test_device_add_takes_what_a_device_takes_on_the_command_line(daemon):
    values = {
        "socket": f"{daemon.socket}-2",
        "backend": "null",
        "name": "vm2",
        "client": False,
        "queue-pairs": 2,
        "fill-checksums": False,
        "coalesce": False,
        "busy-poll-us": 5,
        "busy-poll-adaptive": True,
        "iommu": False,
        "linux-abi": "6.12",
        "worker-cpus": str(min(os.sched_getaffinity(0))),
        "worker-scheduling": "batch:1",
    }
    assert set(values) == set(DEVICE_KEYS)
    assert daemon.execute("device-add", **values) == {"device": "vm2"}
    [told] = [c for c in daemon.execute("query-commands") if c["name"] == "device-add"]
    needed = [argument["name"] for argument in told["arguments"] if argument["required"]]
    assert needed == [argument["name"] for argument in told["arguments"][:2]]
    assert needed == ["socket", "backend"]
    daemon.execute("device-del", device="vm2")


def test_the_socket_of_another_device_is_refused(daemon):
    with pytest.raises(ExecuteError, match="two devices have the socket"):
        daemon.execute("device-add", socket=daemon.socket, backend="null")


def test_log_levels_change_while_it_runs(daemon):
    def chatter() -> list[str]:
        daemon.mark()
        with FrontEnd(daemon.socket) as front_end:
            front_end.negotiate()
        daemon.wait_idle()
        return daemon.lines()

    assert not [line for line in chatter() if "features" in line]
    assert daemon.execute("log-set", area="device", level="debug") == {
        "area": "device",
        "level": "debug",
    }
    assert [line for line in chatter() if "features" in line]
    areas = {area["area"]: area for area in daemon.execute("query-log")}
    assert areas["device"] == {"area": "device", "level": "debug", "own": True}
    assert areas.pop("all") == {"area": "all", "level": "info", "own": True}
    assert set(areas) <= set(logs.AREAS)
    daemon.execute("log-set", area="device", level="inherit")
    assert not [line for line in chatter() if "features" in line]
    for wrong, why in (
        ({"level": "loud"}, "not one of"),
        ({"level": "inherit"}, "not one of"),
        ({"level": "info", "area": "numba"}, "no area 'numba'"),
    ):
        with pytest.raises(ExecuteError, match=why):
            daemon.execute("log-set", **wrong)


def test_a_control_socket_that_cannot_be_is_told_before_anything_else(tmp_path, daemon):
    def status_of(path: str) -> tuple[int, str]:
        where = ("--socket-path", str(tmp_path / "s"), "--backend", "null", "--control", path)
        command = [sys.executable, "-m", "vhostnet", "serve", *where]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        return done.returncode, done.stderr

    assert status_of("y" * 300)[0] == 2
    status, text = status_of(daemon.control)
    assert (status, text.count("\n")) == (4, 1)
    assert f"--control: {daemon.control}: in use by process {daemon.process.pid}" in text
