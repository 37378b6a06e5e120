"""The same tests for every way to reach a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from beds import Bed, InProcessBed, VhostUserBed

from vhostnet.demo.daemon import Daemon
from vhostnet_frontend import GuestMemory


@pytest.fixture(scope="session")
def loop_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a `vhostnet serve --backend loop` with two queue pairs."""
    folder = tmp_path_factory.mktemp("loop")
    path = str(folder / "socket")
    arguments = ["--socket-path", path, "--backend", "loop", "--queue-pairs", "2"]
    log = folder / "log"
    with Daemon(arguments, log=log):
        yield path
    assert "Traceback" not in log.read_text()


@pytest.fixture(params=["in process", "vhost-user"])
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    made: Bed
    if request.param == "in process":
        made = InProcessBed()
    else:
        made = VhostUserBed(request.getfixturevalue("loop_daemon"))
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as made:
        yield made
