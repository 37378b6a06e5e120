"""Sections 1.4 and 4.11: translations, and the data path behind an IOMMU."""

from __future__ import annotations

import struct
from typing import Any

from oracle.lab import (
    IOMMU,
    LOG_ALL,
    MRG,
    RX,
    TX,
    V1,
    Card,
    Device,
    End,
    Lab,
    errno_of,
    frame,
    region,
    scenario,
)
from vhostnet.uapi import vhost
from vhostnet.uapi.vhost import IotlbMsg, Msg
from vhostnet_frontend import DirtyLog, SplitRing, VerbError
from vhostnet_frontend.transport import errno_name

RO, WO, RW = 1, 2, 3
UPDATE, INVALIDATE = vhost.VHOST_IOTLB_UPDATE, vhost.VHOST_IOTLB_INVALIDATE
WORD = 1 << 64
#: What the guest's memory is moved by in I/O virtual addresses.
SHIFT = 0x10_0000_0000


def message(body: IotlbMsg, outer: int = vhost.VHOST_IOTLB_MSG_V2, asid: int = 0) -> bytes:
    return vhost.MSG.pack(Msg(outer, asid, body))


def written(device: Device, data: bytes) -> int | str:
    try:
        return device.write(data)
    except VerbError as e:
        return errno_name(e.errno)


def got(device: Device, size: int = 72) -> str:
    """The next message, as text: addresses relative to SHIFT where they are above it."""
    try:
        data = device.read(size)
    except VerbError as e:
        return errno_name(e.errno)
    if len(data) != 72:
        return f"{len(data)} bytes"
    outer, asid, iova, size_, uaddr, perm, type_ = struct.unpack_from("<IIQQQBB", data)
    stray = any(data[34:])
    return (
        f"outer {outer} asid {asid} iova {iova - SHIFT if iova >= SHIFT else iova:#x} "
        f"size {size_} uaddr {uaddr} perm {perm} type {type_} stray {stray}"
    )


def all_got(device: Device) -> list[str]:
    found: list[str] = []
    while len(found) < 20:
        text = got(device)
        if text.startswith("E"):
            break
        found.append(text)
    return found


class Behind(Card):
    """A card behind an IOMMU: addresses are the guest's, moved by SHIFT."""

    def update(self, gpa: int, size: int, perm: int = RW) -> str:
        body = IotlbMsg(gpa + SHIFT, size, self.memory.uva(gpa), perm, UPDATE)
        return errno_of(self.device.send_iotlb, body)

    def invalidate(self, gpa: int, size: int) -> str:
        return errno_of(self.device.send_iotlb, IotlbMsg(gpa + SHIFT, size, 0, 0, INVALIDATE))

    def set_up(self, end: End, base: int, log: bool = False) -> None:
        super().set_up(end, base, log)
        addr = end.ring.addr(end.index, log=log)
        memory = self.memory.regions[0]
        moved = type(addr)(
            addr.index,
            addr.flags,
            addr.desc_user_addr - memory.uva + memory.gpa + SHIFT,
            addr.used_user_addr - memory.uva + memory.gpa + SHIFT,
            addr.avail_user_addr - memory.uva + memory.gpa + SHIFT,
            addr.log_guest_addr,
        )
        self.device.set_vring_addr(moved)

    def everything(self) -> None:
        memory = self.memory.regions[0]
        self.update(memory.gpa, memory.size)

    def parts(self, ring: SplitRing) -> dict[str, tuple[int, int]]:
        return {
            "desc": (ring.desc_gpa, 16 * ring.num),
            "avail": (ring.avail_gpa, 6 + 2 * ring.num),
            "used": (ring.used_gpa, 6 + 8 * ring.num),
        }


def offer_moved(end: End, gpa: int, size: int, write: bool = False) -> None:
    slot = end.ring.avail_idx % end.ring.num
    end.ring.write_desc(slot, gpa + SHIFT, size, 2 * write)
    end.offer(slot)


