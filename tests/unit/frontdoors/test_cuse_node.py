"""The node of a CUSE device: free, taken, moved aside, restored, repaired."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vhostnet.errors import HostError, UsageError
from vhostnet.frontdoors.cuse_node import CuseNode, NodeOptions, check_name

KERNELS = os.makedev(10, 238)
#: A number that the kernel has a device for, and one that it has none for.
ALIVE, OURS = os.makedev(1, 3), os.makedev(4095, 7)


class Place:
    """A /dev and a /sys/class/cuse of our own."""

    def __init__(self, folder: Path) -> None:
        self.dev, self.sys = folder / "dev", folder / "sys"
        self.dev.mkdir()
        self.sys.mkdir()
        self.path = self.dev / "vhost-net"
        self.aside = self.dev / ".vhost-net.vhostnet"

    def node(self, device: int, path: Path | None = None) -> None:
        try:
            os.mknod(path or self.path, stat.S_IFCHR | 0o600, device)
        except PermissionError:
            pytest.skip("needs root to make device nodes")

    def registered(self, device: int = OURS, *, node: bool = True) -> None:
        """What the kernel does at CUSE_INIT."""
        (self.sys / "vhost-net").mkdir()
        number = f"{os.major(device)}:{os.minor(device)}\n"
        (self.sys / "vhost-net" / "dev").write_text(number)
        if node:
            self.node(device)

    def unregistered(self, *, node: bool = True) -> None:
        """What it does at the end."""
        (self.sys / "vhost-net" / "dev").unlink()
        (self.sys / "vhost-net").rmdir()
        if node:
            self.path.unlink()

    def rdev(self) -> int:
        return os.stat(self.path).st_rdev

    def ours(self, **options: object) -> CuseNode:
        return CuseNode(NodeOptions(**options), dev=self.dev, sys_cuse=self.sys)  # type: ignore[arg-type]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_free_name_is_the_kernels_to_make(place: Place) -> None:
    node = place.ours(mode=0o640, gid=os.getgid())
    node.prepare()
    place.registered()
    node.settle()
    assert stat.S_IMODE(os.stat(place.path).st_mode) == 0o640
    place.unregistered()
    node.restore()
    assert list(place.dev.iterdir()) == []


def test_without_mode_and_group_the_node_is_left_as_it_is(place: Place) -> None:
    node = place.ours()
    node.prepare()
    place.registered()
    os.chmod(place.path, 0o604)
    node.settle()
    assert stat.S_IMODE(os.stat(place.path).st_mode) == 0o604


def test_where_dev_is_no_devtmpfs_the_node_is_made_and_taken_away(place: Place) -> None:
    place.node(OURS)  # may we?
    place.path.unlink()
    node = place.ours()
    node.prepare()
    place.registered(node=False)
    node.settle()
    assert place.rdev() == OURS
    place.unregistered(node=False)
    node.restore()
    assert list(place.dev.iterdir()) == []


def test_the_static_node_of_a_distribution_is_named_and_left(place: Place) -> None:
    place.node(KERNELS)
    with pytest.raises(HostError, match=r"10:238.*--replace-node.*--name"):
        place.ours().check()
    with pytest.raises(HostError):
        place.ours().prepare()
    assert place.rdev() == KERNELS


def test_a_node_that_is_replaced_comes_back(place: Place) -> None:
    place.node(KERNELS)
    node = place.ours(replace=True)
    node.check()
    assert place.rdev() == KERNELS
    node.prepare()
    assert not place.path.exists()
    place.registered()
    node.settle()
    assert place.rdev() == OURS
    place.unregistered()
    node.restore()
    assert place.rdev() == KERNELS
    assert list(place.dev.iterdir()) == [place.path]


def test_a_registration_that_fails_restores_too(place: Place) -> None:
    place.node(KERNELS)
    node = place.ours(replace=True)
    node.prepare()
    with pytest.raises(HostError, match="the kernel made no such device"):
        node.settle()
    node.restore()
    assert place.rdev() == KERNELS


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("left", ["nothing", "a node of ours that leads nowhere"])
def test_the_next_start_repairs_what_a_crash_has_left(
    place: Place, left: str, replace: bool
) -> None:
    place.node(KERNELS, place.aside)
    if left != "nothing":
        place.node(OURS)
    node = place.ours(replace=replace)
    if replace:
        node.check()
    else:
        with pytest.raises(HostError, match="10:238"):
            node.check()
    assert place.rdev() == KERNELS
    assert not place.aside.exists()


def test_a_repair_does_not_touch_a_node_that_leads_somewhere(place: Place) -> None:
    place.node(KERNELS, place.aside)
    place.node(ALIVE)
    with pytest.raises(HostError, match="1:3"):
        place.ours().check()
    assert place.rdev() == ALIVE
    assert place.aside.exists()


def test_a_name_that_another_cuse_device_has_is_left_alone(place: Place) -> None:
    place.node(KERNELS, place.aside)
    place.registered()
    with pytest.raises(HostError, match="another CUSE device"):
        place.ours(replace=True).check()
    assert place.rdev() == OURS
    assert place.aside.exists()


def test_a_file_is_not_replaced(place: Place) -> None:
    place.path.write_text("mine")
    with pytest.raises(HostError, match="no character device"):
        place.ours(replace=True).prepare()
    assert place.path.read_text() == "mine"


def test_a_node_that_comes_while_we_register_is_not_taken_for_ours(place: Place) -> None:
    node = place.ours()
    node.prepare()
    place.registered(node=False)
    place.node(KERNELS)
    with pytest.raises(HostError, match="has come meanwhile"):
        node.settle()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x", "x" * 32, "ä", "a\n", "a!b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize("name", ["vhost-net", "vhost_net.1", "x"])
def test_names(name: str) -> None:
    assert check_name(name) == name
