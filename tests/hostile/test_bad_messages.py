"""Messages that break a rule: refused with one line in the log, nothing kept, nobody harmed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from bad_messages import CATALOGUE, FORMS, PROTOCOL, Bad, eventfds

from driver_ring import GPA, INDIRECT, NEXT, UVA, WRITE
from front_end import (
    FEATURES,
    NEED_REPLY,
    VERSION,
    FrontEnd,
    Guest,
    SessionClosed,
    addresses,
    region,
    state,
    table,
    u64,
    wait_signal,
)
from serve_process import TALKATIVE, ServeProcess, wait_until
from vhostnet.protocol.vhost_user_session import RULES
from vhostnet.uapi import vhost_user as vu
from vhostnet.uapi.virtio import VIRTIO_F_RING_PACKED, mask


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A daemon that writes every line, and holds in the end what it held in the beginning."""
    process = ServeProcess(
        tmp_path_factory.mktemp("bad"), "--backend", "null", "--iommu", program=TALKATIVE
    )
    try:
        yield process
        process.wait_idle()
        assert [line for line in process.maps() if "memfd" in line] == []
        process.check_and_stop()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


@pytest.fixture
def front_end(daemon: ServeProcess, guest: Guest) -> Iterator[Callable[[bool], FrontEnd]]:
    """Connect a front-end, with running rings or just negotiated; all are closed at the end."""
    made = []

    def connect(is_running: bool = False) -> FrontEnd:
        guest.reset()
        made.append(FrontEnd(daemon.socket))
        if is_running:
            return made[-1].start(guest, PROTOCOL)
        return made[-1].negotiate(protocol=PROTOCOL)

    yield connect
    for one in made:
        one.close()


def assert_serves(daemon: ServeProcess, guest: Guest) -> None:
    """The next front-end gets its packets through."""
    guest.reset()
    with FrontEnd(daemon.socket) as next_one:
        next_one.start(guest)
        guest.tx.send(b"x" * 60)
        guest.tx.wait_used(1)


def test_the_catalogue_has_every_message_that_is_answered():
    assert {*FORMS, vu.VHOST_USER_SET_MEM_TABLE} == set(RULES)


@pytest.mark.parametrize("bad", CATALOGUE, ids=str)
def test_a_broken_rule_is_refused_and_named_in_one_line(daemon, guest, front_end, bad: Bad):
    peer = front_end(bad.is_running)
    before = daemon.fds()
    with ExitStack() as stack:
        fds = bad.fds(guest, stack)
        daemon.mark()
        if not bad.has_reply:
            assert peer.acked(bad.number, bad.payload, fds) != 0
            assert peer.number(vu.VHOST_USER_GET_FEATURES)
            assert daemon.fds() == before
            (line,) = daemon.lines()
            assert f"refused {bad.request_name}: " in line
            assert bad.says in line
            peer.close()
            peer = front_end(bad.is_running)
            daemon.mark()
        peer.send(bad.number, bad.payload, fds)
        with pytest.raises(SessionClosed):
            peer.receive(1)
    lines = [line for line in daemon.lines() if "kicks=" not in line]
    assert len(lines) == 1, lines
    assert f"closed the session: {bad.request_name}: " in lines[0]
    assert bad.says in lines[0]
    assert_serves(daemon, guest)


# --- what is no message at all ----------------------------------------------------------------

