"""Sections 1.2 and 1.3: who may call what, in which order things are refused."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from oracle.lab import (
    EVENT_IDX,
    IOMMU,
    LOG_ALL,
    MRG,
    RX,
    TX,
    V1,
    Device,
    Lab,
    describe,
    errno_of,
    frame,
    region,
    scenario,
)
from vhostnet.uapi import vhost
from vhostnet.uapi.vhost import IotlbMsg, VringAddr
from vhostnet_frontend import RegionSpec, VerbError
from vhostnet_frontend.netdev import signals

NO_FD = 999
WORD = 1 << 64
VERBS_WITH_INDEX = ("num", "base", "get_base", "addr", "kick", "call", "err", "busyloop", "backend")


def call(device: Device, verb: str, index: int, lab: Lab) -> str:
    """One verb with a ring index and otherwise harmless arguments."""
    fd = lab.eventfd()
    return {
        "num": lambda: errno_of(device.set_vring_num, index, 8),
        "base": lambda: errno_of(device.set_vring_base, index, 0),
        "get_base": lambda: errno_of(device.get_vring_base, index),
        "addr": lambda: errno_of(device.set_vring_addr, VringAddr(index, 0, 0, 0, 0, 0)),
        "kick": lambda: errno_of(device.set_vring_kick, index, fd),
        "call": lambda: errno_of(device.set_vring_call, index, fd),
        "err": lambda: errno_of(device.set_vring_err, index, fd),
        "busyloop": lambda: errno_of(device.set_busyloop, index, 1),
        "backend": lambda: errno_of(device.set_backend, index, None),
    }[verb]()


@scenario("1.2.2", "1.3.backend.order")
def nothing_but_features_works_without_an_owner(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    said = {verb: call(device, verb, 0, lab) for verb in VERBS_WITH_INDEX}
    said |= {f"{verb} of ring 9": call(device, verb, 9, lab) for verb in VERBS_WITH_INDEX}
    said["mem_table"] = errno_of(device.set_mem_table, [])
    said["log_fd"] = errno_of(device.set_log_fd, None)
    said["log_fd closed"] = errno_of(device.set_log_fd, NO_FD)
    said["log_base"] = errno_of(device.set_log_base, lab.log(lab.memory()))
    said["reset_owner"] = errno_of(device.reset_owner)
    said["get_features"] = errno_of(device.get_features)
    said["set_features"] = errno_of(device.set_features, 0)
    said["get_backend_features"] = errno_of(device.get_backend_features)
    said["set_backend_features"] = errno_of(device.set_backend_features, 0)
    return said


@scenario("1.2.3", "1.3.ranges", "1.3.backend.order")
def a_third_ring_is_enobufs(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    said = {verb: call(device, verb, 2, lab) for verb in VERBS_WITH_INDEX}
    said |= {f"{verb} of ring 2^32-1": call(device, verb, 2**32 - 1, lab) for verb in ("num",)}
    said["backend closed"] = errno_of(device.set_backend, 2, NO_FD)
    said["kick closed"] = errno_of(device.set_vring_kick, 2, NO_FD)
    said["num bad"] = errno_of(device.set_vring_num, 2, 3)
    return said


@scenario("1.2.1", "1.2.2", "1.2.3", "1.3.vring_endian", needs="ioctl")
def the_order_of_checks_of_raw_ioctls(lab: Lab) -> dict[str, Any]:
    device: Any = lab.device()
    null = {
        "SET_FEATURES": vhost.VHOST_SET_FEATURES,
        "SET_BACKEND": vhost.VHOST_NET_SET_BACKEND,
        "SET_MEM_TABLE": vhost.VHOST_SET_MEM_TABLE,
        "SET_VRING_NUM": vhost.VHOST_SET_VRING_NUM,
        "TCGETS": 0x5401,
        "unknown": 0xAF77,
    }
    said: dict[str, Any] = {}
    said["no owner"] = {k: errno_of(device.ioctl, n, 0) for k, n in null.items()}
    device.set_owner()
    said["owner, NULL"] = {k: errno_of(device.ioctl, n, 0) for k, n in null.items()}
    for index in (0, 5):
        argument = struct.pack("<II", index, 0)
        said[f"index {index}"] = {
            "unknown": errno_of(device.ioctl, 0xAF77, argument),
            "NEW_WORKER": errno_of(device.ioctl, vhost.VHOST_NEW_WORKER, argument),
            "SET_VRING_ENDIAN": errno_of(device.ioctl, vhost.VHOST_SET_VRING_ENDIAN, argument),
        }
    return said


@scenario("1.2.4", needs="ioctl")
def a_forked_child_is_not_the_owner(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    pid = os.fork()
    if pid == 0:
        try:
            device.set_vring_num(0, 8)
            os._exit(0)
        except VerbError as e:
            os._exit(e.errno)
    return {"errno in the child": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


@scenario("1.3.get_features", "1.3.backend_features")
def what_is_offered(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    return {
        "features": hex(device.get_features()),
        "backend features": hex(device.get_backend_features()),
    }


@scenario("1.3.set_features", "1.3.backend_features")
def features_that_are_not_offered_are_refused(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    said = {}
    for bit in (*range(64),):
        said[f"bit {bit}"] = errno_of(device.set_features, 1 << bit)
    for bits in (0, 1, 2, 3, 4):
        said[f"backend {bits}"] = errno_of(device.set_backend_features, bits)
    return said


@scenario("1.3.set_features")
def a_refused_feature_set_changes_nothing(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG).start()
    refused = errno_of(card.device.set_features, 1 << 63)
    card.tx.send(frame(1))
    card.tx.kick()
    return {"refused": refused, "sent": card.tap.sent(1), "tx": card.tx.look()}


@scenario("1.3.features_array", "7.features_array")
def the_features_array(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    said: dict[str, Any] = {}
    for count in (0, 1, 2, 3, 5):
        try:
            said[f"get {count}"] = [hex(word) for word in device.get_features_array(count)]
        except VerbError as e:
            said[f"get {count}"] = str(e).split(":")[0]
    said["set 1"] = errno_of(device.set_features_array, [V1])
    said["set 2"] = errno_of(device.set_features_array, [V1, 0])
    said["set word 2"] = errno_of(device.set_features_array, [V1, 0, 1])
    return said


@scenario("1.3.set_owner", "1.3.reset_owner")
def there_is_one_owner(lab: Lab) -> dict[str, Any]:
    device, other = lab.device(), lab.device()
    return {
        "first": errno_of(device.set_owner),
        "second": errno_of(device.set_owner),
        "another device": errno_of(other.set_owner),
        "reset": errno_of(device.reset_owner),
        "reset again": errno_of(device.reset_owner),
        "num after reset": errno_of(device.set_vring_num, 0, 8),
        "third": errno_of(device.set_owner),
    }


@scenario("1.3.reset_owner", "1.3.backend.detach", "3.5.reset")
def reset_owner_leaves_an_empty_table(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    said = {"fresh": errno_of(device.set_backend, 0, None)}
    device.set_mem_table([])
    said["empty table"] = errno_of(device.set_backend, 0, None)
    device.reset_owner()
    device.set_owner()
    said["after reset"] = errno_of(device.set_backend, 0, None)
    said["base"] = device.get_vring_base(0)
    return said


@scenario("1.3.reset_owner", "3.5.reset")
def reset_owner_forgets_everything(lab: Lab) -> dict[str, Any]:
    card = lab.card(num=16, base=5)
    card.device.set_busyloop(0, 77)
    card.start()
    card.tx.send(frame(1))
    card.tx.kick()
    said: dict[str, Any] = {"before": card.tx.look()["base"], "sent": card.tap.sent(1)}
    card.device.reset_owner()
    card.tx.send(frame(2))
    os.eventfd_write(card.tx.kick_fd, 1)
    said["used after reset"] = card.tx.ring.read_used_idx()
    card.device.set_owner()
    said["bases"] = [card.device.get_vring_base(i) for i in (RX, TX)]
    said["busyloop"] = card.device.get_busyloop(0)
    said["backend"] = errno_of(card.device.set_backend, 1, card.tap.fd)
    card.device.set_mem_table(card.memory.regions)
    card.device.set_features(card.features)
    for end in card.ends:
        card.set_up(end, end.ring.read_used_idx())
    card.start()
    said["after"] = card.tx.look()
    said["sent after"] = card.tap.sent(1)
    return said


@scenario("1.3.mem_table.padding", needs="ioctl")
def the_padding_of_a_memory_table(lab: Lab) -> dict[str, Any]:
    device: Any = lab.device()
    device.set_owner()
    return {
        f"padding {n}": errno_of(device.ioctl, vhost.VHOST_SET_MEM_TABLE, struct.pack("<II", 0, n))
        for n in (0, 1)
    }


@scenario("1.3.mem_table.count")
def a_memory_table_has_at_most_64_regions(lab: Lab) -> dict[str, Any]:
    memory = lab.memory(1 << 20)
    device = lab.device()
    device.set_owner()
    base = memory.regions[0]
    said = {}
    for n in (0, 1, 64, 65, 1000):
        regions = [
            region(0x1000_0000 + k * 4096, 4096, base.uva + k % 200 * 4096, base) for k in range(n)
        ]
        said[str(n)] = errno_of(device.set_mem_table, regions)
    return said


@scenario("1.3.mem_table.wrap", "7.wrap", "1.3.mem_table.inactive")
def odd_regions_while_nothing_runs(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    odd = {
        "size 0 above 0": (4096, 0, 4096),
        "size 0 at 0": (0, 0, 0),
        "wraps": (WORD - 4096, 8192, 4096),
        "ends at the top": (WORD - 4096, 4096, 4096),
        "one byte beyond": (WORD - 4096, 4097, 4096),
        "everything": (0, WORD - 1, 0),
        "not aligned": (0x1001, 0x123, 0x7001),
        "kernel address": (0, 4096, 0xFFFF_8000_0000_0000),
        "uva wraps": (0, 1 << 20, WORD - 4096),
    }
    return {name: errno_of(device.set_mem_table, [region(*r)]) for name, r in odd.items()}


@scenario("1.3.mem_table.active", "7.wrap")
def odd_regions_while_a_ring_runs(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    good = card.memory.regions[0]
    odd = {
        "size 0 at 0": (0, 0, 0),
        "wraps": (WORD - 4096, 8192, 4096),
        "kernel address": (0x9000_0000, 4096, 0xFFFF_8000_0000_0000),
    }
    said: dict[str, Any] = {
        name: errno_of(card.device.set_mem_table, [good, region(*r)]) for name, r in odd.items()
    }
    card.tx.send(frame(1))
    card.tx.kick()
    said["sent"] = card.tap.sent(1)
    return said


@scenario("1.3.mem_table.running", "3.5.control")
def a_table_is_replaced_under_running_rings(lab: Lab) -> dict[str, Any]:
    memory = lab.memory([RegionSpec(1 << 20), RegionSpec(1 << 20, gpa=0x9000_0000)])
    card = lab.card(memory=memory).start()
    low, high = memory.regions
    gpa = memory.alloc(4096, region=1)
    memory.write(gpa, bytes(12) + frame(7))
    said: dict[str, Any] = {"shrink": errno_of(card.device.set_mem_table, [low])}
    card.tx.ring.write_desc(0, gpa, 72)
    card.tx.offer(0)
    card.tx.kick()
    said["stuck"] = card.tx.look()
    said["grow"] = errno_of(card.device.set_mem_table, [low, high])
    card.settle()
    said["still stuck"] = card.tx.look()
    card.tx.kick()
    said["kicked"] = card.tx.look()
    said["sent"] = card.tap.sent(1)
    return said


@scenario("1.3.mem_table.stuck", "4.2.e.unmapped")
def a_stuck_ring_waits_for_a_kick_and_not_for_a_table(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.ring.write_desc(0, 0x9000_0000, 72)
    card.tx.offer(0)
    card.tx.kick()
    said: dict[str, Any] = {"stuck": card.tx.look()}
    own = card.memory.regions[0]
    spot = card.memory.alloc(4096, 4096)
    card.memory.write(spot, bytes(12) + frame(3))
    more = region(0x9000_0000, 4096, card.memory.uva(spot), own)
    card.device.set_mem_table([own, more])
    card.settle()
    said["after the table"] = card.tx.look()
    card.tx.kick()
    said["after the kick"] = card.tx.look()
    said["sent"] = card.tap.sent(1)
    return said


@scenario("1.3.mem_table.overlap")
def regions_overlap_and_the_lowest_start_wins(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    own = card.memory.regions[0]
    first, second = card.memory.alloc(8192, 4096), card.memory.alloc(8192, 4096)
    card.memory.write(first + 4096, bytes(12) + frame(1))
    card.memory.write(second, bytes(12) + frame(2))
    card.memory.write(second + 4096, bytes(12) + frame(3))
    over = [
        region(0x9000_0000, 8192, card.memory.uva(first), own),
        region(0x9000_1000, 8192, card.memory.uva(second), own),
    ]
    said: dict[str, Any] = {"table": errno_of(card.device.set_mem_table, [own, *over])}
    card.start()
    card.tx.ring.write_desc(0, 0x9000_1000, 72)
    card.tx.offer(0)
    card.tx.ring.write_desc(1, 0x9000_2000, 72)
    card.tx.offer(1)
    card.tx.kick()
    return said | {"tx": card.tx.look(), "sent": card.tap.sent(2)}


@scenario("1.3.log_fd", "1.3.kick", "1.3.call_err")
def descriptors_that_are_no_eventfds(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    verbs: dict[str, Any] = {
        "log": lambda fd: device.set_log_fd(fd),
        "kick": lambda fd: device.set_vring_kick(0, fd),
        "call": lambda fd: device.set_vring_call(0, fd),
        "err": lambda fd: device.set_vring_err(0, fd),
    }
    fds = {
        "none": None,
        "closed": NO_FD,
        "-2": -2,
        "pipe": read,
        "null": null,
        "eventfd": lab.eventfd(),
    }
    said = {
        f"{name} {what}": errno_of(verb, fd)
        for name, verb in verbs.items()
        for what, fd in fds.items()
    }
    for fd in (read, write, null):
        os.close(fd)
    return said


@scenario("1.3.kick.max")
def a_kick_at_its_maximum(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    full = lab.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    said = {"one below": errno_of(card.device.set_vring_kick, RX, full)}
    card.device.set_vring_call(TX, full)
    card.start()
    card.tx.send(frame(1))
    card.tx.kick()
    return said | {"overflowed": errno_of(card.device.set_vring_kick, TX, full)}


@scenario("1.3.kick", "4.6.kick_sum", "3.5.kick")
def a_kick_that_is_signalled_already_counts(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.send(frame(1))
    fresh = lab.eventfd()
    os.eventfd_write(fresh, 3)
    card.device.set_vring_kick(TX, fresh)
    card.settle()
    said = {"tx": card.tx.look(), "sent": card.tap.sent(1)}
    os.eventfd_write(fresh, 4)
    card.settle()
    return said | {"counter": os.eventfd_read(fresh)}


@scenario("1.3.kick.same", "1.3.kick")
def an_old_kick_is_not_heard_and_the_same_one_changes_nothing(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    old = card.tx.kick_fd
    card.device.set_vring_kick(TX, old)
    card.tx.send(frame(1))
    card.tx.kick()
    said: dict[str, Any] = {"same": card.tx.look(), "sent": card.tap.sent(1)}
    card.device.set_vring_kick(TX, lab.eventfd())
    card.tx.send(frame(2))
    card.tx.kick()
    said["old"] = card.tx.look()
    card.device.set_vring_kick(TX, None)
    card.settle()
    said["none"] = card.tx.look()
    return said


@scenario("1.3.call_err", "4.6.no_call")
def a_new_call_is_not_signalled_late(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    card.device.set_vring_call(TX, None)
    card.start()
    card.tx.send(frame(1))
    card.tx.kick()
    said: dict[str, Any] = {"without": card.tx.look(), "sent": card.tap.sent(1)}
    card.device.set_vring_call(TX, card.tx.call_fd)
    card.settle()
    said["late"] = card.tx.look()
    card.tx.send(frame(2))
    card.tx.kick()
    said["with"] = card.tx.look()
    card.device.set_vring_err(TX, None)
    card.tx.offer(99)
    card.tx.kick()
    said["error without err"] = card.tx.look()
    return said


@scenario("1.3.vring_num")
def ring_sizes(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    sizes = (0, 1, 2, 3, 255, 256, 1024, 16384, 32768, 32769, 65535, 65536, 2**32 - 1)
    said: dict[str, Any] = {str(n): errno_of(device.set_vring_num, 0, n) for n in sizes}
    card = lab.card().start()
    said["running"] = errno_of(card.device.set_vring_num, 0, 8)
    said["running, bad"] = errno_of(card.device.set_vring_num, 0, 3)
    card.stop()
    said["stopped"] = errno_of(card.device.set_vring_num, 0, 8)
    return said


@scenario("1.3.vring_base.set", "1.3.vring_base.get")
def ring_bases(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    device = card.device
    bases = (0, 1, 0xFFFF, 0x10000, 2**32 - 1)
    said: dict[str, Any] = {}
    for base in bases:
        said[f"set {base}"] = errno_of(device.set_vring_base, 0, base)
        said[f"get after {base}"] = device.get_vring_base(0)
    device.set_vring_base(0, 0)
    card.start()
    said["set while running"] = errno_of(device.set_vring_base, 0, 1)
    said["set badly while running"] = errno_of(device.set_vring_base, 0, 1 << 20)
    card.tx.send(frame(1), frame(2))
    card.tx.kick()
    said["get while running"] = device.get_vring_base(TX)
    return said


@scenario("1.3.vring_addr.flags", "1.3.vring_addr.align", "1.3.vring_addr.inactive")
def ring_addresses_of_a_stopped_ring(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    tried = {
        "zero": (0, 0, 0, 0, 0),
        "log": (1, 0, 0, 0, 0),
        "flag 2": (2, 0, 0, 0, 0),
        "flag 2, odd": (2, 0, 1, 1, 1),
        "desc by 1": (0, 1, 0, 0, 0),
        "used by 2": (0, 0, 2, 0, 0),
        "avail by 1": (0, 0, 0, 1, 0),
        "avail by 2": (0, 0, 0, 2, 0),
        "log by 2": (0, 0, 0, 0, 2),
        "log by 2, on": (1, 0, 0, 0, 2),
        "kernel": (0, WORD - 4096, WORD - 4096, WORD - 4096, 0),
        "no user range": (0, 1 << 62, 1 << 62, 1 << 62, 0),
    }
    return {
        name: errno_of(device.set_vring_addr, VringAddr(0, flags, desc, used, avail, log))
        for name, (flags, desc, used, avail, log) in tried.items()
    }


@scenario("1.3.vring_addr.active")
def a_running_ring_moves(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    good = card.tx.ring.addr(TX)
    far = WORD - 4096
    said: dict[str, Any] = {
        "desc": errno_of(
            card.device.set_vring_addr,
            VringAddr(TX, 0, far, good.used_user_addr, good.avail_user_addr, 0),
        ),
        "used": errno_of(
            card.device.set_vring_addr,
            VringAddr(TX, 0, good.desc_user_addr, far, good.avail_user_addr, 0),
        ),
        "avail": errno_of(
            card.device.set_vring_addr,
            VringAddr(TX, 0, good.desc_user_addr, good.used_user_addr, far, 0),
        ),
        "odd": errno_of(
            card.device.set_vring_addr,
            VringAddr(TX, 0, good.desc_user_addr, good.used_user_addr + 2, 2, 0),
        ),
    }
    card.tx.send(frame(1))
    card.tx.kick()
    said["after the refusals"] = card.tx.look()
    from vhostnet_frontend import SplitRing

    other = SplitRing(card.memory, 16)
    other.restart(1)
    card.tx.ring = other
    said["moved"] = errno_of(card.device.set_vring_addr, other.addr(TX))
    card.tx._seen = 1
    card.tx.send(frame(2))
    card.tx.kick()
    said["after the move"] = card.tx.look()
    said["sent"] = card.tap.sent(2)
    return said


@scenario("1.3.busyloop", "4.8")
def busy_polling(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    said: dict[str, Any] = {}
    for value in (0, 1, 50, 2**32 - 1):
        said[f"set {value}"] = errno_of(card.device.set_busyloop, 0, value)
        said[f"get {value}"] = card.device.get_busyloop(0)
    for index in (RX, TX):
        card.device.set_busyloop(index, 50)
    card.rx.post(2048, 2048)
    card.start()
    card.tx.send(frame(1), frame(2))
    card.tx.kick()
    card.arrive(frame(3))
    card.settle_until(lambda: card.rx.ring.read_used_idx() == 1)
    return said | {
        "sent": card.tap.sent(2),
        "used": card.tx.used(),
        "received": card.rx.received(),
    }


@scenario("1.3.backend.enotsock", "7.cve-2020-10942")
def descriptors_that_are_no_backends(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    null = os.open("/dev/null", os.O_RDWR)
    read, write = os.pipe()
    kinds = {
        "udp": (socket.AF_INET, socket.SOCK_DGRAM, 0),
        "tcp": (socket.AF_INET, socket.SOCK_STREAM, 0),
        "raw inet": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "unix": (socket.AF_UNIX, socket.SOCK_DGRAM, 0),
        "packet dgram": (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
        "netlink": (socket.AF_NETLINK, socket.SOCK_RAW, 0),
    }
    said: dict[str, Any] = {}
    for name, kind in kinds.items():
        with socket.socket(*kind) as made:
            said[name] = errno_of(card.device.set_backend, 0, made.fileno())
    others = {"closed": NO_FD, "-2": -2, "null": null, "pipe": read, "eventfd": lab.eventfd()}
    for name, fd in others.items():
        said[name] = errno_of(card.device.set_backend, 0, fd)
    for fd in (null, read, write):
        os.close(fd)
    return said


@scenario("1.3.backend.einval", "7.cve-2013-4127", "7.cve-2015-6252", "3.4.4e")
def an_unattached_tun_a_thousand_times_and_then_a_tap(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    loose = lab.tap(attach=False)
    said: dict[str, Any] = {"first": errno_of(card.device.set_backend, TX, loose.fd)}
    before = len(os.listdir("/proc/self/fd"))
    refused = {errno_of(card.device.set_backend, TX, loose.fd) for _ in range(1000)}
    said["thousand"] = sorted(refused)
    said["descriptors more"] = len(os.listdir("/proc/self/fd")) - before
    said["then"] = errno_of(card.device.set_backend, TX, card.tap.fd)
    card.tx.send(frame(1))
    card.tx.kick()
    return said | {"sent": card.tap.sent(1), "tx": card.tx.look()}


@scenario("7.cve-2015-6252")
def descriptors_are_not_leaked(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    fds = [lab.eventfd(), lab.eventfd()]

    def turn() -> None:
        for k in range(200):
            card.device.set_log_fd(fds[k % 2])
            card.device.set_vring_kick(TX, fds[k % 2])
            card.device.set_vring_call(TX, fds[k % 2])
            card.device.set_vring_err(TX, fds[k % 2])
        for _ in range(50):
            card.device.set_backend(TX, card.tap.fd)
            card.device.set_backend(TX, None)

    turn()
    before = len(os.listdir("/proc/self/fd"))
    turn()
    return {"descriptors more": len(os.listdir("/proc/self/fd")) - before}


@scenario("1.3.backend.order", "1.3.backend.efault", "3.4.free")
def the_order_of_refusals_of_set_backend(lab: Lab) -> dict[str, Any]:
    device, tap, memory = lab.device(), lab.tap(), lab.memory()
    said: dict[str, Any] = {"no owner": errno_of(device.set_backend, 0, NO_FD)}
    device.set_owner()
    said["no table"] = errno_of(device.set_backend, 0, NO_FD)
    device.set_mem_table(memory.regions)
    said["rings at 0, closed"] = errno_of(device.set_backend, 0, NO_FD)
    said["rings at 0"] = errno_of(device.set_backend, 0, tap.fd)
    far = WORD - 4096
    device.set_vring_addr(VringAddr(0, 0, far, far, far, 0))
    said["rings in the kernel, closed"] = errno_of(device.set_backend, 0, NO_FD)
    said["rings in the kernel, none"] = errno_of(device.set_backend, 0, None)
    return said


@scenario("1.3.set_features.active", "4.1.10", "4.1.12")
def header_lengths_follow_a_change_of_features_at_once(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG).start()
    card.tx.send(frame(1))
    card.tx.kick()
    said: dict[str, Any] = {"12": card.tx.look(), "sent 12": card.tap.sent(1)}
    said["change"] = errno_of(card.device.set_features, 0)
    # 11 bytes: with a header of 10 there is one byte of frame, with 12 there is none
    gpa = card.memory.alloc(16)
    card.tx.ring.write_desc(5, gpa, 11)
    card.tx.offer(5)
    card.tx.kick()
    seen = card.tx.look()
    return said | {"errs": seen["errs"]}


@scenario("1.3.set_features.iotlb", "1.4.write.refused")
def access_platform_makes_an_iotlb_that_stays(lab: Lab) -> dict[str, Any]:
    memory = lab.memory(1 << 20)
    device = lab.device()
    update = IotlbMsg(0x1000, 4096, memory.regions[0].uva, 3, vhost.VHOST_IOTLB_UPDATE)
    device.set_owner()
    device.set_mem_table(memory.regions)
    said = {"before": errno_of(device.send_iotlb, update)}
    device.set_features(V1 | IOMMU)
    said["with"] = errno_of(device.send_iotlb, update)
    device.set_features(V1)
    said["cleared"] = errno_of(device.send_iotlb, update)
    device.reset_owner()
    said["reset"] = errno_of(device.send_iotlb, update)
    return said


@scenario("1.3.set_features.log", "1.3.log_base")
def log_all_needs_a_log_while_a_ring_runs(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    log = lab.log(card.memory)
    said: dict[str, Any] = {"stopped": errno_of(card.device.set_features, card.features | LOG_ALL)}
    card.device.set_features(card.features)
    card.start()
    said["log base while running"] = errno_of(card.device.set_log_base, log)
    said["running, with a log"] = errno_of(card.device.set_features, card.features | LOG_ALL)
    card.rx.post(2048)
    card.arrive(frame(1))
    said["received"] = [describe(frame(1)) == r["frame"] for r in card.rx.received()]
    said["off"] = errno_of(card.device.set_features, card.features)
    return said


@scenario("1.3.log_base", "1.3.set_features.log", needs="ioctl")
def log_bases_that_are_no_user_addresses(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG)
    device: Any = card.device

    def set_base(address: int) -> str:
        return errno_of(device.ioctl, vhost.VHOST_SET_LOG_BASE, address.to_bytes(8, "little"))

    said = {"stopped": set_base(WORD - 4096)}
    said["start"] = errno_of(card.start)
    said["features"] = errno_of(device.set_features, card.features | LOG_ALL)
    said["running"] = set_base(WORD - 8192)
    return said


@scenario("3.4.free")
def the_order_of_set_up_is_free(lab: Lab) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for k, order in enumerate(
        [
            ("rings", "memory", "features"),
            ("memory", "rings", "features"),
            ("rings", "features", "memory"),
        ]
    ):
        card = lab.card(V1 | MRG | EVENT_IDX, order=order).start()
        card.tx.send(frame(k))
        card.tx.kick()
        said[",".join(order)] = {"tx": card.tx.look(), "sent": card.tap.sent(1)}
        signals(card.tx.kick_fd)
    return said
