"""The driver as a process: what goes into a TAP must have arrived; commands in turns."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest

from vhostnet.bench import own_driver


class Card:
    """A driver whose sender got *completed* packets back."""

    def __init__(self, completed: int, all_back: bool = True) -> None:
        self.completed, self.all_back = completed, all_back

    def start(self, *, post_rx: bool) -> None:
        assert not post_rx

    def sender(self, _frame: bytes) -> Card:
        return self

    def run(self, *, seconds: float) -> SimpleNamespace:
        return SimpleNamespace(rate=seconds * 1e6, kicks=3, waits=4)

    def finish(self) -> bool:
        return self.all_back

    def counters(self) -> dict[str, int]:
        return {"completed": self.completed}


def send(card: Card, taken: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The interface has counted seven packets before, and so many more after."""
    counted = iter([7, 7 + taken])
    monkeypatch.setattr(own_driver, "link_columns", lambda _name: [999, next(counted), 999])
    args = argparse.Namespace(tap="tap0", size=64, seconds=2.0)
    return dict(own_driver.send(args, card))  # type: ignore[arg-type]


def test_what_came_back_is_what_the_tap_has_taken(monkeypatch) -> None:
    assert send(Card(50), 50, monkeypatch) == {"mpps": 2.0, "kicks": 3, "waits": 4}


@pytest.mark.parametrize(
    ("card", "taken"),
    [(Card(50), 49), (Card(50), 51), (Card(0), 0), (Card(50, all_back=False), 50)],
    ids=["one was lost", "one is a stranger's", "nothing moved", "some did not come back"],
)
def test_anything_else_is_no_measurement(card, taken, monkeypatch) -> None:
    with pytest.raises(SystemExit, match=f"{card.completed} came back, tap0 has taken {taken}"):
        send(card, taken, monkeypatch)


def test_each_runs_commands_one_after_the_other(monkeypatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(own_driver, "connect", seen.append)
    own_driver.run(["each", "connect --size 1", "connect --private --tap 'a b'"])
    assert [(args.size, args.private, args.tap) for args in seen] == [
        (1, False, None),
        (64, True, "a b"),
    ]