HEADERS = {
    "version 0": (vu.VHOST_USER_GET_FEATURES, 0x0, 0, "version 0"),
    "version 2": (vu.VHOST_USER_GET_FEATURES, 0x2, 0, "version 2"),
    "version 3": (vu.VHOST_USER_GET_FEATURES, 0xFFFF_FFFF, 0, "version 3"),
    "one byte more than fits": (vu.VHOST_USER_SET_MEM_TABLE, VERSION, 4097, "the limit is"),
    "4 GiB": (vu.VHOST_USER_SET_OWNER, VERSION | NEED_REPLY, 0xFFFF_FFFF, "the limit is"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_can_not_be_one_ends_the_session_before_its_payload(
    daemon, guest, front_end, header
):
    number, flags, size, says = HEADERS[header]
    peer = front_end()
    daemon.mark()
    peer.send_bytes(vu.HEADER.pack(vu.Header(number, flags, size)))
    with pytest.raises(SessionClosed):
        peer.receive(1)
    (line,) = daemon.lines()
    assert says in line
    assert_serves(daemon, guest)


@pytest.mark.parametrize("n_fds", [33, 64, 253])
def test_more_descriptors_than_any_message_has_end_the_session(daemon, guest, front_end, n_fds):
    peer = front_end()
    daemon.mark()
    with ExitStack() as stack:
        peer.send(vu.VHOST_USER_SET_OWNER, b"", eventfds(1)(guest, stack) * n_fds)
        with pytest.raises(SessionClosed):
            peer.receive(1)
    (line,) = daemon.lines()
    assert "file descriptors" in line
    assert_serves(daemon, guest)


def test_descriptors_with_every_byte_are_not_collected(daemon, guest, front_end):
    peer = front_end()
    peer.send_bytes(vu.HEADER.pack(vu.Header(vu.VHOST_USER_SET_MEM_TABLE, VERSION, 4096)))
    with ExitStack() as stack:
        fds = eventfds(1)(guest, stack) * 8
        with contextlib.suppress(SessionClosed):
            for _ in range(100):
                peer.send_bytes(b"\0", fds)
        with pytest.raises(SessionClosed):
            peer.receive(1)
    assert_serves(daemon, guest)


def test_garbage_of_all_lengths_is_survived(daemon, guest):
    dice = random.Random(1)
    with ExitStack() as stack:
        fds = eventfds(3)(guest, stack)
        for _ in range(300):
            with FrontEnd(daemon.socket) as peer:
                garbage = dice.randbytes(dice.choice([1, 11, 12, 13, 100, 5000]))
                try:
                    peer.send_bytes(garbage, fds[: dice.randrange(4)])
                    if dice.randrange(2):
                        peer.send_bytes(dice.randbytes(40))
                except SessionClosed:
                    pass
    assert_serves(daemon, guest)


def test_messages_of_random_content_are_survived(daemon, guest):
    """The form is right, the numbers are not: nearer to the device than garbage comes."""
    dice = random.Random(2)
    numbers = [0, 1, 2, 3, 8, 255, 256, 0xFFFF, 0x10000, 1 << 31, (1 << 32) - 1, GPA, UVA]
    forms = {number: size for number, (size, _, _) in FORMS.items()}
    del forms[vu.VHOST_USER_SET_PROTOCOL_FEATURES]  # it would switch the acks off
    with ExitStack() as stack:
        fds = [*eventfds(2)(guest, stack), guest.memory.fd]
        for _ in range(100):
            guest.reset()
            with FrontEnd(daemon.socket) as peer:
                peer.start(guest)
                try:
                    for _ in range(20):
                        number, size = dice.choice(list(forms.items()))
                        words = b"".join(
                            dice.choice(numbers).to_bytes(8, "little") for _ in range(size // 8)
                        )
                        taken = dice.sample(fds, dice.choice([0, 0, 1]))
                        peer.send(number, words, taken, VERSION | NEED_REPLY)
                        peer.reply_to(number)
                        guest.tx.kick()
                except SessionClosed:
                    pass
    assert_serves(daemon, guest)


# --- rings in places that do not exist --------------------------------------------------------

NOWHERE = {
    "nowhere at all": (0x1000, 0x2000, 0x3000),
    "used ring nowhere": (UVA, 0x2000, UVA + 0x2000),
    "guest addresses": (GPA, GPA + 0x1000, GPA + 0x2000),
    "table over the end of memory": (UVA + (1 << 20) - 16, UVA, UVA + 0x1000),
    "used ring over the end of memory": (UVA, UVA + (1 << 20) - 128, UVA + 0x1000),
    "event index beyond memory": (UVA, UVA + 0x1000, UVA + (1 << 20) - 36),
    "addresses that wrap": ((1 << 64) - 16, (1 << 64) - 4, (1 << 64) - 2),
}


@pytest.mark.parametrize("place", NOWHERE)
def test_a_ring_outside_of_memory_never_starts_and_is_named_in_one_line(
    daemon, guest, front_end, place
):
    """Its addresses are no error by themselves: the memory may still come."""
    peer = front_end().share(guest)
    peer.tell(vu.VHOST_USER_SET_VRING_NUM, state(1, guest.tx.ring.num))
    peer.tell(vu.VHOST_USER_SET_VRING_ADDR, addresses(1, *NOWHERE[place]))
    peer.tell(vu.VHOST_USER_SET_VRING_ENABLE, state(1, 1))
    daemon.mark()
    peer.tell(vu.VHOST_USER_SET_VRING_KICK, u64(1), [guest.tx.kick_fd])
    for _ in range(3):
        guest.tx.kick()
        peer.tell(vu.VHOST_USER_SET_MEM_TABLE, table(guest.region()), [guest.memory.fd])
    (line,) = daemon.lines()
    assert "ring 1 cannot start" in line
    assert peer.stop_ring(guest.tx) == 0
    peer.close()
    assert_serves(daemon, guest)


def test_memory_that_is_taken_away_stops_the_ring_and_not_the_daemon(daemon, guest, front_end):
    peer = front_end(is_running=True)
    elsewhere = region(GPA + (1 << 40), guest.memory.size, UVA + (1 << 40))
    daemon.mark()
    peer.tell(vu.VHOST_USER_SET_MEM_TABLE, table(elsewhere), [guest.memory.fd])
    assert [line for line in daemon.lines() if "lost its memory" in line]
    guest.tx.send(b"x" * 60)
    peer.tell(vu.VHOST_USER_SET_MEM_TABLE, table())
    peer.tell(vu.VHOST_USER_SET_MEM_TABLE, table(guest.region()), [guest.memory.fd])
    # The ring goes on where it was.
    assert guest.tx.wait_used(1)
    peer.close()
    assert_serves(daemon, guest)


# --- rings that a guest breaks while they run -------------------------------------------------


def _describe(guest: Guest, *descs: tuple[int, int, int, int]) -> None:
    for k, one in enumerate(descs):
        guest.tx.ring.set_desc(k, *one)


def _offer(guest: Guest, head: int = 0) -> None:
    guest.tx.ring.offer(head)
    guest.tx.kick()


def a_head_beyond_the_table(guest: Guest) -> None:
    _offer(guest, guest.tx.ring.num)


def a_next_beyond_the_table(guest: Guest) -> None:
    _describe(guest, (GPA, 64, NEXT, guest.tx.ring.num))
    _offer(guest)


def a_loop(guest: Guest) -> None:
    _describe(guest, (GPA, 64, NEXT, 1), (GPA, 64, NEXT, 0))
    _offer(guest)


def a_loop_of_nothing(guest: Guest) -> None:
    _describe(guest, (GPA, 0, NEXT, 0))
    _offer(guest)


def a_buffer_in_no_region(guest: Guest) -> None:
    _describe(guest, (GPA - 1, 64, 0, 0))
    _offer(guest)


def a_buffer_over_the_end_of_memory(guest: Guest) -> None:
    _describe(guest, (GPA + guest.memory.size - 63, 64, 0, 0))
    _offer(guest)


def a_buffer_at_the_end_of_all_addresses(guest: Guest) -> None:
    _describe(guest, ((1 << 64) - 1, 0xFFFF_FFFF, 0, 0))
    _offer(guest)


def a_readable_part_behind_a_writable_one(guest: Guest) -> None:
    _describe(guest, (GPA, 64, WRITE | NEXT, 1), (GPA, 64, 0, 0))
    _offer(guest)


def an_index_that_jumps(guest: Guest) -> None:
    idx = (guest.tx.ring.avail_idx + guest.tx.ring.num + 1) & 0xFFFF
    guest.memory.write(guest.tx.ring.avail + 2, idx.to_bytes(2, "little"))
    guest.tx.kick()


def an_index_that_goes_back(guest: Guest) -> None:
    idx = (guest.tx.ring.avail_idx - 1) & 0xFFFF
    guest.memory.write(guest.tx.ring.avail + 2, idx.to_bytes(2, "little"))
    guest.tx.kick()


def an_indirect_table_of_odd_length(guest: Guest) -> None:
    _describe(guest, (GPA, 17, INDIRECT, 0))
    _offer(guest)


def an_indirect_table_of_no_length(guest: Guest) -> None:
    _describe(guest, (GPA, 0, INDIRECT, 0))
    _offer(guest)


def an_indirect_table_of_4_gib(guest: Guest) -> None:
    _describe(guest, (GPA, 0xFFFF_FFF0, INDIRECT, 0))
    _offer(guest)


def an_indirect_table_in_no_region(guest: Guest) -> None:
    _describe(guest, (GPA + guest.memory.size - 16, 32, INDIRECT, 0))
    _offer(guest)


def an_indirect_table_in_itself(guest: Guest) -> None:
    at = guest.tx.buffers[0]
    guest.memory.write(at, at.to_bytes(8, "little") + b"\x10\0\0\0" + b"\x04\0" + b"\0\0")
    _describe(guest, (at, 16, INDIRECT, 0))
    _offer(guest)


def an_indirect_chain_past_its_table(guest: Guest) -> None:
    at = guest.tx.buffers[0]
    guest.memory.write(at, GPA.to_bytes(8, "little") + b"\x10\0\0\0" + b"\x01\0" + b"\0\0")
    _describe(guest, (at, 16, INDIRECT, 0))
    _offer(guest)


ATTACKS = {
    a_head_beyond_the_table: "names a descriptor beyond the table",
    a_next_beyond_the_table: "goes on in a descriptor that is not the driver's",
    a_loop: "it loops",
    a_loop_of_nothing: "it loops",
    a_buffer_in_no_region: "not in the guest's memory",
    a_buffer_over_the_end_of_memory: "not in the guest's memory",
    a_buffer_at_the_end_of_all_addresses: "not in the guest's memory",
    a_readable_part_behind_a_writable_one: "readable descriptor follows",
    an_index_that_jumps: "moved by more than the ring holds",
    an_index_that_goes_back: "moved by more than the ring holds",
    an_indirect_table_of_odd_length: "not a multiple of 16",
    an_indirect_table_of_no_length: "runs past its table",
    an_indirect_table_of_4_gib: "more than 65536 entries",
    an_indirect_table_in_no_region: "indirect table is not in the guest's memory",
    an_indirect_table_in_itself: "holds an indirect descriptor",
    an_indirect_chain_past_its_table: "runs past its table",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_ring_that_breaks_while_it_runs_is_told_to_the_guest_and_can_start_again(
    daemon, guest, front_end, attack
):
    peer = front_end(is_running=True)
    guest.tx.send(b"good" * 15)
    guest.tx.wait_used(1)
    daemon.mark()
    attack(guest)
    wait_signal(guest.tx.err)
    for _ in range(20):
        guest.tx.kick()
    wait_until(lambda: bool(daemon.lines()), "a line about the broken ring")
    base = peer.stop_ring(guest.tx)
    assert base == 1
    (line,) = daemon.lines()
    assert "tx ring is broken at avail index 1" in line
    assert ATTACKS[attack] in line
    # The driver resets its ring and goes on in the same session.
    guest.tx.reset()
    peer.start_ring(guest.tx)
    guest.tx.send(b"good" * 15)
    guest.tx.wait_used(1)
    peer.close()
    assert_serves(daemon, guest)


def test_a_chain_of_the_wrong_direction_is_handed_back_and_told_to_the_guest(
    daemon, guest, front_end
):
    peer = front_end(is_running=True)
    _describe(guest, (GPA, 64, WRITE, 0), (GPA, 12, 0, 0))
    guest.tx.ring.offer(0, 1)
    guest.tx.kick()
    assert [(used.head, used.length) for used in guest.tx.wait_used(2)] == [(0, 0), (1, 0)]
    wait_signal(guest.tx.err)
    peer.close()
    assert_serves(daemon, guest)


# --- packed rings -----------------------------------------------------------------------------


@pytest.mark.parametrize("base", [16, 0x7FFF, 0xFFFF, 0x8000_8010, 0x8010_8000, 0xFFFF_FFFF])
def test_a_packed_ring_does_not_start_beyond_its_end(daemon, guest, base):
    """Unlike a split ring's index, which runs freely, the base is a place in memory."""
    guest.reset()
    peer = FrontEnd(daemon.socket).negotiate(FEATURES | mask(VIRTIO_F_RING_PACKED))
    with peer:
        peer.share(guest)
        peer.set_ring(guest.tx, base)
        daemon.mark()
        assert peer.acked(vu.VHOST_USER_SET_VRING_KICK, u64(1), [guest.tx.kick_fd]) != 0
        (line,) = daemon.lines()
        assert "is beyond its 16 entries" in line
        peer.tell(vu.VHOST_USER_SET_VRING_BASE, state(1, 0x8000_8000))
    assert_serves(daemon, guest)
