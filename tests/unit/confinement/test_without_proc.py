"""A host, or a profile of it, that does not let /proc be looked at."""

from __future__ import annotations

import errno
import os

import pytest

from vhostnet.confinement import descriptors, kernel_raw, namespaces
from vhostnet.confinement.stage import Missing


@pytest.fixture
def no_proc(monkeypatch):
    def refuse(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", refuse)


@pytest.mark.usefixtures("no_proc")
def test_strays_cannot_be_found():
    with pytest.raises(Missing, match="/proc/self/fd: Permission denied"):
        descriptors.close_strays(())


@pytest.mark.usefixtures("no_proc")
def test_namespaces_are_tried(monkeypatch):
    def refuse(_flags: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(kernel_raw, "unshare", refuse)
    with pytest.raises(Missing, match="no user namespaces here"):
        namespaces.leave_host()
