"""nested: what is started in the VM, and what is made of its answers.  No VM here."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace, TracebackType

import pytest

from vhostnet.bench.model import OURS, Run
from vhostnet.bench.workloads import nested
from vhostnet.bench.workloads.nested import LINUX, METRICS, NESTED, PARTS, commands, rates
from vhostnet.errors import HostError

SAID = "".join(json.dumps({"mpps": mpps, "kicks": 1}) + "\n" for mpps in (0.1, 0.2, 0.3, 0.4))
RATES = {"shared_64": 100.0, "private_64": 200.0, "shared_1500": 300.0, "private_1500": 400.0}


def test_each_number_is_of_a_command_of_its_own() -> None:
    device = "send --device /dev/vhost-net --tap tap0 --seconds 2.5 --size"
    assert dict(zip(PARTS, commands(2.5), strict=True)) == {
        "shared_64": f"{device} 64",
        "private_64": f"{device} 64 --private",
        "shared_1500": f"{device} 1500",
        "private_1500": f"{device} 1500 --private",
    }
    assert [metric.key for metric in METRICS] == list(PARTS)
    assert not any(metric.bars for metric in METRICS)


def test_answers_are_taken_in_order_whatever_is_said_between() -> None:
    assert rates("a warning\n" + SAID) == pytest.approx(RATES)
    with pytest.raises(HostError, match="3 of 4 answers"):
        rates("\n".join(SAID.splitlines()[:3]))


class Vm(AbstractContextManager["Vm"]):
    """Writes down what it is told; its driver says what it was made with."""

    def __init__(self, status: int = 0, said: str = SAID) -> None:
        self.answer = status, said
        self.guest = SimpleNamespace(process=SimpleNamespace(args=["qemu", Path("/k/vmlinuz")]))
        self.modules: tuple[str, ...] = ()
        self.done: list[str] = []
        self.ended = False

    def __call__(self, _folder: Path, modules: tuple[str, ...]) -> Vm:
        self.modules = modules
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended = True

    def chardev(self, host: Vm) -> SimpleNamespace:
        assert host is self
        self.done.append("chardev")
        return SimpleNamespace(check_running=lambda: self.done.append("still there"))

    def tool(self, *words: str) -> None:
        self.done.append(" ".join(words))

    def run(self, *words: str) -> tuple[int, str]:
        self.done.append(words[2])
        return self.answer


def run_side(side: str, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], Run]:
    monkeypatch.setattr(nested, "NestedHost", vm)
    monkeypatch.setattr(nested, "Chardev", vm.chardev)
    monkeypatch.setattr(nested, "warm_for_any_processor", lambda: None)
    monkeypatch.setattr(nested, "run_for_any_processor", lambda *_: None)
    run = Run(1.0, 0, 1, False, Path("/room"))
    return dict(NESTED.cases()[0].sides[side](run)), run


NETWORK = [
    "ip tuntap add dev tap0 mode tap vnet_hdr",
    "ip address add 192.0.2.1/24 dev tap0",
    "ip link set dev tap0 up",
]


def test_our_device_is_served_where_the_kernels_is_not_loaded(monkeypatch) -> None:
    vm = Vm()
    found, run = run_side(OURS, vm, monkeypatch)
    assert found == pytest.approx(RATES)
    assert vm.modules == ("cuse", "tun")
    assert vm.done == [*NETWORK, "chardev", "each", "still there"]
    assert vm.ended
    assert run.commands[:2] == ["qemu /k/vmlinuz", "modprobe cuse"]
    assert run.commands[2:5] == NETWORK
    assert run.commands[5] == "vhostnet chardev"
    assert run.commands[6].startswith("python -m vhostnet.bench.own_driver each 'send --device ")
    assert len(run.commands) == 7


def test_the_peer_is_the_kernels_module_and_nothing_of_ours(monkeypatch) -> None:
    vm = Vm()
    found, _ = run_side(LINUX, vm, monkeypatch)
    assert found == pytest.approx(RATES)
    assert vm.modules == ("vhost_net", "tun")
    assert vm.done == [*NETWORK, "each"]


def test_a_driver_that_fails_is_an_error_with_its_last_words_and_the_vm_ends(monkeypatch) -> None:
    vm = Vm(1, SAID + "own_driver: 5 came back, tap0 has taken 4\n")
    with pytest.raises(HostError, match="in the VM: own_driver: 5 came back, tap0 has taken 4"):
        run_side(OURS, vm, monkeypatch)
    assert vm.ended
