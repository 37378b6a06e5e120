"""Every ioctl of the character device: what it does, and which errno wins.

The order of checks is Linux's: see vhost_ioctl.py.  The caller is a dictionary of pages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from oracle.our_device import OurMemory
from vhostnet.device.kernel_verbs import KernelVerbs
from vhostnet.device.linux_abi import LINUX_ABIS
from vhostnet.device.vhost_net import VhostNet
from vhostnet.errors import PeerError
from vhostnet.frontdoors.vhost_ioctl import VhostFile
from vhostnet.uapi import vhost
from vhostnet.uapi.virtio import VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1, mask
from vhostnet_frontend import GuestMemory, SplitRing

PAGE = 4096
#: Where the caller has memory; a page before it and one behind there is none.
AT = 0x10000
SIZE = 4 * PAGE
END = AT + SIZE
V1 = mask(VIRTIO_F_VERSION_1)
BAD = (0, END, END - 1, (1 << 64) - 4, 0xFFFF800000000000)


@dataclass
class Caller:
    """A process with four pages of memory, of which the last is read-only."""

    pid: int = field(default_factory=os.getpid)
    memory: bytearray = field(default_factory=lambda: bytearray(SIZE))
    writable: int = SIZE - PAGE
    asked: list[int] = field(default_factory=list)

    def _span(self, address: int, size: int, end: int) -> slice:
        if not AT <= address <= address + size <= end:
            raise PeerError("cannot be reached", errno.EFAULT)
        return slice(address - AT, address - AT + size)

    def read(self, address: int, size: int) -> bytes:
        if size == 0:
            return b""
        return bytes(self.memory[self._span(address, size, END)])

    def write(self, address: int, data: bytes) -> None:
        if data:
            self.memory[self._span(address, len(data), AT + self.writable)] = data

    def descriptor(self, fd: int) -> int:
        self.asked.append(fd)
        try:
            return os.dup(fd) if fd >= 0 else os.dup(1 << 20)
        except OSError:
            raise PeerError("not open", errno.EBADF) from None

    def put(self, form: str, *words: int, at: int = AT) -> int:
        """Where a struct was put."""
        data = struct.pack("=" + form, *words)
        self.memory[at - AT : at - AT + len(data)] = data
        return at

    def get(self, form: str, at: int = AT) -> tuple[int, ...]:
        return struct.unpack_from("=" + form, self.memory, at - AT)


class Opened:
    def __init__(self, abi: str) -> None:
        self.guest = GuestMemory(1 << 20)
        self.owner = OurMemory()
        self.owner.note(self.guest, True)
        self.owner.log = lambda _address: (0, 0)  # type: ignore[method-assign]
        self.net = VhostNet("test", abi)
        self.file = VhostFile(KernelVerbs(self.net, lambda _pid: self.owner))
        self.caller = Caller()

    def call(self, number: int, form: str = "", *words: int, caller: Caller | None = None) -> int:
        """The errno, 0 for none, of an ioctl with a struct as its argument."""
        by = caller or self.caller
        return self.at(number, by.put(form, *words), by)

    def at(self, number: int, argument: int, caller: Caller | None = None) -> int:
        """The errno, 0 for none, of an ioctl with any argument."""
        try:
            assert self.file.ioctl(caller or self.caller, number, argument) == 0
        except PeerError as e:
            return e.errno
        return 0

    def set_table(self) -> None:
        regions = [w for r in self.guest.regions for w in (r.gpa, r.size, r.uva, 0)]
        n = len(self.guest.regions)
        assert self.call(vhost.VHOST_SET_MEM_TABLE, f"II{4 * n}Q", n, 0, *regions) == 0

    def close(self) -> None:
        self.file.release()
        self.guest.close()


@pytest.fixture
def opened() -> Iterator[Callable[..., Opened]]:
    made: list[Opened] = []

    def make(abi: str = "newest", *, owner: bool = True) -> Opened:
        made.append(Opened(abi))
        if owner:
            assert made[-1].at(vhost.VHOST_SET_OWNER, 0) == 0
        return made[-1]

    yield make
    for device in made:
        device.close()


#: Number and struct of every ioctl that an owner may make and that copies its argument in.
TAKES: dict[str, tuple[int, str]] = {
    "SET_MEM_TABLE": (vhost.VHOST_SET_MEM_TABLE, "II"),
    "SET_LOG_BASE": (vhost.VHOST_SET_LOG_BASE, "Q"),
    "SET_LOG_FD": (vhost.VHOST_SET_LOG_FD, "i"),
    "SET_VRING_NUM": (vhost.VHOST_SET_VRING_NUM, "II"),
    "SET_VRING_ADDR": (vhost.VHOST_SET_VRING_ADDR, "II4Q"),
    "SET_VRING_BASE": (vhost.VHOST_SET_VRING_BASE, "II"),
    "GET_VRING_BASE": (vhost.VHOST_GET_VRING_BASE, "II"),
    "SET_VRING_KICK": (vhost.VHOST_SET_VRING_KICK, "Ii"),
    "SET_VRING_CALL": (vhost.VHOST_SET_VRING_CALL, "Ii"),
    "SET_VRING_ERR": (vhost.VHOST_SET_VRING_ERR, "Ii"),
    "SET_VRING_BUSYLOOP_TIMEOUT": (vhost.VHOST_SET_VRING_BUSYLOOP_TIMEOUT, "II"),
    "GET_VRING_BUSYLOOP_TIMEOUT": (vhost.VHOST_GET_VRING_BUSYLOOP_TIMEOUT, "II"),
}
RINGS = {name: entry for name, entry in TAKES.items() if "VRING" in name}
#: Those that anybody may make.
ANYBODYS: dict[str, tuple[int, str]] = {
    "GET_FEATURES": (vhost.VHOST_GET_FEATURES, "Q"),
    "SET_FEATURES": (vhost.VHOST_SET_FEATURES, "Q"),
    "GET_BACKEND_FEATURES": (vhost.VHOST_GET_BACKEND_FEATURES, "Q"),
    "SET_BACKEND_FEATURES": (vhost.VHOST_SET_BACKEND_FEATURES, "Q"),
    "GET_FEATURES_ARRAY": (vhost.VHOST_GET_FEATURES_ARRAY, "QQ"),
    "SET_FEATURES_ARRAY": (vhost.VHOST_SET_FEATURES_ARRAY, "QQ"),
}
#: Not vhost-net's, or nobody's.
UNKNOWN = {
    "NEW_WORKER": vhost.VHOST_NEW_WORKER,
    "FREE_WORKER": vhost.VHOST_FREE_WORKER,
    "ATTACH_VRING_WORKER": vhost.VHOST_ATTACH_VRING_WORKER,
    "GET_VRING_WORKER": vhost.VHOST_GET_VRING_WORKER,
    "SET_VRING_ENDIAN": vhost.VHOST_SET_VRING_ENDIAN,
    "GET_VRING_ENDIAN": vhost.VHOST_GET_VRING_ENDIAN,
    "TCGETS": 0x5401,
    "of vhost's type": 0xAFFF,
    "SET_VRING_NUM of another size": vhost.VHOST_SET_VRING_NUM + 0x10000,
}


def test_the_table_is_complete() -> None:
    known = {*TAKES, *ANYBODYS, *UNKNOWN, "SET_OWNER", "RESET_OWNER", "NET_SET_BACKEND"}
    known |= {"SET_FORK_FROM_OWNER", "GET_FORK_FROM_OWNER"}
    assert set(vhost.IOCTL_NAMES.values()) <= known


# --- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TAKES, *UNKNOWN])
@pytest.mark.parametrize("argument", [0, AT, END])
def test_without_an_owner_all_is_eperm_before_anything_is_read(opened, name, argument) -> None:
    number = UNKNOWN[name] if name in UNKNOWN else TAKES[name][0]
    assert opened(owner=False).at(number, argument) == errno.EPERM


@pytest.mark.parametrize("name", [*TAKES, *UNKNOWN])
def test_somebody_else_is_eperm(opened, name) -> None:
    number = UNKNOWN[name] if name in UNKNOWN else TAKES[name][0]
    assert opened().at(number, END, Caller(pid=1)) == errno.EPERM


def test_a_second_owner_is_ebusy_whoever_it_is(opened) -> None:
    device = opened()
    assert device.at(vhost.VHOST_SET_OWNER, 0) == errno.EBUSY
    assert device.at(vhost.VHOST_SET_OWNER, 0, Caller(pid=1)) == errno.EBUSY


def test_reset_owner_is_the_owners(opened) -> None:
    device = opened()
    assert opened(owner=False).at(vhost.VHOST_RESET_OWNER, 0) == errno.EPERM
    assert device.at(vhost.VHOST_RESET_OWNER, 0, Caller(pid=1)) == errno.EPERM
    assert device.at(vhost.VHOST_RESET_OWNER, 0) == 0
    assert device.at(vhost.VHOST_RESET_OWNER, 0) == errno.EPERM
    assert device.at(vhost.VHOST_SET_OWNER, 0, Caller(pid=1)) == 0


@pytest.mark.parametrize("owner", [True, False])
@pytest.mark.parametrize("name", ANYBODYS)
def test_features_need_no_owner_and_copy_their_argument_first(opened, name, owner) -> None:
    device = opened(owner=owner)
    number, form = ANYBODYS[name]
    stranger = Caller(pid=1)
    # GET_ writes the word, the arrays begin with a count of 0
    assert device.call(number, form, *(0 for _ in form), caller=stranger) == 0
    for argument in BAD:
        assert device.at(number, argument, stranger) == errno.EFAULT


def test_set_backend_copies_its_argument_before_it_looks_for_the_owner(opened) -> None:
    device = opened(owner=False)
    for argument in BAD:
        assert device.at(vhost.VHOST_NET_SET_BACKEND, argument) == errno.EFAULT
    assert device.call(vhost.VHOST_NET_SET_BACKEND, "Ii", 9, 999) == errno.EPERM
    assert device.caller.asked == [], "no descriptor is taken for a refusal"


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("argument", BAD)
def test_an_argument_that_cannot_be_read_is_efault(opened, name, argument) -> None:
    assert opened().at(TAKES[name][0], argument) == errno.EFAULT


@pytest.mark.parametrize("name", RINGS)
def test_a_ring_argument_that_is_there_in_part(opened, name) -> None:
    """The index alone decides what it can: the rest is read only then."""
    device = opened()
    number, form = RINGS[name]
    index = END - 4
    device.caller.put("I", 2, at=index)
    assert device.at(number, index) == errno.ENOBUFS
    device.caller.put("I", 1, at=index)
    assert device.at(number, index) == errno.EFAULT
    device.caller.put("I", 1, at=END - struct.calcsize("=" + form) + 4)
    assert device.at(number, END - struct.calcsize("=" + form) + 4) == errno.EFAULT


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_ioctl_is_taken_for_a_rings(opened, name) -> None:
    device = opened()
    number = UNKNOWN[name]
    for argument in BAD[:1] + BAD[2:]:
        assert device.at(number, argument) == errno.EFAULT
    assert device.call(number, "I", 2) == errno.ENOBUFS
    assert device.call(number, "I", 5) == errno.ENOBUFS
    assert device.call(number, "I", 0) == errno.ENOTTY
    assert device.call(number, "I", 1) == errno.ENOTTY


@pytest.mark.parametrize("index", [2, 3, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("name", [*RINGS, "NET_SET_BACKEND"])
def test_there_are_two_rings_whatever_else_is_wrong(opened, name, index) -> None:
    device = opened()
    number = RINGS[name][0] if name in RINGS else vhost.VHOST_NET_SET_BACKEND
    assert device.call(number, "II4Q", index, 3, 1, 1, 1, 1) == errno.ENOBUFS


@pytest.mark.parametrize(
    "number",
    [vhost.VHOST_GET_FEATURES, vhost.VHOST_GET_BACKEND_FEATURES, vhost.VHOST_GET_FORK_FROM_OWNER],
)
def test_what_is_given_goes_nowhere_that_may_not_be_written(opened, number) -> None:
    device = opened()
    assert device.at(number, END - PAGE) == errno.EFAULT
    assert device.at(number, AT) == 0


@pytest.mark.parametrize(
    "number", [vhost.VHOST_GET_VRING_BASE, vhost.VHOST_GET_VRING_BUSYLOOP_TIMEOUT]
)
def test_what_is_read_and_written_back(opened, number) -> None:
    device = opened()
    assert device.at(number, END - PAGE) == errno.EFAULT
    assert device.call(number, "II", 1, 77) == 0
    assert device.caller.get("II") == (1, 0)


def test_the_number_is_32_bits(opened) -> None:
    device = opened()
    assert device.at(0xFFFFFFFF << 32 | vhost.VHOST_GET_FEATURES, AT) == 0


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("abi", LINUX_ABIS)
def test_features_are_those_of_the_version(opened, abi) -> None:
    device = opened(abi)
    assert device.at(vhost.VHOST_GET_FEATURES, AT) == 0
    (offered,) = device.caller.get("Q")
    assert offered == LINUX_ABIS[abi].features
    assert device.call(vhost.VHOST_SET_FEATURES, "Q", offered) == 0
    assert device.call(vhost.VHOST_SET_FEATURES, "Q", 1 << 34) == errno.EOPNOTSUPP
    assert device.call(vhost.VHOST_SET_FEATURES, "Q", 1 << 0) == errno.EOPNOTSUPP


def test_backend_features(opened) -> None:
    device = opened(owner=False)
    assert device.at(vhost.VHOST_GET_BACKEND_FEATURES, AT) == 0
    assert device.caller.get("Q") == (2,)
    assert device.call(vhost.VHOST_SET_BACKEND_FEATURES, "Q", 2) == 0
    assert device.call(vhost.VHOST_SET_BACKEND_FEATURES, "Q", 0) == 0
    assert device.call(vhost.VHOST_SET_BACKEND_FEATURES, "Q", 1) == errno.EOPNOTSUPP


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_a_features_array_has_as_many_words_as_are_asked_for(opened, count) -> None:
    device = opened(owner=False)
    device.caller.put("7Q", count, *[0xAAAA] * 6)
    assert device.at(vhost.VHOST_GET_FEATURES_ARRAY, AT) == 0
    words = device.caller.get("7Q")
    assert words[0] == count
    assert words[1 : count + 1] == (LINUX_ABIS["newest"].features, 0, 0, 0, 0)[:count]
    assert set(words[count + 1 :]) <= {0xAAAA}, "nothing is written behind it"


def test_words_of_a_features_array_that_we_do_not_know_must_be_zero(opened) -> None:
    device = opened(owner=False)
    number = vhost.VHOST_SET_FEATURES_ARRAY
    assert device.call(number, "3Q", 2, V1, 0) == 0
    assert device.net.features == V1
    assert device.call(number, "Q", 0) == 0
    assert device.net.features == 0
    assert device.call(number, "4Q", 3, V1, 0, 0) == 0
    assert device.call(number, "4Q", 3, V1, 0, 1) == errno.EOPNOTSUPP
    assert device.call(number, "3Q", 2, 1 << 34, 0) == errno.EOPNOTSUPP
    assert device.call(number, "Q", 1 << 60) == errno.EFAULT
    device.caller.put("2Q", 2, V1, at=END - 16)
    assert device.at(number, END - 16) == errno.EFAULT


def test_before_6_17_a_features_array_is_an_unknown_ioctl(opened) -> None:
    device = opened("6.1")
    for number in (vhost.VHOST_GET_FEATURES_ARRAY, vhost.VHOST_SET_FEATURES_ARRAY):
        assert device.call(number, "3Q", 2, V1, 0) == errno.ENOBUFS
        assert device.call(number, "3Q", 1, V1, 0) == errno.ENOTTY
        assert device.call(number, "3Q", 1, V1, 0, caller=Caller(pid=1)) == errno.EPERM


def test_fork_from_owner_is_remembered_while_nobody_owns(opened) -> None:
    device = opened(owner=False)
    set_, get = vhost.VHOST_SET_FORK_FROM_OWNER, vhost.VHOST_GET_FORK_FROM_OWNER
    assert device.at(get, AT) == 0
    assert device.caller.get("B") == (1,)
    assert device.call(set_, "B", 2) == errno.EINVAL
    assert device.at(set_, END) == errno.EFAULT
    assert device.call(set_, "B", 0) == 0
    assert device.at(get, AT) == 0
    assert device.caller.get("B") == (0,)
    assert device.at(vhost.VHOST_SET_OWNER, 0) == 0
    assert device.call(set_, "B", 1) == errno.EBUSY
    assert device.at(set_, END) == errno.EBUSY
    assert device.at(get, AT, Caller(pid=1, memory=bytearray(SIZE))) == 0
    assert device.at(vhost.VHOST_RESET_OWNER, 0) == 0
    assert device.at(get, AT) == 0
    assert device.caller.get("B") == (1,)


@pytest.mark.parametrize(("abi", "answer"), [("6.1", errno.EPERM), ("6.12", 0)])
def test_fork_from_owner_is_not_in_every_version(opened, abi, answer) -> None:
    device = opened(abi, owner=False)
    assert device.call(vhost.VHOST_SET_FORK_FROM_OWNER, "B", 1) == answer


# --- memory and log -------------------------------------------------------------------------------


def test_a_memory_table_is_checked_in_order(opened) -> None:
    device = opened()
    number = vhost.VHOST_SET_MEM_TABLE
    wraps = ((1 << 64) - PAGE, 2 * PAGE, 0, 0)
    at_end = END - 8  # the head is there, the regions are not
    assert device.at(number, device.caller.put("II", 65, 1, at=at_end)) == errno.EOPNOTSUPP
    assert device.at(number, device.caller.put("II", 65, 0, at=at_end)) == errno.E2BIG
    assert device.at(number, device.caller.put("II", 0xFFFFFFFF, 0, at=at_end)) == errno.E2BIG
    assert device.at(number, device.caller.put("II", 1, 0, at=at_end)) == errno.EFAULT
    assert device.at(number, device.caller.put("II", 0, 0, at=at_end)) == 0
    assert device.call(number, "II4Q", 1, 0, *wraps) == errno.EFAULT
    assert device.call(number, "II4Q", 1, 0, PAGE, 0, 0, 0) == errno.EFAULT
    assert device.call(number, "II4Q", 1, 0, 0, 0, 0, 0) == 0
    assert (
        device.call(
            number, f"II{4 * 64}Q", 64, 0, *[w for k in range(64) for w in (k * PAGE, PAGE, 0, 99)]
        )
        == 0
    )


def test_a_log_has_any_address_while_no_ring_runs(opened) -> None:
    device = opened()
    for address in (0, 3, (1 << 64) - 1):
        assert device.call(vhost.VHOST_SET_LOG_BASE, "Q", address) == 0


def test_a_log_descriptor_is_an_eventfd(opened) -> None:
    device = opened()
    event = os.eventfd(0)
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    try:
        number = vhost.VHOST_SET_LOG_FD
        assert device.call(number, "i", -1) == 0
        assert device.call(number, "i", -2) == errno.EBADF
        assert device.call(number, "i", 1 << 20) == errno.EBADF
        assert device.call(number, "i", read) == errno.EINVAL
        assert device.call(number, "i", event) == 0
        assert device.call(number, "i", -1) == 0
    finally:
        assert len(os.listdir("/proc/self/fd")) == before
        for fd in (event, read, write):
            os.close(fd)


# --- rings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [0, 3, 65535, 65536, 0x80000001])
def test_a_size_that_no_ring_has(opened, num) -> None:
    assert opened().call(vhost.VHOST_SET_VRING_NUM, "II", 0, num) == errno.EINVAL


@pytest.mark.parametrize("num", [1, 256, 32768])
def test_a_size_that_a_ring_has(opened, num) -> None:
    device = opened()
    assert device.call(vhost.VHOST_SET_VRING_NUM, "II", 1, num) == 0
    assert device.net.tx.num == num


def test_a_base_is_16_bits_and_is_told(opened) -> None:
    device = opened()
    assert device.call(vhost.VHOST_SET_VRING_BASE, "II", 1, 0x10000) == errno.EINVAL
    assert device.call(vhost.VHOST_SET_VRING_BASE, "II", 1, 0xFFFF) == 0
    assert device.call(vhost.VHOST_GET_VRING_BASE, "II", 1, 0) == 0
    assert device.caller.get("II") == (1, 0xFFFF)
    assert device.call(vhost.VHOST_GET_VRING_BASE, "II", 0, 5) == 0
    assert device.caller.get("II") == (0, 0)


def test_ring_addresses_come_in_the_order_desc_used_avail_log(opened) -> None:
    device = opened()
    number = vhost.VHOST_SET_VRING_ADDR
    assert device.call(number, "II4Q", 0, 2, 0, 2, 1, 2) == errno.EOPNOTSUPP
    assert device.call(number, "II4Q", 0, 0, 0, 2, 0, 0) == errno.EINVAL  # used: 4
    assert device.call(number, "II4Q", 0, 0, 0, 0, 2, 0) == 0  # avail: 2
    assert device.call(number, "II4Q", 0, 0, 0, 0, 1, 0) == errno.EINVAL
    assert device.call(number, "II4Q", 0, 0, 0, 0, 0, 2) == errno.EINVAL  # log: 4
    assert device.call(number, "II4Q", 0, 1, 1, 4, 2, 4) == 0  # desc: none


@pytest.mark.parametrize("name", ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"])
def test_a_rings_descriptors_are_eventfds_and_none_is_leaked(opened, name) -> None:
    device = opened()
    number = RINGS[name][0]
    event = os.eventfd(0)
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    try:
        for _ in range(20):
            assert device.call(number, "Ii", 0, -2) == errno.EBADF
            assert device.call(number, "Ii", 0, 1 << 20) == errno.EBADF
            assert device.call(number, "Ii", 0, read) == errno.EINVAL
            assert device.call(number, "Ii", 1, event) == 0
            assert device.call(number, "Ii", 1, event) == 0
        assert device.call(number, "Ii", 1, -1) == 0
        assert -1 not in device.caller.asked
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        for fd in (event, read, write):
            os.close(fd)


def test_a_busyloop_timeout_is_any_number(opened) -> None:
    device = opened()
    set_, get = vhost.VHOST_SET_VRING_BUSYLOOP_TIMEOUT, vhost.VHOST_GET_VRING_BUSYLOOP_TIMEOUT
    assert device.call(set_, "II", 0, 0xFFFFFFFF) == 0
    assert device.call(get, "II", 0, 0) == 0
    assert device.caller.get("II") == (0, 0xFFFFFFFF)


# --- backend --------------------------------------------------------------------------------------


def test_a_backend_wants_table_and_rings_even_to_be_taken_away(opened) -> None:
    device = opened()
    number = vhost.VHOST_NET_SET_BACKEND
    assert device.call(number, "Ii", 0, -1) == errno.EFAULT
    device.set_table()
    ring = SplitRing(device.guest, 8).addr(0)
    words = (ring.desc_user_addr, ring.used_user_addr, ring.avail_user_addr, 0)
    assert device.call(vhost.VHOST_SET_VRING_NUM, "II", 0, 8) == 0
    assert device.call(vhost.VHOST_SET_VRING_ADDR, "II4Q", 0, 0, *words) == 0
    assert device.call(number, "Ii", 0, -1) == 0
    for fd in (-2, 1 << 20):
        assert device.call(number, "Ii", 0, fd) == errno.ENOTSOCK
    read, write = os.pipe()
    try:
        before = len(os.listdir("/proc/self/fd"))
        assert device.call(number, "Ii", 0, read) == errno.ENOTSOCK
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(read)
        os.close(write)


# --- read, write, poll ----------------------------------------------------------------------------


def message(*body: int, outer: int = 1) -> bytes:
    return struct.pack("=II3QBB6x32x", outer, 0, *body)


def test_messages_are_anybodys_to_write_once_there_is_an_iotlb(opened) -> None:
    device = opened(owner=False)
    update = message(PAGE, PAGE, AT, 3, 2)

    def refusal(data: bytes) -> int:
        with pytest.raises(PeerError) as refused:
            device.file.write(data)
        return refused.value.errno

    assert device.file.would_sleep_for_ever()
    assert refusal(update) == errno.EFAULT
    assert refusal(update[:39]) == errno.EINVAL
    assert device.call(vhost.VHOST_SET_FEATURES, "Q", V1 | mask(VIRTIO_F_ACCESS_PLATFORM)) == 0
    assert not device.file.would_sleep_for_ever()
    assert refusal(message(PAGE, 0, AT, 3, 2)) == errno.EINVAL
    assert refusal(message(PAGE, PAGE, AT, 3, 2, outer=3)) == errno.EINVAL
    for kind in (0, 1, 4, 5, 6, 7):
        assert refusal(message(PAGE, PAGE, AT, 3, kind)) == errno.EFAULT
    assert device.file.write(message(0, 0, 0, 0, 3)) == 72


def test_messages_that_were_read_and_reached_nobody_come_first_again(opened) -> None:
    device = opened()
    assert device.call(vhost.VHOST_SET_FEATURES, "Q", V1 | mask(VIRTIO_F_ACCESS_PLATFORM)) == 0
    for iova in (1, 2, 3):
        device.net.on_iotlb_miss(iova * PAGE, iova)
    taken = [device.file.read(72), device.file.read(72)]
    assert taken == [message(iova * PAGE, 0, 0, iova, 1) for iova in (1, 2)]
    device.file.unread(taken)
    assert [device.file.read(72) for _ in range(3)] == [
        message(iova * PAGE, 0, 0, iova, 1) for iova in (1, 2, 3)
    ]
    assert not device.file.readable()
    with pytest.raises(PeerError) as refused:
        device.file.read(72)
    assert refused.value.errno == errno.EAGAIN
    device.file.unread(taken)
    with contextlib.suppress(PeerError):  # there is no table: EFAULT, after they were dropped
        device.file.ioctl(
            device.caller, vhost.VHOST_NET_SET_BACKEND, device.caller.put("Ii", 0, -1)
        )
    assert not device.file.readable()


def test_release_closes_what_it_has(opened: Any) -> None:
    device = opened()
    before = len(os.listdir("/proc/self/fd"))
    event = os.eventfd(0)
    for number in (vhost.VHOST_SET_VRING_KICK, vhost.VHOST_SET_VRING_CALL):
        assert device.call(number, "Ii", 0, event) == 0
    os.close(event)
    device.file.release()
    assert len(os.listdir("/proc/self/fd")) < before, "worker and eventfds are closed"
    assert device.at(vhost.VHOST_SET_VRING_NUM, AT) == errno.EPERM
