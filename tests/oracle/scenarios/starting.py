"""Sections 3.4 and 3.5: attaching, detaching, stopping, closing."""

from __future__ import annotations

import os
from typing import Any

from oracle.lab import EVENT_IDX, MRG, RX, TX, V1, Lab, errno_of, frame, scenario
from vhostnet_frontend import VerbError


@scenario("3.4.5.tx", "4.6.first")
def what_is_available_at_the_start_goes_out_without_a_kick(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    card.tx.send(frame(1), frame(2))
    card.start()
    return {"tx": card.tx.look(), "sent": card.tap.sent(2)}


@scenario("3.4.5.down", "4.4.down")
def with_the_interface_down_nothing_goes_out_until_a_kick(lab: Lab) -> dict[str, Any]:
    card = lab.card(tap=lab.tap(12, up=False))
    card.tx.send(frame(1))
    card.start()
    said: dict[str, Any] = {"started": card.tx.look()}
    card.tx.kick()
    said["kicked"] = card.tx.look()
    card.tap.up()
    card.tx.send(frame(2))
    card.tx.kick()
    return said | {"up": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("3.4.5.rx")
def packets_that_wait_in_the_tap_are_delivered_at_the_start(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    card.rx.post(2048, 2048, 2048)
    card.tap.arrive(frame(1), frame(2))
    card.start()
    return {"rx": card.look()["rx"] | {"used": None}}


@scenario("3.4.4b")
def used_flags_are_overwritten_at_the_start(lab: Lab) -> dict[str, Any]:
    card = lab.card(tap=lab.tap(12, up=False))
    card.rx.ring.write_used_flags(0x55)
    card.tx.ring.write_used_flags(0xAA)
    card.start()
    return card.look()


@scenario("3.4.4b")
def used_flags_are_overwritten_at_the_start_with_event_idx_too(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX, tap=lab.tap(12, up=False))
    card.rx.ring.write_used_flags(0x55)
    card.rx.ring.write_avail_event(0x1234)
    card.start()
    return {"rx": card.rx.look()}


@scenario("3.4.4d", "4.6.private")
def used_idx_is_taken_from_memory_at_the_start_and_not_again(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    card.tx.ring.write_used_idx(7)
    card.tx._seen = 7
    card.start()
    card.tx.send(frame(1))
    card.tx.kick()
    said: dict[str, Any] = {"first": card.tx.look()}
    card.tx.ring.write_used_idx(99)
    card.tx.send(frame(2))
    card.tx.kick()
    return said | {"second": card.tx.look(), "sent": card.tap.sent(2)}


@scenario("3.4.3")
def the_same_backend_again_is_a_no_op(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tx.send(frame(1))
    card.tx.kick()
    first = card.tx.look()
    card.tx.ring.write_used_flags(0x77)
    again = errno_of(card.device.set_backend, TX, card.tap.fd)
    card.settle()
    said = {"first": first, "again": again, "flags": card.tx.ring.read_used_flags()}
    card.tx.send(frame(2))
    card.tx.kick()
    return said | {"tx": card.tx.look(), "sent": card.tap.sent(2)}


@scenario("3.4.4e", "1.3.backend.enotsock")
def a_start_that_fails_leaves_the_running_backend(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    said: dict[str, Any] = {"refused": errno_of(card.device.set_backend, TX, 999)}
    card.tx.send(frame(1))
    card.tx.kick()
    return said | {"tx": card.tx.look(), "sent": card.tap.sent(1)}


@scenario("3.5.backend", "3.4.6")
def another_backend_takes_over(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    other = lab.tap(12)
    card.tx.send(frame(1))
    card.tx.kick()
    said: dict[str, Any] = {"swap": errno_of(card.device.set_backend, TX, other.fd)}
    card.tx.send(frame(2))
    card.tx.kick()
    return said | {"tx": card.tx.look(), "old": card.tap.sent(1), "new": other.sent(1)}


@scenario("3.4.6", "3.5.backend", "1.3.vring_base.get")
def stop_and_start_again(lab: Lab) -> dict[str, Any]:
    card = lab.card()
    card.rx.post(*[2048] * 4)
    card.start()
    card.tx.send(frame(1), frame(2))
    card.tx.kick()
    card.stop(TX)
    said: dict[str, Any] = {"tx stopped": card.tx.look()}
    card.arrive(frame(3))
    card.stop(RX)
    said["rx stopped"] = card.rx.look() | {"used": None}
    card.tap.arrive(frame(4))
    card.settle()
    said["rx while stopped"] = card.rx.ring.read_used_idx()
    card.tx.send(frame(5))
    card.tx.kick()
    said["tx while stopped"] = card.tx.ring.read_used_idx()
    card.start()
    card.settle()
    said["tx started"] = card.tx.look()
    said["received"] = card.rx.received()
    said["sent"] = card.tap.sent(3)
    return said


@scenario("3.4.6")
def packets_survive_a_stop_without_buffers(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.arrive(frame(1), frame(2), frame(3))
    card.stop()
    said: dict[str, Any] = {"stopped": card.rx.look()}
    card.start()
    card.rx.post(2048, 2048, 2048)
    card.rx.kick()
    return said | {"received": card.rx.received()}


@scenario("3.4.4c")
def the_first_signal_after_each_start_is_unconditional(lab: Lab) -> dict[str, Any]:
    card = lab.card(V1 | MRG | EVENT_IDX).start()
    card.tx.ring.write_used_event(1000)
    said: dict[str, Any] = {}
    for turn in range(3):
        card.tx.send(frame(turn))
        card.tx.kick()
        said[f"turn {turn}"] = card.tx.look()
        card.tx.send(frame(turn + 10))
        card.tx.kick()
        said[f"turn {turn}, second"] = card.tx.look()["calls"]
        card.stop()
        card.start()
    return said


@scenario("3.4.2", "3.5.close")
def the_tap_lives_as_long_as_the_device_holds_it(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tap.close_fd()
    said: dict[str, Any] = {"client closed": card.tap.exists()}
    card.tx.send(frame(1))
    card.tx.kick()
    said["sent"] = card.tap.sent(1)
    card.stop(TX)
    said["one ring detached"] = card.tap.exists()
    card.stop(RX)
    said["both detached"] = card.tap.exists()
    return said


@scenario("3.5.close")
def close_lets_go_of_the_tap(lab: Lab) -> dict[str, Any]:
    card = lab.card().start()
    card.tap.close_fd()
    said: dict[str, Any] = {"before": card.tap.exists()}
    card.device.close()
    return said | {"after": card.tap.exists()}


@scenario("7.reset_races", "3.5.reset", "3.5.close")
def reset_owner_and_close_under_traffic(lab: Lab) -> dict[str, Any]:
    said: dict[str, Any] = {"errors": []}
    for turn in range(20):
        card = lab.card(tap=None)
        card.rx.post(*[2048] * 8)
        card.start()
        card.tx.send(*[frame(k) for k in range(8)])
        os.eventfd_write(card.tx.kick_fd, 1)
        card.tap.arrive(*[frame(k) for k in range(8)])
        try:
            if turn % 2:
                card.device.reset_owner()
            card.device.close()
        except VerbError as e:
            said["errors"].append(str(e))
    return said