@scenario("1.4.write.short", "1.4.write.type", "1.4.write.length", "1.4.write.empty")
def what_may_be_written(lab: Lab) -> dict[str, Any]:
    memory = lab.memory(1 << 20)
    device = lab.device()
    device.set_owner()
    device.set_features(V1 | IOMMU)
    uva = memory.regions[0].uva
    good = message(IotlbMsg(0x1000, 4096, uva, RW, UPDATE))
    said: dict[str, Any] = {
        f"{n} bytes": written(device, good[:n].ljust(n, b"\0"))
        for n in (0, 1, 8, 39, 40, 41, 71, 72, 100)
    }
    for outer in (0, 1, 2, 3, 99):
        said[f"outer {outer}"] = written(
            device, message(IotlbMsg(0x1000, 4096, uva, RW, UPDATE), outer)
        )
    said["size 0"] = written(device, message(IotlbMsg(0x1000, 0, uva, RW, UPDATE)))
    return said


@scenario("1.4.write.refused", "1.4.update.whole", "7.wrap")
def what_the_iotlb_refuses(lab: Lab) -> dict[str, Any]:
    memory = lab.memory(1 << 20)
    device = lab.device()
    uva = memory.regions[0].uva
    update = IotlbMsg(0x1000, 4096, uva, RW, UPDATE)
    said: dict[str, Any] = {"no owner, no IOTLB": written(device, message(update))}
    device.set_owner()
    said["no IOTLB"] = written(device, message(update))
    said["no IOTLB, size 0"] = written(device, message(IotlbMsg(0x1000, 0, uva, RW, UPDATE)))
    device.set_mem_table(memory.regions)
    device.set_features(V1 | IOMMU)
    bodies = {
        "good": update,
        "wraps": IotlbMsg(WORD - 4096, 8192, uva, RW, UPDATE),
        "kernel": IotlbMsg(0x1000, 4096, WORD - 8192, RW, UPDATE),
        "kernel, no perm": IotlbMsg(0x1000, 4096, WORD - 8192, 0, UPDATE),
        "invalidate all": IotlbMsg(0, 0, 0, 0, INVALIDATE),
        "invalidate nothing there": IotlbMsg(0x5000, 4096, 0, 0, INVALIDATE),
    }
    for type_ in (0, 1, 4, 5, 6, 7, 255):
        bodies[f"type {type_}"] = IotlbMsg(0x1000, 4096, uva, RW, type_)
    for name, body in bodies.items():
        said[name] = written(device, message(body))
    return said


