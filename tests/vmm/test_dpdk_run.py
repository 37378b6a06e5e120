"""DPDK's virtio_user on `/dev/vhost-net` through `vhostnet run`: packets both ways.

It looks at the node's device number before it believes that it is vhost-net's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_process import wait_until
from vhostnet.bench.testpmd import Testpmd
from vhostnet.demo.netns import Namespace
from vhostnet.demo.run_demo import run_prefix
from vhostnet.errors import HostError

pytestmark = [
    pytest.mark.vmm,
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("dpdk-testpmd") is None, reason="dpdk-testpmd is missing"),
    pytest.mark.skipif(shutil.which("stdbuf") is None, reason="stdbuf is missing"),
]
TAP, PINGS = "dpdk0", 500


@pytest.fixture
def host() -> Iterator[Namespace]:
    try:
        made = Namespace()
    except HostError as err:
        pytest.skip(str(err))
    yield made
    made.close()


@pytest.mark.parametrize("options", ["mrg_rxbuf=1,in_order=0", "mrg_rxbuf=0,in_order=1"])
def test_packets_both_ways(host: Namespace, tmp_path: Path, options: str) -> None:
    log = tmp_path / "run.log"
    prefix = [*host.prefix, *run_prefix(log)]
    cpus = sorted(os.sched_getaffinity(0))
    device = f"net_virtio_user0,path=/dev/vhost-net,queue_size=256,iface={TAP},{options}"
    with Testpmd([device], cpu=cpus[0], forward_cpu=cpus[-1], prefix=prefix) as driver:
        driver.forward("rxonly", 0.1)  # it is up
        host.run("busybox", "sh", "-c", f"echo 1 >/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6")
        host.run("ip", "address", "add", "192.0.2.1/24", "dev", TAP)
        host.run("ip", "link", "set", "dev", TAP, "up")
        host.run("ip", "neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", TAP)

        before = host.link_counters(TAP)["rx_packets"]
        driver.forward("txonly", 0.5)
        sent = driver.stats().sent
        assert sent > 1000
        # what is in the ring is still taken
        wait_until(lambda: host.link_counters(TAP)["rx_packets"] - before >= sent, "all of it")
        assert host.link_counters(TAP)["rx_packets"] - before == sent

        received_before = driver.stats().received
        driver.start("rxonly")
        ping = f"ping -q -c {PINGS} -i 0.002 -W 1 192.0.2.2 >/dev/null; true"
        host.run("busybox", "sh", "-c", ping)
        wait_until(lambda: driver.stats().received - received_before >= PINGS, "the pings")
        driver.stop()
        assert driver.stats().received - received_before == PINGS
        driver.quit()
    assert "its first ring starts" in log.read_text()
    assert "Traceback" not in log.read_text()
