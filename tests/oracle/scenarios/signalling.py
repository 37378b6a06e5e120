"""Section 4.6: what is told to the driver, and what is asked of it."""

from __future__ import annotations

from typing import Any

from oracle.lab import EVENT_IDX, MRG, ON_EMPTY, TX, V1, Card, Lab, frame, scenario
from vhostnet_frontend.netdev import signals


def one(card: Card, number: int = 1) -> dict[str, Any]:
    card.tx.send(frame(number))
    card.tx.kick()
    return card.tx.look()


@scenario("4.6.no_interrupt")
def avail_flag_1_suppresses_the_signal(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.ring.write_avail_flags(1)
    said: dict[str, Any] = {"suppressed": one(card)}
    card.tx.ring.write_avail_flags(0)
    said["not"] = one(card)
    card.tx.ring.write_avail_flags(2)
    said["other flag"] = one(card)
    return said


@scenario("4.6.on_empty")
def notify_on_empty_overrides_the_flag(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | ON_EMPTY).start()
    card.tx.ring.write_avail_flags(1)
    card.tx.send(*[frame(k) for k in range(3)])
    card.tx.kick()
    said: dict[str, Any] = {"tx": card.tx.look()}
    card.rx.ring.write_avail_flags(1)
    card.rx.post(2048, 2048)
    card.rx.kick()
    card.arrive(frame(1))
    said["rx not empty"] = card.rx.look()
    card.arrive(frame(2))
    said["rx empty"] = card.rx.look()
    return said


@scenario("4.6.on_empty", "4.6.event_idx")
def notify_on_empty_overrides_the_event(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | ON_EMPTY | EVENT_IDX).start()
    card.tx.ring.write_used_event(1000)
    return {f"{k}": one(card, k) for k in range(3)}


@scenario("4.6.event_idx")
def used_event_within_a_batch(lab: Lab) -> dict[str, Any]:
    said = {}
    for event in (0, 3, 9, 10, 11, 65535):
        card = lab.card(V1 | MRG | EVENT_IDX, num=64).start()
        card.tx.ring.write_used_event(0)
        one(card)
        card.tx.ring.write_used_event(event)
        card.tx.send(*[frame(k) for k in range(9)])
        card.tx.kick()
        said[f"event {event}"] = card.tx.look()
    return said


@scenario("4.6.event_idx")
def used_event_one_by_one(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX).start()
    one(card)
    card.tx.ring.write_used_event(5)
    return {"calls": [one(card, k)["calls"] for k in range(9)]}


@scenario("4.6.event_wrap", "4.6.event_idx")
def used_event_across_the_wrap(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX, num=8, base=0xFFFD)
    card.tx._seen = 0xFFFD
    card.start()
    one(card)
    card.tx.ring.write_used_event(1)
    said = []
    for k in range(8):
        seen = one(card, k)
        card.tx.ring.collect()
        said.append([seen["used_idx"], seen["calls"], seen["avail_event"]])
    return {"seen": said}


@scenario("4.6.first", "4.6.event_idx")
def the_first_signal_needs_no_event(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX).start()
    card.tx.ring.write_used_event(30000)
    return {str(k): one(card, k) for k in range(2)}


@scenario("4.6.avail_event", "4.6.flags")
def avail_event_follows_and_flags_stay(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX).start()
    said: dict[str, Any] = {"start": card.look()}
    card.tx.ring.write_used_flags(0x40)
    card.tx.send(*[frame(k) for k in range(5)])
    card.tx.kick()
    said["five"] = card.tx.look()
    card.rx.post(2048, 2048)
    card.rx.kick()
    said["rx posted"] = card.rx.look()
    card.arrive(frame(1))
    said["rx one"] = card.rx.look()
    return said


@scenario("4.6.kick_sum")
def the_kick_is_never_read(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    for k in range(5):
        one(card, k)
    return {"kicks": signals(card.tx.kick_fd)}


@scenario("4.6.no_call", "4.6.event_idx")
def without_a_call_the_event_is_not_looked_at(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX)
    card.start()
    one(card)
    card.tx.ring.write_used_event(2)
    card.device.set_vring_call(TX, None)
    said: dict[str, Any] = {"without": [one(card, k)["calls"] for k in range(4)]}
    card.device.set_vring_call(TX, card.tx.call_fd)
    said["with"] = [one(card, k)["calls"] for k in range(3)]
    return said


@scenario("7.signalled_used", "4.6.event_wrap")
def more_than_65536_completions_without_a_signal(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX, num=256).start()
    gpa = card.memory.alloc(128)
    card.memory.write(gpa, bytes(12) + frame(1))
    for k in range(256):
        card.tx.ring.write_desc(k, gpa, 72)
        card.tx.ring.write_avail(k, k)
    card.device.set_vring_call(TX, None)

    def batch(n: int) -> None:
        card.tx.ring.avail_idx = (card.tx.ring.avail_idx + n) & 0xFFFF
        card.tx.ring.write_used_event(card.tx.ring.avail_idx + 1000)
        card.tx.publish()
        card.tx.kick()
        card.settle_until(lambda: card.tx.ring.read_used_idx() == card.tx.ring.avail_idx)

    card.device.set_vring_call(TX, card.tx.call_fd)
    batch(1)
    said: dict[str, Any] = {"first": signals(card.tx.call_fd)}
    card.device.set_vring_call(TX, None)
    for _ in range(257):
        batch(256)
    said["without"] = signals(card.tx.call_fd)
    card.device.set_vring_call(TX, card.tx.call_fd)
    batch(1)
    said["then"] = signals(card.tx.call_fd)
    batch(1)
    said["and then"] = signals(card.tx.call_fd)
    return said | {"used_idx": card.tx.ring.read_used_idx()}


@scenario("4.6.private")
def the_drivers_lies_in_the_used_ring_are_overwritten(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    said: dict[str, Any] = {"first": one(card)}
    card.tx.ring.write_used_idx(50)
    card.tx.ring.write_used_flags(0x1234)
    said["second"] = one(card, 2)
    return said
