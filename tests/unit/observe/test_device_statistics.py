"""What can be read of a device from outside, and that it never goes backwards."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from instance import RX, TX, Instance, OneCard
from vhostnet.backends import open_backend
from vhostnet.datapath.layout import COUNTERS, WORKER_COUNTERS
from vhostnet.frontdoors.vhost_user_device import VhostUserDevice
from vhostnet.observe.statistics import device_statistics

FRAME = bytes(60)


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance().start()
    yield made
    made.close()


def send(instance: Instance, n: int) -> None:
    for _ in range(n):
        instance.tx.send(bytes(instance.hdr_len) + FRAME)
    instance.kick(TX)


def test_the_tree_tells_what_the_worker_has_counted(instance: Instance) -> None:
    send(instance, 3)
    tree = device_statistics(OneCard(instance.net))
    [pair] = tree["pairs"]
    assert pair["tx"]["counters"]["packets"] == 3
    assert pair["tx"]["counters"]["bytes"] == 3 * (instance.hdr_len + len(FRAME))
    assert pair["tx"]["active"] is True
    assert pair["tx"]["size"] == 16
    assert pair["rx"]["counters"]["packets"] == 0
    assert pair["worker"]["runs"] > 0


def test_the_tree_has_every_counter_and_is_fit_for_json(instance: Instance) -> None:
    tree = json.loads(json.dumps(device_statistics(OneCard(instance.net))))
    [pair] = tree["pairs"]
    for direction in ("rx", "tx"):
        assert set(pair[direction]["counters"]) == set(COUNTERS)
    assert set(pair["worker"]) == {*WORKER_COUNTERS, "busy_ns", "idle_ns"}


def test_counters_go_on_over_owners(instance: Instance) -> None:
    send(instance, 3)
    before = device_statistics(OneCard(instance.net))["pairs"][0]
    instance.net.reset_owner()
    without = device_statistics(OneCard(instance.net))["pairs"][0]
    assert without["tx"]["counters"] == before["tx"]["counters"]
    assert without["worker"]["runs"] >= before["worker"]["runs"]
    assert instance.net.tx.counters()["packets"] == 0  # those of the new owner, who did nothing
    instance.net.set_owner(1)
    again = device_statistics(OneCard(instance.net))["pairs"][0]
    for name, count in without["worker"].items():
        assert again["worker"][name] >= count, name


def test_counters_go_on_over_a_change_of_the_rings_format(instance: Instance) -> None:
    send(instance, 3)
    for index in (RX, TX):
        instance.net.set_backend(index, None)
    packed = 1 << 34
    instance.net.set_features(instance.net.features | packed)
    assert device_statistics(OneCard(instance.net))["pairs"][0]["tx"]["counters"]["packets"] == 3


def test_a_workers_time_is_busy_or_idle_and_both_only_grow(instance: Instance) -> None:
    last = (0, 0)
    for _ in range(20):
        send(instance, 1)
        worker = instance.net.worker_counters()
        now = (worker["busy_ns"], worker["idle_ns"])
        assert now[0] >= last[0]
        assert sum(now) >= sum(last)
        last = now
    assert last[0] > 0


def test_a_vhost_user_device_can_be_read_before_any_front_end_came() -> None:
    device = VhostUserDevice(
        open_backend("null", 2, False, False),
        queue_pairs=2,
        name="dev0",
        call_later=lambda _s, _f: None,
    )
    tree = device_statistics(device)
    assert (tree["name"], tree["backend"], len(tree["pairs"])) == ("dev0", "null", 2)
    assert [pair["name"] for pair in tree["pairs"]] == ["dev0.0", "dev0.1"]
    assert all(pair["worker"] == {} for pair in tree["pairs"])
    device.close()
