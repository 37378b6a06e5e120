"""--metrics of the commands that serve, from outside."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from host import RUNS_TREES
from scrape import Scrape
from serve_process import ServeProcess, wait_until
from vhostnet_frontend import NetDriver, VhostUserTransport

RUN_S = 240.0  # a cold cache: kernels are compiled first
FRAME = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xb5" + bytes(46)


def test_serve_tells_what_a_driver_has_sent(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    daemon = ServeProcess(tmp_path, "--backend", "null", "--metrics", f"unix:{path}")
    try:
        assert Scrape(str(path)).total("queue_packets_total", direction="tx") == 0
        with NetDriver(VhostUserTransport.connect(daemon.socket, wait=60.0)) as driver:
            driver.start()
            for _ in range(7):
                driver.send(FRAME)
            driver.flush()
            labels = {"device": "dev0", "queue": "0", "direction": "tx"}
            # a text may be some tenths of a second old
            wait_until(
                lambda: Scrape(str(path)).total("queue_packets_total", **labels) == 7,
                "the packets in the metrics",
            )
        # counters outlive the session: a scraper would take a fall for a restart
        wait_until(lambda: Scrape(str(path)).total("queue_active") == 0, "the end of the session")
        assert Scrape(str(path)).total("queue_packets_total", direction="tx") == 7
    finally:
        daemon.stop()
    assert not path.exists()


def test_a_port_that_the_kernel_chose_is_in_the_log(tmp_path: Path) -> None:
    daemon = ServeProcess(tmp_path, "--backend", "null", "--metrics", "tcp:127.0.0.1:0")
    try:
        port = int(daemon.log().split("metrics at tcp:127.0.0.1:")[1].split()[0])
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    finally:
        daemon.stop()


def test_an_address_that_is_taken_is_told_with_its_option(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        ended = subprocess.run(
            [sys.executable, "-m", "vhostnet", "serve", "--socket-path", str(tmp_path / "s"),
             "--backend", "null", "--metrics", where],
            capture_output=True, text=True, timeout=RUN_S, check=False,
        )  # fmt: skip
    assert ended.returncode == 4
    assert ended.stderr.splitlines()[-1].endswith(f"--metrics: {where}: Address already in use")


SCRAPING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from scrape import Scrape
files = [os.open("/dev/vhost-net", os.O_RDWR) for _ in range(3)]
print(Scrape(sys.argv[2]).total("devices"))
os.close(files.pop())
Scrape(sys.argv[2]).total("queue_packets_total", direction="rx")
"""


@RUNS_TREES
@pytest.mark.root
def test_run_tells_of_the_files_that_are_open(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    ended = subprocess.run(
        [sys.executable, "-m", "vhostnet", "run", "--metrics", f"unix:{path}", "--",
         sys.executable, "-c", SCRAPING, str(Path(__file__).parents[2]), str(path)],
        capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, "3\n"), ended.stderr