@scenario("1.4.read.short", "1.4.read.none", "1.4.poll")
def reading_when_there_is_nothing(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    device.set_features(V1 | IOMMU)
    return {
        "short": got(device, 71),
        "none": got(device, 72),
        "more": got(device, 100),
        "poll": list(device.readable()),
    }


@scenario("4.11.start", "1.4.read.miss", "7.cve-2018-1118", "1.4.poll")
def the_used_ring_is_wanted_at_the_start(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    said: dict[str, Any] = {"start": errno_of(card.device.set_backend, TX, card.tap.fd)}
    said["poll"] = list(card.device.readable())
    said["used ring at"] = hex(card.tx.ring.used_gpa)
    said["misses"] = all_got(card.device)
    said["poll after"] = list(card.device.readable())
    card.update(*card.parts(card.tx.ring)["used"])
    said["again"] = errno_of(card.device.set_backend, TX, card.tap.fd)
    return said | {"flags": card.tx.ring.read_used_flags()}


@scenario("4.11.flow", "1.4.update", "4.11.ring_miss", "4.11.no_err", "1.4.read.miss")
def miss_after_miss_until_the_packet_is_out(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    parts = card.parts(card.tx.ring)
    card.update(*parts["used"])
    card.start(TX)
    said: dict[str, Any] = {
        "started": all_got(card.device),
        "desc": hex(parts["desc"][0]),
        "avail": hex(parts["avail"][0]),
    }
    gpa = card.memory.alloc(4096, 4096)
    card.memory.write(gpa, bytes(12) + frame(1))
    said["data"] = hex(gpa)
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    said["kicked"] = all_got(card.device)
    for name in ("desc", "avail"):
        card.update(*parts[name])
        card.settle()
        said[f"after {name}"] = all_got(card.device)
    card.update(gpa, 4096)
    card.settle()
    return said | {"last": all_got(card.device), "tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("1.4.read.twice", "4.11.no_err")
def two_kicks_two_misses(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    for part in card.parts(card.tx.ring).values():
        card.update(*part)
    card.start(TX)
    offer_moved(card.tx, card.memory.alloc(4096, 4096), 72)
    card.tx.kick()
    card.tx.kick()
    return {"misses": len(all_got(card.device)), "tx": card.tx.look()}


@scenario("4.11.unread")
def a_miss_that_was_not_read_is_not_matched(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    for part in card.parts(card.tx.ring).values():
        card.update(*part)
    card.start(TX)
    gpa = card.memory.alloc(4096, 4096)
    card.memory.write(gpa, bytes(12) + frame(1))
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    card.update(gpa, 4096)
    card.settle()
    said: dict[str, Any] = {"after the update": card.tx.look()}
    said["stale"] = len(all_got(card.device))
    card.tx.kick()
    return said | {"kicked": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("4.11.permission")
def a_wrong_permission_is_an_error(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    for end in card.ends:
        for part in card.parts(end.ring).values():
            card.update(*part)
    gpa = card.memory.alloc(8192, 4096)
    card.update(gpa, 4096, WO)
    card.update(gpa + 4096, 4096, RO)
    card.start()
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    said: dict[str, Any] = {"tx": card.tx.look()}
    offer_moved(card.rx, gpa + 4096, 2048, True)
    card.arrive(frame(1))
    card.rx.kick()
    return said | {"rx": card.rx.look(), "misses": all_got(card.device)}


@scenario("1.4.invalidate", "1.4.update.overlap")
def invalidating_takes_whole_entries(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    for part in card.parts(card.tx.ring).values():
        card.update(*part)
    gpa = card.memory.alloc(8192, 4096)
    card.memory.write(gpa, bytes(12) + frame(1))
    other = card.memory.alloc(8192, 4096)
    card.memory.write(other, bytes(12) + frame(2))
    card.update(gpa, 8192)
    card.start(TX)
    # over the first: the older entry still wins
    card.device.send_iotlb(IotlbMsg(gpa + SHIFT, 8192, card.memory.uva(other), RW, UPDATE))
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    said: dict[str, Any] = {"older wins": card.tap.sent(1)}
    said["invalidate a byte"] = card.invalidate(gpa + 8000, 1)
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    said["gone"] = all_got(card.device)
    said["gpa"] = hex(gpa)
    card.update(other, 8192)
    card.device.send_iotlb(IotlbMsg(gpa + SHIFT, 8192, card.memory.uva(other), RW, UPDATE))
    card.settle()
    said["new one"] = card.tap.sent(1)
    said["invalidate all"] = errno_of(card.device.send_iotlb, IotlbMsg(0, 0, 0, 0, INVALIDATE))
    card.tx.kick()
    said["rings"] = len(all_got(card.device))
    return said | {"tx": card.tx.look()}


@scenario("1.4.update.max")
def beyond_2048_entries_the_oldest_goes(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    uva = card.memory.regions[0].uva
    gpa = card.memory.alloc(4096, 4096)
    card.memory.write(gpa, bytes(12) + frame(1))
    card.update(gpa, 4096)
    for part in card.parts(card.tx.ring).values():
        card.update(*part)
    for k in range(2044):
        card.device.send_iotlb(IotlbMsg(0x1000 * k, 0x1000, uva, RW, UPDATE))
    card.start(TX)
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    said: dict[str, Any] = {"2048": all_got(card.device), "sent": card.tap.sent(1)}
    card.device.send_iotlb(IotlbMsg(0x1000 * 2044, 0x1000, uva, RW, UPDATE))
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    return said | {"2049": all_got(card.device), "gpa": hex(gpa)}


@scenario("1.4.update.whole")
def the_whole_address_space_in_one_update(lab: Lab) -> dict[str, Any]:
    device = lab.device()
    device.set_owner()
    device.set_features(V1 | IOMMU)
    return {"written": written(device, message(IotlbMsg(0, WORD - 1, 0, 0, UPDATE)))}


@scenario("4.11.rx")
def receiving_behind_an_iommu(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    for part in card.parts(card.rx.ring).values():
        card.update(*part)
    card.start(RX)
    gpa = card.memory.alloc(8192, 4096)
    offer_moved(card.rx, gpa, 6000, True)
    card.arrive(frame(1, 1000))
    said: dict[str, Any] = {"miss": all_got(card.device), "gpa": hex(gpa)}
    card.update(gpa, 4096)
    card.settle()
    said["half"] = all_got(card.device)
    card.update(gpa + 4096, 4096)
    card.settle()
    said["rx"] = card.rx.look()
    said["data"] = card.memory.read(gpa, 1012)[12:] == frame(1, 1000)
    return said


@scenario("4.10.iotlb")
def logging_behind_an_iommu(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU | LOG_ALL)
    log: DirtyLog = lab.log(card.memory)
    card.device.set_log_base(log)
    card.everything()
    card.start()
    gpa = card.memory.alloc(8192, 4096)
    offer_moved(card.rx, gpa + 4000, 2048, True)
    log.clear()
    card.arrive(frame(1, 500))
    first = card.memory.regions[0].gpa
    pages = sorted(page - (first >> 12) for page in log.pages())
    return {"pages": pages, "buffer at": (gpa - first) >> 12, "rx": card.rx.look()}


@scenario("4.10.alias", "4.10.iotlb", "4.10.used")
def logging_memory_that_the_guest_has_twice(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU | LOG_ALL, log=True)
    real = card.memory.regions[0]
    alias = region(real.gpa + real.size, real.size // 2, real.uva, real)
    card.device.set_mem_table([real, alias])
    log: DirtyLog = lab.keep(DirtyLog(alias.gpa + alias.size))
    card.device.set_log_base(log)
    for end in card.ends:  # behind an IOMMU the log address is an I/O virtual one too
        addr = end.ring.addr(end.index, log=True)
        card.device.set_vring_addr(
            type(addr)(
                addr.index,
                addr.flags,
                addr.desc_user_addr - real.uva + real.gpa + SHIFT,
                addr.used_user_addr - real.uva + real.gpa + SHIFT,
                addr.avail_user_addr - real.uva + real.gpa + SHIFT,
                end.ring.used_gpa + SHIFT,
            )
        )
    card.everything()
    card.start()
    gpa = card.memory.alloc(8192, 4096)
    offer_moved(card.rx, gpa + 4000, 2048, True)
    log.clear()
    card.arrive(frame(1, 500))
    first, n = real.gpa >> 12, real.size >> 12
    pages = sorted(page - first for page in log.pages())
    buffer, used = (gpa - real.gpa) >> 12, (card.rx.ring.used_gpa - real.gpa) >> 12
    return {
        "data": [page for page in pages if page % n in (buffer, buffer + 1)],
        "used ring": [page for page in pages if page % n == used],
        "all": len(pages),
        "buffer at": buffer,
        "used ring at": used,
        "alias at": n,
        "rx": card.rx.look(),
    }


@scenario("4.11.flow", "3.4.free")
def everything_mapped_from_the_start(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    card.everything()
    card.start()
    gpa = card.memory.alloc(8192, 4096)
    card.memory.write(gpa, bytes(12) + frame(1))
    offer_moved(card.tx, gpa, 72)
    card.tx.kick()
    offer_moved(card.rx, gpa, 2048, True)
    card.arrive(frame(2))
    return card.look() | {"sent": card.tap.sent(1), "misses": all_got(card.device)}


@scenario("4.3.used_ro", "4.11.permission")
def a_used_ring_that_is_read_only(lab: Lab) -> dict[str, Any]:
    card = Behind(lab, V1 | MRG | IOMMU)
    parts = card.parts(card.tx.ring)
    card.update(*parts["desc"])
    card.update(*parts["avail"])
    card.update(*parts["used"], RO)
    said: dict[str, Any] = {"start": errno_of(card.device.set_backend, TX, card.tap.fd)}
    return said | {"misses": all_got(card.device), "flags": card.tx.ring.read_used_flags()}
