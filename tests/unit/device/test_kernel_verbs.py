"""The kernel's view of a device: preconditions in Linux's order, each with its errno."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oracle.our_device import OurMemory
from vhostnet.device.kernel_verbs import KernelVerbs, without_overlaps
from vhostnet.device.linux_abi import LINUX_ABIS, linux_abi
from vhostnet.device.memory import Mapping, Region
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import PeerError, UsageError
from vhostnet.uapi.vhost import (
    MSG,
    VHOST_IOTLB_MSG_V2,
    VHOST_IOTLB_UPDATE,
    IotlbMsg,
    MemoryRegion,
    Msg,
    VringAddr,
)
from vhostnet.uapi.virtio import VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1, mask
from vhostnet_frontend import GuestMemory, SplitRing

V1 = mask(VIRTIO_F_VERSION_1)
WORD = 1 << 64


class Opened:
    """An open device and guest memory, owned unless told otherwise."""

    def __init__(self, abi: str = "newest") -> None:
        self.memory = GuestMemory(1 << 20)
        self.owner = OurMemory()
        self.owner.note(self.memory, True)
        self.net = VhostNet("test", abi)
        self.verbs = KernelVerbs(self.net, lambda _pid: self.owner)

    @property
    def table(self) -> list[MemoryRegion]:
        return [MemoryRegion(r.gpa, r.size, r.uva, 0) for r in self.memory.regions]

    def close(self) -> None:
        self.verbs.close()
        self.memory.close()


@pytest.fixture
def opened() -> Iterator[Callable[..., Opened]]:
    made: list[Opened] = []

    def make(abi: str = "newest", *, owner: bool = True) -> Opened:
        made.append(Opened(abi))
        if owner:
            made[-1].verbs.set_owner(os.getpid())
        return made[-1]

    yield make
    for device in made:
        device.close()


def refusal(call: Callable[..., Any], *arguments: Any) -> int:
    with pytest.raises(PeerError) as refused:
        call(*arguments)
    return refused.value.errno


def test_without_an_owner_every_verb_but_features_is_eperm(opened) -> None:
    verbs = opened(owner=False).verbs
    calls: list[tuple[Any, ...]] = [
        (verbs.set_mem_table, []),
        (verbs.set_log_base, 0),
        (verbs.set_log_fd, 999),
        (verbs.set_vring_num, 9, 3),
        (verbs.get_vring_base, 9),
        (verbs.set_vring_addr, VringAddr(9, 2, 1, 1, 1, 1)),
        (verbs.set_vring_kick, 9, 999),
        (verbs.set_backend, 9, 999),
        (verbs.reset_owner,),
    ]
    assert [refusal(*call) for call in calls] == [errno.EPERM] * len(calls)
    verbs.set_features(V1)
    verbs.set_backend_features(verbs.get_backend_features())


def test_a_third_ring_is_enobufs_whatever_else_is_wrong(opened) -> None:
    verbs = opened().verbs
    assert refusal(verbs.set_vring_num, 2, 3) == errno.ENOBUFS
    assert refusal(verbs.set_vring_kick, 2, 999) == errno.ENOBUFS
    assert refusal(verbs.set_backend, 2, 999) == errno.ENOBUFS


@pytest.mark.parametrize("abi", LINUX_ABIS)
def test_only_the_features_of_the_version_are_taken(opened, abi: str) -> None:
    verbs = opened(abi).verbs
    verbs.set_features(verbs.get_features())
    for bit in range(64):
        if not verbs.get_features() >> bit & 1:
            assert refusal(verbs.set_features, 1 << bit) == errno.EOPNOTSUPP


def test_the_offered_features_are_those_of_linux() -> None:
    assert hex(LINUX_ABIS["6.1"].features) == "0x33d008000"
    assert hex(LINUX_ABIS["6.12"].features) == "0x1033d008000"
    assert hex(LINUX_ABIS["newest"].features) == "0x10b3d008000"


def test_a_version_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"6\.1, 6\.12, newest"):
        linux_abi("5.4")


def test_the_features_array_keeps_its_first_words_and_zeroes_the_rest(opened) -> None:
    verbs = opened().verbs
    assert verbs.get_features_array(5) == [verbs.get_features(), 0, 0, 0, 0]
    assert verbs.get_features_array(0) == []
    verbs.set_features_array([V1, 0])
    assert refusal(verbs.set_features_array, [V1, 0, 1]) == errno.EOPNOTSUPP


def test_before_6_17_the_features_array_is_an_unknown_ring_ioctl(opened) -> None:
    verbs = opened("6.12").verbs
    assert refusal(verbs.get_features_array, 1) == errno.ENOTTY
    assert refusal(verbs.get_features_array, 2) == errno.ENOBUFS


def test_the_checks_of_a_memory_table_come_in_order(opened) -> None:
    device = opened()
    wraps = MemoryRegion(WORD - 4096, 8192, 0, 0)
    assert refusal(device.verbs.set_mem_table, [wraps] * 65, 1) == errno.EOPNOTSUPP
    assert refusal(device.verbs.set_mem_table, [wraps] * 65) == errno.E2BIG
    assert refusal(device.verbs.set_mem_table, [*device.table, wraps]) == errno.EFAULT
    assert refusal(device.verbs.set_mem_table, [MemoryRegion(1, 0, 0, 0)]) == errno.EFAULT
    device.verbs.set_mem_table([MemoryRegion(0, 0, 0, 0)])
    device.verbs.set_mem_table([])


def test_overlapping_regions_are_cut_in_favour_of_the_lowest_start() -> None:
    def region(gpa: int, size: int) -> Region:
        return Region(gpa, size, gpa + 1000, (0, 0, 0), gpa + 5000, Mapping(0, 0))

    cut = without_overlaps([region(50, 100), region(0, 100), region(10, 20)])
    assert [(r.gpa, r.size, r.uva, r.hva) for r in cut] == [
        (0, 100, 1000, 5000),
        (100, 50, 1100, 5100),
    ]


def test_the_checks_of_set_backend_come_in_order(opened) -> None:
    device = opened()
    verbs = device.verbs
    assert refusal(verbs.set_backend, 0, -1) == errno.EFAULT  # no memory table
    verbs.set_mem_table(device.table)
    verbs.set_backend(0, -1)
    verbs.set_vring_addr(VringAddr(0, 0, WORD - 4096, 0, 0, 0))
    assert refusal(verbs.set_backend, 0, -1) == errno.EFAULT
    assert refusal(verbs.set_backend, 0, 999) == errno.EFAULT
    verbs.set_vring_addr(SplitRing(device.memory, 8).addr(0))
    assert refusal(verbs.set_backend, 0, 999) == errno.ENOTSOCK


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_socket_that_is_no_tap_is_enotsock_and_is_not_kept(opened, kind: int) -> None:
    device = opened()
    device.verbs.set_mem_table(device.table)
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_INET, kind) as made:
        for _ in range(100):
            assert refusal(device.verbs.set_backend, 0, made.fileno()) == errno.ENOTSOCK
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_are_copied_and_stay_the_callers(opened) -> None:
    verbs = opened().verbs
    before = len(os.listdir("/proc/self/fd"))
    fd = os.eventfd(0)
    for _ in range(50):
        verbs.set_vring_kick(0, fd)
        verbs.set_vring_call(0, fd)
        verbs.set_vring_err(0, fd)
        verbs.set_log_fd(fd)
    os.eventfd_write(fd, 1)
    for verb in (verbs.set_vring_kick, verbs.set_vring_call, verbs.set_vring_err):
        verb(0, -1)
        assert refusal(verb, 0, -2) == errno.EBADF
        assert refusal(verb, 0, 999) == errno.EBADF
        assert refusal(verb, 0, 0) in (errno.EINVAL, errno.EBADF)
    verbs.set_log_fd(-1)
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def test_ring_addresses_are_checked_flags_first(opened) -> None:
    verbs = opened().verbs
    assert refusal(verbs.set_vring_addr, VringAddr(0, 2, 0, 1, 1, 1)) == errno.EOPNOTSUPP
    for used, avail, log in ((2, 0, 0), (0, 1, 0), (0, 0, 2)):
        assert refusal(verbs.set_vring_addr, VringAddr(0, 0, 1, used, avail, log)) == errno.EINVAL
    verbs.set_vring_addr(VringAddr(0, 1, 1, 4, 2, 4))


def test_the_busyloop_timeout_is_remembered_until_the_owner_is_reset(opened) -> None:
    verbs = opened().verbs
    verbs.set_vring_busyloop_timeout(1, 2**32 - 1)
    assert verbs.get_vring_busyloop_timeout(1) == 2**32 - 1
    verbs.reset_owner()
    assert refusal(verbs.get_vring_busyloop_timeout, 1) == errno.EPERM
    verbs.set_owner(os.getpid())
    assert verbs.get_vring_busyloop_timeout(1) == 0


def test_reset_owner_leaves_an_empty_table_and_no_header(opened) -> None:
    device = opened()
    device.verbs.set_features(V1)
    device.verbs.reset_owner()
    device.verbs.set_owner(os.getpid())
    device.verbs.set_backend(0, -1)  # EFAULT on a fresh one
    assert int(device.net.tx.vq["hdr_len"]) == 0


def message(body: IotlbMsg, outer: int = VHOST_IOTLB_MSG_V2) -> bytes:
    return MSG.pack(Msg(outer, 0, body))


def test_iotlb_messages_are_refused_for_their_form_before_their_meaning(opened) -> None:
    device = opened()
    uva = device.memory.regions[0].uva
    good = IotlbMsg(0x1000, 4096, uva, 3, VHOST_IOTLB_UPDATE)
    empty = IotlbMsg(0x1000, 0, uva, 3, VHOST_IOTLB_UPDATE)
    assert refusal(device.verbs.messages.write, message(good)[:39]) == errno.EINVAL
    assert refusal(device.verbs.messages.write, message(good, 3)) == errno.EINVAL
    assert refusal(device.verbs.messages.write, message(empty)) == errno.EINVAL
    assert refusal(device.verbs.messages.write, message(good)) == errno.EFAULT  # there is no IOTLB
    device.verbs.set_features(V1 | mask(VIRTIO_F_ACCESS_PLATFORM))
    assert device.verbs.messages.write(message(good)[:40]) == MSG.size
    assert refusal(device.verbs.messages.write, message(IotlbMsg(0, 1, 0, 3, 7))) == errno.EFAULT


def test_a_miss_is_read_once_and_has_no_stray_bytes(opened) -> None:
    device = opened()
    device.verbs.set_features(V1 | mask(VIRTIO_F_ACCESS_PLATFORM))
    assert refusal(device.verbs.messages.read, 72) == errno.EAGAIN
    device.net.on_iotlb_miss(0x1234, 2)
    assert device.verbs.messages.readable()
    assert device.verbs.messages.read(71) == b""
    data = device.verbs.messages.read(72)
    assert data == message(IotlbMsg(0x1234, 0, 0, 2, 1), 1)
    assert not any(data[34:])
    assert not device.verbs.messages.readable()


def test_a_miss_has_the_form_that_the_backend_features_ask_for(opened) -> None:
    device = opened()
    device.verbs.set_features(V1 | mask(VIRTIO_F_ACCESS_PLATFORM))
    forms = []
    for features in (0, device.verbs.get_backend_features(), 0):
        device.verbs.set_backend_features(features)
        device.net.on_iotlb_miss(0x1000, 1)
    device.verbs.set_backend_features(device.verbs.get_backend_features())
    for _ in range(3):  # as it was when the miss was
        forms.append(int.from_bytes(device.verbs.messages.read(72)[:4], "little"))
    assert forms == [1, 2, 1]
    device.verbs.reset_owner()
    device.verbs.set_features(V1 | mask(VIRTIO_F_ACCESS_PLATFORM))
    device.net.on_iotlb_miss(0x1000, 1)
    assert device.verbs.messages.read(72)[:4] == b"\1\0\0\0"


@pytest.mark.parametrize(("abi", "written"), [("6.1", 0), ("6.12", 0), ("newest", 1)])
def test_num_buffers_without_mergeable_buffers_is_a_matter_of_the_version(abi, written) -> None:
    net = VhostNet("test", abi)
    net.set_features(V1)
    assert int(net.rx.vq["set_num_buffers"]) == written


@pytest.mark.parametrize(("abi", "stays"), [("6.1", True), ("6.12", False), ("newest", False)])
def test_the_iotlb_goes_with_its_feature_since_some_version(abi, stays) -> None:
    net = VhostNet("test", abi)
    net.set_features(V1 | mask(VIRTIO_F_ACCESS_PLATFORM))
    net.set_features(V1)
    assert (net.iotlb is not None) == stays
