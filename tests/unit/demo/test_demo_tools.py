"""Where the demo keeps what it has fetched."""

from __future__ import annotations

import pwd

import pytest

from vhostnet.demo.tools import cache_dir
from vhostnet.errors import HostError


def test_a_user_without_a_home_is_told_what_to_set(tmp_path, monkeypatch) -> None:
    def nobody(_uid: int) -> None:
        raise KeyError

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(HostError, match="set XDG_CACHE_HOME"):
        cache_dir("guest")
    assert list(tmp_path.iterdir()) == [], "such as a folder called ~"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir("guest") == tmp_path / "vhostnet" / "guest"
