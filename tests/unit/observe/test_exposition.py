"""What Prometheus reads: accepted by its own parser, names frozen, values those of the records."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from instance import RX, TX, Instance, OneCard
from vhostnet.backends import open_backend
from vhostnet.backends.backend import Backend
from vhostnet.datapath.codes import RING_ERROR_RULES
from vhostnet.datapath.layout import BACKEND_COUNTERS, COUNTERS, WORKER_COUNTERS
from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
from vhostnet.observe import exposition

DASHBOARD = Path(__file__).parents[3] / "packaging" / "grafana" / "vhostnet.json"

#: A contract: a name that goes breaks somebody's dashboard.  New ones may be added.
NAMES = {
    "vhostnet_backend_merged_frames_total",
    "vhostnet_backend_merged_segments_total",
    "vhostnet_backend_read_errors_total",
    "vhostnet_backend_stashed_segments_total",
    "vhostnet_backend_thrown_away_packets_total",
    "vhostnet_backend_write_errors_total",
    "vhostnet_build_info",
    "vhostnet_devices",
    "vhostnet_interface_dropped_packets_total",
    "vhostnet_queue_active",
    "vhostnet_queue_batch_packets_bucket",
    "vhostnet_queue_batch_packets_count",
    "vhostnet_queue_batch_packets_sum",
    "vhostnet_queue_bytes_total",
    "vhostnet_queue_calls_suppressed_total",
    "vhostnet_queue_calls_total",
    "vhostnet_queue_chains_total",
    "vhostnet_queue_dropped_packets_total",
    "vhostnet_queue_gso_packets_total",
    "vhostnet_queue_iotlb_misses_total",
    "vhostnet_queue_kick_to_used_seconds_bucket",
    "vhostnet_queue_kick_to_used_seconds_count",
    "vhostnet_queue_kick_to_used_seconds_sum",
    "vhostnet_queue_kicks_avoided_total",
    "vhostnet_queue_kicks_total",
    "vhostnet_queue_packets_total",
    "vhostnet_queue_ring_errors_total",
    "vhostnet_queue_size",
    "vhostnet_queue_waits_total",
    "vhostnet_worker_busy_poll_hits_total",
    "vhostnet_worker_busy_polls_total",
    "vhostnet_worker_busy_seconds_total",
    "vhostnet_worker_handler_runs_total",
    "vhostnet_worker_idle_seconds_total",
    "vhostnet_worker_polls_total",
    "vhostnet_worker_wakeups_total",
}
LABELS = {"device", "queue", "direction", "reason", "cause", "rule", "le", "version"}


class Interface(Backend):
    """A backend of which the kernel has dropped packets."""

    def interface_drops(self) -> dict[str, int]:
        return {"rx": 3, "tx": 1}


def card_of(instance: Instance) -> OneCard:
    card = OneCard(instance.net)
    card.backend = Interface([instance.queue])
    return card


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance(coalesce=True).start()
    yield made
    made.close()


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[name, tuple(sorted(labels.items()))]


def test_the_names_are_those_that_were_promised(instance: Instance) -> None:
    found = samples(exposition.render([card_of(instance)]))
    assert {name for name, _ in found} == NAMES
    assert {label for _, labels in found for label, _ in labels} <= LABELS


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (prometheus)")
def test_promtool_has_nothing_to_say(instance: Instance) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition.render([OneCard(instance.net)]),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_counter_of_the_data_path_is_told() -> None:
    ring = exposition._RING.keys() | exposition._WAITS.keys() | exposition._DROPS.keys()
    assert ring | {"ring_errors"} == set(COUNTERS)  # ring_errors is the sum over its rules
    assert exposition._WORKER.keys() == WORKER_COUNTERS.keys()
    assert exposition._BACKEND.keys() == BACKEND_COUNTERS.keys()


def test_counters_end_in_total_and_nothing_else_does(instance: Instance) -> None:
    text = exposition.render([card_of(instance)]).decode()
    for family in text_string_to_metric_families(text):
        names = {sample.name for sample in family.samples}
        assert family.documentation
        if family.type == "counter":
            assert names == {family.name + "_total"}
        else:
            assert not any(name.endswith("_total") for name in names)


def test_values_are_those_of_the_records(instance: Instance) -> None:
    for _ in range(3):
        instance.tx.send(bytes(12) + bytes(60))
    instance.kick(TX)
    instance.rx.post(2000)
    instance.arrive(bytes(12) + bytes(100))
    instance.tx.offer(99)
    instance.kick(TX)
    text = exposition.render([OneCard(instance.net)])
    at = {"device": "test", "queue": "0"}
    for direction, ring, index in (("rx", instance.net.rx, RX), ("tx", instance.net.tx, TX)):
        here = {**at, "direction": direction}
        for name in ("packets", "bytes", "kicks", "chains"):
            told = value(text, f"vhostnet_queue_{name}_total", **here)
            assert told == instance.counter(index, name)
        for rule in RING_ERROR_RULES:
            told = value(text, "vhostnet_queue_ring_errors_total", **here, rule=rule)
            assert told == ring.errors()[rule]
    tx = {**at, "direction": "tx"}
    assert value(text, "vhostnet_queue_packets_total", **tx) == 3
    assert value(text, "vhostnet_queue_ring_errors_total", **tx, rule="bad_head") == 1
    assert value(text, "vhostnet_queue_batch_packets_bucket", **tx, le="2.0") == 0
    assert value(text, "vhostnet_queue_batch_packets_bucket", **tx, le="4.0") == 1
    assert value(text, "vhostnet_queue_batch_packets_bucket", **tx, le="+Inf") == 1
    assert value(text, "vhostnet_queue_batch_packets_sum", **tx) == 3
    assert value(text, "vhostnet_queue_kick_to_used_seconds_count", **tx) == 1
    assert 0 < value(text, "vhostnet_queue_kick_to_used_seconds_sum", **tx) < 60


def test_what_the_kernel_dropped_is_told_by_the_guests_direction(instance: Instance) -> None:
    text = exposition.render([card_of(instance)])
    for direction, count in (("rx", 3), ("tx", 1)):
        name = "vhostnet_interface_dropped_packets_total"
        assert value(text, name, device="test", direction=direction) == count
    assert b"interface_dropped_packets_total{" not in exposition.render([OneCard(instance.net)])


def test_many_devices_and_pairs_are_told_apart() -> None:
    devices = [
        VhostUserDevice(
            open_backend("null", 2, False, False),
            queue_pairs=2,
            name=name,
            call_later=lambda _seconds, _function: None,
        )
        for name in ("vm1", 'vm"2\\\n')  # as an operator may call it
    ]
    found = samples(exposition.render(devices))
    assert found["vhostnet_devices", ()] == 2
    named = {
        (dict(labels)["device"], dict(labels)["queue"])
        for name, labels in found
        if name == "vhostnet_queue_packets_total"
    }
    assert named == {("vm1", "0"), ("vm1", "1"), ('vm"2\\\n', "0"), ('vm"2\\\n', "1")}
    for device in devices:
        device.close()


def test_no_devices_are_told_as_well() -> None:
    assert samples(exposition.render([]))["vhostnet_devices", ()] == 0


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    variables = dashboard["templating"]["list"]
    expressions += [one["query"] for one in variables if one["type"] == "query"]
    assert len(expressions) > 10
    for expression in expressions:
        asked = set(re.findall(r"\bvhostnet_\w+", expression))
        assert asked, expression
        assert asked <= NAMES, expression
        matchers = re.findall(r"(\w+)\s*=~?\s*\"", expression)
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        labels = {*matchers, *(name.strip() for group in grouped for name in group.split(","))}
        assert labels - {"instance"} <= LABELS, expression


def test_the_dashboard_shows_every_cause_of_trouble() -> None:
    text = DASHBOARD.read_text()
    for name in ("dropped_packets", "waits", "ring_errors", "kick_to_used_seconds", "busy_seconds"):
        assert f"vhostnet_queue_{name}" in text or f"vhostnet_worker_{name}" in text
