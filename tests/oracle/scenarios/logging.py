"""Section 4.10: the dirty log."""

from __future__ import annotations

from typing import Any

from oracle.lab import LOG_ALL, MRG, RX, V1, Card, Lab, frame, scenario
from vhostnet_frontend import DirtyLog
from vhostnet_frontend.netdev import signals

WRITE = 2


def logged(
    lab: Lab, features: int = V1 | MRG | LOG_ALL, *, log_used: bool = False, **options: Any
) -> tuple[Card, DirtyLog]:
    """A card whose writes are logged; its rings are in pages of their own."""
    card = lab.card(features, log=log_used, **options)
    log = lab.log(card.memory)
    card.device.set_log_base(log)
    card.log_fd = lab.eventfd()
    card.device.set_log_fd(card.log_fd)
    return card, log


def pages(card: Card, log: DirtyLog) -> dict[str, Any]:
    """Dirty pages since the last look, relative to the first of memory, and log signals."""
    first = card.memory.regions[0].gpa >> 12
    marked = sorted(page - first for page in log.pages())
    log.clear()
    assert card.log_fd is not None
    return {"pages": marked, "signals": signals(card.log_fd)}


@scenario("4.10.data", "4.10.fd")
def received_bytes_mark_their_pages(lab: Lab) -> dict[str, Any]:
    card, log = logged(lab)
    gpa = card.memory.alloc(16384, 4096)
    card.rx.ring.write_desc(0, gpa + 0xFF0, 6000, WRITE)
    card.rx.ring.write_desc(1, gpa + 0x3000, 2048, WRITE)
    card.rx.offer(0)
    card.rx.offer(1)
    card.start()
    base = (gpa - card.memory.regions[0].gpa) >> 12
    pages(card, log)
    card.arrive(frame(1, 100))
    said: dict[str, Any] = {"first": pages(card, log)}
    card.arrive(frame(2))
    said["second"] = pages(card, log)
    return said | {"buffers at": base, "rx": card.rx.look()}


@scenario("4.10.data")
def a_large_packet_marks_every_page_it_touches(lab: Lab) -> dict[str, Any]:
    card, log = logged(lab)
    gpa = card.memory.alloc(32768, 4096)
    for k in range(4):
        card.rx.ring.write_desc(k, gpa + 4096 * 2 * k + 100, 3000, WRITE)
        card.rx.offer(k)
    card.start()
    pages(card, log)
    card.arrive(frame(1, 8000))
    return {"log": pages(card, log), "rx": card.rx.look()}


@scenario("4.10.tx")
def sending_logs_no_data(lab: Lab) -> dict[str, Any]:
    card, log = logged(lab)
    card.start()
    card.tx.send(frame(1), frame(2, 5000))
    card.tx.kick()
    return {"log": pages(card, log), "tx": card.tx.look(), "sent": card.tap.sent(2)}


@scenario("4.10.used", "3.4.4b", "4.10.fd")
def the_used_rings_pages_are_marked(lab: Lab) -> dict[str, Any]:
    memory = lab.memory()
    memory.alloc(4096 - 16 * 16 - 64, 16)  # so that the first ring's used part is near a border
    card, log = logged(lab, V1 | MRG, log_used=True, memory=memory)
    card.rx.post(2048)
    card.start(RX)
    said: dict[str, Any] = {"start": pages(card, log)["pages"]}
    card.arrive(frame(1))
    said["received"] = pages(card, log)["pages"]
    card.rx.kick()
    said["kick without news"] = pages(card, log)["pages"]
    first = memory.regions[0].gpa
    said["used ring at"] = [(end.ring.used_gpa - first) for end in card.ends]
    return said


@scenario("4.10.switch")
def logging_is_switched_while_rings_run(lab: Lab) -> dict[str, Any]:
    card, log = logged(lab, V1 | MRG)
    card.rx.post(*[2048] * 4)
    card.start()
    card.arrive(frame(1))
    said: dict[str, Any] = {"off": pages(card, log)["pages"]}
    card.device.set_features(card.features | LOG_ALL)
    card.arrive(frame(2))
    said["on"] = len(pages(card, log)["pages"])
    card.device.set_features(card.features)
    card.arrive(frame(3))
    said["off again"] = pages(card, log)["pages"]
    for end in card.ends:
        card.device.set_vring_addr(end.ring.addr(end.index, log=True))
    card.arrive(frame(4))
    used = (card.rx.ring.used_gpa - card.memory.regions[0].gpa) >> 12
    said["used ring"] = pages(card, log)["pages"] == [used]
    return said


@scenario("7.cve-2019-14835", "4.10.data", "4.2.e.zero")
def zero_length_descriptors_while_logging(lab: Lab) -> dict[str, Any]:
    card, log = logged(lab, num=256)
    gpa = card.memory.alloc(8192, 4096)
    for k in range(255):
        card.rx.ring.write_desc(k, gpa, 0, WRITE | 1, k + 1)
    card.rx.ring.write_desc(255, gpa, 2048, WRITE)
    card.rx.offer(0)
    card.start()
    pages(card, log)
    card.arrive(frame(1))
    return {"log": pages(card, log), "rx": card.rx.look()}


@scenario("7.cve-2019-14835")
def only_zero_length_descriptors_while_logging(lab: Lab) -> dict[str, Any]:
    card, log = logged(lab, num=256)
    for k in range(256):
        card.rx.ring.write_desc(k, card.memory.regions[0].gpa, 0, WRITE | (k < 255), k + 1)
    card.rx.offer(0)
    card.start()
    pages(card, log)
    card.arrive(frame(1))
    return {"log": pages(card, log)["pages"], "errs": card.rx.look()["errs"]}


@scenario("4.10.data")
def a_packet_that_is_thrown_away_marks_nothing(lab: Lab) -> dict[str, Any]:
    card, log = logged(lab, V1 | LOG_ALL)
    card.rx.post(100)
    card.start()
    pages(card, log)
    card.arrive(frame(1, 500))
    return {"log": pages(card, log), "rx": card.rx.look()}
