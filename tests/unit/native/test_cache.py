"""Where machine code is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhostnet.errors import HostError
from vhostnet.native import _jit

PLACES = ("CACHE_DIRECTORY", "XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", PLACES)
def test_the_environment_names_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/var/cache/vm")
    assert _jit.cache_root() == Path("/var/cache/vm/vhostnet/kernels")


def test_else_it_is_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/vm")
    assert _jit.cache_root() == Path("/home/vm/.cache/vhostnet/kernels")


def test_a_user_without_a_home_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(HostError, match="XDG_CACHE_HOME"):
        _jit.cache_root()
