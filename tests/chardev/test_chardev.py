"""`vhostnet chardev` in a VM with Debian's kernel, whose own vhost_net is never loaded.

What is quick runs always; with VHOSTNET_TEST_LONG=1 also all scenarios of the oracle, guests in
the guest, and thousands of opens (half an hour without KVM).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chardev.bed import NODE, Bed, Chardev
from chardev.differences import CHARDEV_DIFFERENCES, REASONS
from long import LONG
from oracle import scenarios
from oracle.compare import listed, unequal_but_for
from oracle.differences import Difference
from oracle.lab import SCENARIOS
from vhostnet.demo.guest_host import warm_for_any_processor
from vhostnet.demo.guest_image import guest_image
from vhostnet.errors import HostError

assert scenarios
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: Of Debian's kernel, and what the daemon is told to be.
LINUX = "6.1"
#: Of each kind of call some, and packets both ways: a minute.
QUICK = (
    "the_order_of_checks_of_raw_ioctls",
    "a_forked_child_is_not_the_owner",
    "what_is_offered",
    "the_features_array",
    "there_is_one_owner",
    "reset_owner_leaves_an_empty_table",
    "a_memory_table_has_at_most_64_regions",
    "odd_regions_while_nothing_runs",
    "descriptors_that_are_no_eventfds",
    "a_kick_that_is_signalled_already_counts",
    "what_may_be_written",
    "what_the_iotlb_refuses",
    "reading_when_there_is_nothing",
    "miss_after_miss_until_the_packet_is_out",
    "logging_is_switched_while_rings_run",
    "six_hundred_packets_and_a_kick",
)

pytestmark = [pytest.mark.vmm, pytest.mark.slow, pytest.mark.timeout(1800)]


@functools.cache
def golden() -> dict[str, Any]:
    place = HERE.parent / "oracle" / "golden" / f"linux-{LINUX}.json"
    found: dict[str, Any] = json.loads(place.read_text())["outcomes"]
    return found


def differences_of(name: str) -> list[Difference]:
    return listed(name, LINUX) + [d for d in CHARDEV_DIFFERENCES if d.scenario == name]


def judged(outcomes: dict[str, Any]) -> dict[str, Any]:
    """Scenario -> what is not as in Linux and not listed, or listed and as in Linux."""
    found = {}
    for name, ours in outcomes.items():
        wrong = unequal_but_for(differences_of(name), golden()[name], ours)
        if any(wrong):
            found[name] = wrong
    return found


# --- one VM for all: the order is that of a daemon's life ---------------------------------------


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    try:
        made = Bed(tmp_path_factory.mktemp("vm"))
    except HostError as e:
        pytest.skip(str(e))
    with made:
        made.guest.check(f"mknod {NODE} c 10 238")  # as Debian does at boot
        yield made


METRICS = "unix:/run/metrics"


@pytest.fixture(scope="module")
def chardev(bed: Bed) -> Chardev:
    options = ("--replace-node", "--linux-abi", LINUX, "--mode", "640", "--metrics", METRICS)
    return Chardev(bed, *options)


def rdev(bed: Bed) -> str:
    return bed.guest.run(f"stat -c %t:%T {NODE}")[1].strip()


KERNELS = "a:ee"


def test_a_static_node_is_named_and_nobody_is_behind_it(bed: Bed) -> None:
    status, said = bed.run("-m", "vhostnet", "chardev")
    assert status == 4
    assert "10:238" in said
    assert "--replace-node" in said
    assert len(said.strip().splitlines()) == 1
    assert rdev(bed) == KERNELS
    assert bed.guest.run(f"cat {NODE}")[0] != 0


@pytest.fixture(scope="module")
def said(bed: Bed, chardev: Chardev) -> dict[str, Any]:
    """What the session in the VM saw of the door."""
    assert chardev.status() is None
    found: dict[str, Any] = bed.result(str(HERE / "door_session.py"))
    return found


def test_it_is_our_driver_that_answers(said: dict[str, Any], chardev: Chardev) -> None:
    assert said["who"] == {
        "is cuse": True,
        "is misc": False,
        "vhost_net is loaded": False,
        "mode": "0o640",
    }
    assert "is the owner" in chardev.log()
    assert " 0 kernels compiled" in chardev.log()


def test_it_is_sealed(chardev: Chardev) -> None:
    log = chardev.log()
    for stage in ("no new privileges", "capabilities (none)", "landlock (files", "system calls ("):
        assert stage in log, log
    tasks = f"/proc/{chardev.pid}/task/*/status"
    said = chardev.host.guest.check(f"cat {tasks} | grep -E 'NoNewPrivs|Seccomp:|CapEff' | sort -u")
    assert said.split() == ["CapEff:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"]


@pytest.mark.usefixtures("chardev")
def test_a_second_device_of_the_name_is_refused(bed: Bed) -> None:
    status, output = bed.run("-m", "vhostnet", "chardev", "--replace-node")
    assert status == 4
    assert "another CUSE device" in output
    assert rdev(bed) != KERNELS


def test_reads_that_wait(said: dict[str, Any]) -> None:
    assert said["reading"] == {
        "no IOTLB": "EBADFD",
        "signal": "interrupted",
        "after the signal": "EINVAL",
        "waits": True,
        "reset": ["EBADFD"],
        "must not wait": "EAGAIN",
        "seek": 0,
    }


def test_a_miss_wakes_who_waits_for_it(said: dict[str, Any]) -> None:
    readable = {"early": False, "woken": [[1]]}
    assert said["misses"] == {
        "read": {"early": False, "woken": [72]},
        "poll": readable,
        "epoll": readable,
        "sent": ["0:60", "1:60", "2:60"],
    }


def test_many_processes_have_many_devices_at_once(said: dict[str, Any]) -> None:
    assert said["processes"] == [30] * 4


def test_the_daemon_does_not_wait_for_itself(said: dict[str, Any]) -> None:
    assert said["own files"] == {"refused": ["EINVAL"], "answers": True}


def test_the_owner_is_a_process_until_its_exec_or_end(said: dict[str, Any]) -> None:
    assert said["owners"] == {
        "after exec": "EPERM",
        "after its end": "ok",
        "status of a child": 0,
        "the owner still": "ok",
    }


@pytest.mark.usefixtures("chardev")
def test_scenarios_of_the_oracle_come_out_as_in_linux(bed: Bed) -> None:
    found = bed.result("-m", "oracle.session", *QUICK)
    assert found["failures"] == {}
    assert found["outcomes"].keys() == set(QUICK)
    assert judged(found["outcomes"]) == {}


SCRAPING = f"""
import json, os
from scrape import Scrape
files = [os.open({NODE!r}, os.O_RDWR) for _ in range(3)]
seen = Scrape({METRICS.removeprefix("unix:")!r})
names = {{s.labels["device"] for s in seen.samples if s.name == "vhostnet_queue_packets_total"}}
print("RESULT", json.dumps({{"devices": seen.total("devices"), "names": len(names)}}))
"""


@pytest.mark.usefixtures("chardev")
def test_the_metrics_tell_of_each_open_file(bed: Bed) -> None:
    assert bed.result("-c", SCRAPING) == {"devices": 3, "names": 3}


def test_nothing_is_left_of_what_was_closed(bed: Bed, chardev: Chardev) -> None:
    bed.result(str(HERE / "door_session.py"), "1", "1")  # what is made once and kept
    descriptors, threads = chardev.n_descriptors(), chardev.n_threads()
    bed.result(str(HERE / "door_session.py"), "100", "50")
    assert chardev.n_descriptors() == descriptors
    assert chardev.n_threads() == threads


@LONG
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("chardev")
def test_all_scenarios_of_the_oracle_come_out_as_in_linux(bed: Bed) -> None:
    outcomes: dict[str, Any] = {}
    names = list(SCENARIOS)
    for at in range(0, len(names), 20):
        found = bed.result("-m", "oracle.session", *names[at : at + 20], timeout=900.0)
        assert found["failures"] == {}
        outcomes |= found["outcomes"]
    assert outcomes.keys() == SCENARIOS.keys()
    assert judged(outcomes) == {}


@LONG
@pytest.mark.timeout(3600)
def test_thousands_of_opens_and_descriptors_leave_nothing(bed: Bed, chardev: Chardev) -> None:
    descriptors, threads = chardev.n_descriptors(), chardev.n_threads()
    bed.result(str(HERE / "door_session.py"), "1000", "1000", timeout=1800.0)
    assert chardev.n_descriptors() == descriptors
    assert chardev.n_threads() == threads


@LONG
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("memory", ["shared", "private"])
def test_an_unmodified_qemu_boots_a_guest_on_it(bed: Bed, chardev: Chardev, memory: str) -> None:
    image = guest_image()
    kernel = image.kernel
    found = bed.result(
        str(HERE / "nested_session.py"),
        memory,
        kernel.release,
        str(kernel.vmlinuz),
        str(kernel.modules),
        str(image.initramfs),
        timeout=1500.0,
    )
    assert found["pings"] == [100, 100]
    assert found["sha-256 to host"]
    assert found["sha-256 to guest"]
    assert f"process {found['qemu']} is the owner" in chardev.log()


def test_a_crash_is_repaired_at_the_next_start_whatever_its_options(
    bed: Bed, chardev: Chardev
) -> None:
    assert rdev(bed) != KERNELS
    chardev.end("KILL")
    assert bed.guest.run(f"test -e {NODE}")[0] != 0
    status, said = bed.run("-m", "vhostnet", "chardev")
    assert status == 4
    assert "10:238" in said
    assert rdev(bed) == KERNELS


@LONG
def test_packed_rings_are_offered_on_request(bed: Bed) -> None:
    warm_for_any_processor(packed_rings=True)
    chardev = Chardev(bed, "--replace-node", "--packed-rings")
    said = bed.result(str(HERE / "packed_session.py"), "300")
    ways = {"the TAP": True, "the driver": True}
    assert said == {"shared": ways, "private": ways}
    assert chardev.end() == 0


@LONG
def test_at_the_end_the_static_node_is_back(bed: Bed, chardev: Chardev) -> None:
    running = chardev if chardev.status() is None else Chardev(bed, "--replace-node")
    assert rdev(bed) != KERNELS
    assert running.end() == 0
    assert rdev(bed) == KERNELS
    assert bed.guest.run("ls -A /dev/.vhost*")[0] != 0


def test_every_difference_has_a_row_in_the_document() -> None:
    text = " ".join((ROOT / "docs" / "differences.md").read_text().split())
    assert {d.reason for d in CHARDEV_DIFFERENCES} == REASONS.keys()
    assert [row for row in REASONS.values() if row not in text] == []
