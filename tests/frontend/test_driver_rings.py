"""The plain rings of both formats against slow models of a device."""

from __future__ import annotations

import random

import pytest
from ring_models import PackedModel, SplitModel

from vhostnet_frontend import Buffer, GuestMemory, PackedRing, RingFull, SplitRing

Pair = tuple[SplitRing | PackedRing, SplitModel | PackedModel]


def make(memory: GuestMemory, format_: str, num: int, **options: bool) -> Pair:
    event_idx = options.get("event_idx", False)
    if format_ == "split":
        ring = SplitRing(memory, num, **options)
        return ring, SplitModel(ring, event_idx=event_idx)
    packed = PackedRing(memory, num, **options)
    return packed, PackedModel(packed, event_idx=event_idx)


@pytest.fixture(params=["split", "packed"])
def format_(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def use(model: SplitModel | PackedModel, chain, length: int) -> None:
    if isinstance(model, PackedModel):
        model.put(chain.id, length, chain.n_descs)
    else:
        model.put(chain.id, length)


def test_a_chain_arrives_as_it_was_added(memory: GuestMemory, format_: str) -> None:
    ring, model = make(memory, format_, 8)
    buffers = [Buffer(0x1000, 10), Buffer(0x2000, 20), Buffer(0x3000, 30, True)]
    id_ = ring.add(buffers, "mine")
    assert model.get() is None
    ring.publish()
    chain = model.get()
    assert chain is not None
    assert chain.buffers == tuple(tuple(b) for b in buffers)
    assert (chain.id, chain.n_descs) == (id_, 3)
    assert model.get() is None
    use(model, chain, 25)
    (used,) = ring.collect()
    assert (used.id, used.length, used.token, used.buffers) == (id_, 25, "mine", tuple(buffers))
    assert ring.collect() == []


def test_an_indirect_chain_takes_one_descriptor(memory: GuestMemory, format_: str) -> None:
    ring, model = make(memory, format_, 4)
    buffers = [Buffer(0x1000 * k, 16 * k, k > 6) for k in range(1, 10)]
    for _ in range(9):
        ring.add(buffers, indirect=True)
        assert ring.n_free == 3
        ring.publish()
        chain = model.get()
        assert chain is not None
        assert (chain.buffers, chain.n_descs) == (tuple(tuple(b) for b in buffers), 1)
        use(model, chain, 5)
        assert len(ring.collect()) == 1


def test_a_batch_becomes_visible_at_once(memory: GuestMemory, format_: str) -> None:
    ring, model = make(memory, format_, 8)
    ids = [ring.add([Buffer(0, 1), Buffer(0, 2)]) for _ in range(3)]
    assert model.get() is None
    ring.publish()
    assert [model.get().id for _ in range(3)] == ids
    assert model.get() is None


def test_a_full_ring_says_so_and_takes_nothing(memory: GuestMemory, format_: str) -> None:
    ring, _model = make(memory, format_, 4)
    ring.add([Buffer(0, 1)] * 3)
    with pytest.raises(RingFull):
        ring.add([Buffer(0, 1)] * 2)
    assert ring.n_free == 1
    ring.add([Buffer(0, 1)])
    with pytest.raises(RingFull):
        ring.add([])
    assert [used.length for used in ring.outstanding()] == [0, 0]


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("num", [1, 2, 8, 64])
def test_thousands_of_chains_in_any_order_all_come_back(
    memory: GuestMemory, format_: str, num: int, event_idx: bool
) -> None:
    ring, model = make(memory, format_, num, event_idx=event_idx)
    random.seed(num)
    taken, sent, back = [], 0, []
    while len(back) < 3000:
        while ring.n_free and sent < 3000 and random.random() < 0.8:
            n = random.randint(1, min(3, ring.n_free))
            ring.add([Buffer(sent, k + 1) for k in range(n)], sent)
            sent += 1
        ring.publish()
        while (chain := model.get()) is not None:
            taken.append(chain)
        if format_ == "split":
            random.shuffle(taken)
        while taken and random.random() < 0.8:
            chain = taken.pop(0)
            use(model, chain, chain.buffers[0][0] & 0xFF)
        back += ring.collect(random.choice([None, 1, 5]))
    assert sorted(used.token for used in back) == list(range(3000))
    assert all(used.length == used.token & 0xFF for used in back)
    assert ring.n_free == num
    assert not ring.outstanding()


def test_a_packed_device_may_use_chains_in_any_order(memory: GuestMemory) -> None:
    ring, model = make(memory, "packed", 8)
    for k in range(4):
        ring.add([Buffer(k, 1), Buffer(k, 1)], k)
    ring.publish()
    chains = [model.get() for _ in range(4)]
    for k in (2, 0, 3, 1):
        use(model, chains[k], k)
    assert [used.token for used in ring.collect()] == [2, 0, 3, 1]
    assert ring.n_free == 8


def test_a_packed_ring_need_not_be_a_power_of_two(memory: GuestMemory) -> None:
    ring, model = make(memory, "packed", 5)
    for k in range(50):
        ring.add([Buffer(k, 1), Buffer(k, 2)], k)
        ring.publish()
        use(model, model.get(), 0)
        assert [used.token for used in ring.collect()] == [k]
    assert ring.base == ring.next_used * 0x10001 | ring.used_wrap * 0x80008000


def test_in_order_one_entry_stands_for_a_batch(memory: GuestMemory, format_: str) -> None:
    ring, model = make(memory, format_, 8, in_order=True)
    for turn in range(10):
        for k in range(3):
            ring.add([Buffer(k, 8), Buffer(k, 100 + k, True)], k)
        ring.publish()
        chains = [model.get() for _ in range(3)]
        if isinstance(model, PackedModel):
            model.put(chains[-1].id, 7, 6)
        else:
            model.put(chains[-1].id, 7, 3)
        assert [(u.token, u.length) for u in ring.collect()] == [(0, 100), (1, 101), (2, 7)], turn
    assert ring.n_free == 8


def test_in_order_split_descriptors_are_used_in_ring_order(memory: GuestMemory) -> None:
    ring = SplitRing(memory, 4, base=6, in_order=True)
    model = SplitModel(ring, 6)
    heads = []
    for _ in range(6):
        heads.append(ring.add([Buffer(0, 1)]))
        ring.publish()
        model.put(model.get().id, 0)
        ring.collect()
    assert heads == [2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_follow_the_devices_wish(memory: GuestMemory, format_: str, event_idx: bool) -> None:
    ring, model = make(memory, format_, 4, event_idx=event_idx)

    def add_one() -> None:
        ring.add([Buffer(0, 1)])
        ring.publish()

    for _ in range(30):
        model.ask_for_kick()
        add_one()
        assert ring.needs_kick()
        assert not ring.needs_kick()  # nothing new
        model.refuse_kicks()
        add_one()
        assert not ring.needs_kick()
        for _ in range(2):
            use(model, model.get(), 0)
        ring.collect()


@pytest.mark.parametrize("event_idx", [False, True])
def test_interrupts_follow_the_drivers_wish(
    memory: GuestMemory, format_: str, event_idx: bool
) -> None:
    ring, model = make(memory, format_, 8, event_idx=event_idx)
    for _ in range(30):
        for _ in range(4):
            ring.add([Buffer(0, 1)])
        ring.publish()
        assert not ring.enable_interrupts()
        use(model, model.get(), 0)
        assert model.wants_signal()
        assert ring.enable_interrupts()  # something is there already
        ring.collect()
        ring.disable_interrupts()
        use(model, model.get(), 0)
        assert not model.wants_signal()
        ring.collect()
        if event_idx:
            ring.enable_interrupts(after=1)
            use(model, model.get(), 0)
            assert not model.wants_signal()
        use(model, model.get(), 0)
        if event_idx:
            assert model.wants_signal()
        else:
            use(model, model.get(), 0)
        ring.collect()


def test_a_ring_can_start_at_any_base(memory: GuestMemory) -> None:
    ring = SplitRing(memory, 4, base=0xFFFE, event_idx=True)
    model = SplitModel(ring, 0xFFFE, event_idx=True)
    assert ring.base == 0xFFFE
    for k in range(8):
        ring.add([Buffer(k, 1)], k)
        ring.publish()
        assert model.get().buffers == ((k, 1, False),)
        model.put(ring.outstanding()[0].id, 0)
        assert [used.token for used in ring.collect()] == [k]
    assert ring.used_idx == 6


def test_an_id_that_was_not_in_flight_has_no_token(memory: GuestMemory, format_: str) -> None:
    ring, model = make(memory, format_, 4)
    ring.add([Buffer(0, 1)], "good")
    ring.publish()
    chain = model.get()
    if isinstance(model, PackedModel):
        model.put(77, 5, 1)
    else:
        model.put(77, 5)
    (used,) = ring.collect()
    assert (used.id, used.length, used.token) == (77, 5, None)
    assert len(ring.outstanding()) == 1
    use(model, chain, 0)
    assert ring.collect()[0].token == "good"


def test_a_restarted_ring_is_empty(memory: GuestMemory, format_: str) -> None:
    ring, model = make(memory, format_, 4)
    ring.add([Buffer(0, 1)])
    ring.publish()
    ring.restart()
    assert (ring.n_free, ring.outstanding(), ring.has_used()) == (4, [], False)
    assert model.get() is None


def test_addresses_are_user_addresses(format_: str) -> None:
    from vhostnet_frontend import RegionSpec

    with GuestMemory([RegionSpec(1 << 16, gpa=0x10_0000, uva=0x7000_0000_0000)]) as memory:
        ring, _ = make(memory, format_, 8)
        addr = ring.addr(3, log=True)
        assert (addr.index, addr.flags) == (3, 1)
        shift = 0x7000_0000_0000 - 0x10_0000
        assert addr.desc_user_addr == ring.desc_gpa + shift
        if isinstance(ring, SplitRing):
            parts = (ring.avail_gpa + shift, ring.used_gpa + shift, ring.used_gpa)
        else:
            parts = (ring.driver_gpa + shift, ring.device_gpa + shift, ring.desc_gpa)
        assert (addr.avail_user_addr, addr.used_user_addr, addr.log_guest_addr) == parts


def test_any_word_of_a_split_ring_can_be_written_and_read(memory: GuestMemory) -> None:
    ring = SplitRing(memory, 4)
    ring.write_desc(3, 2**64 - 1, 2**32 - 1, 0xFFFF, 0xFFFE)
    assert ring.read_desc(3) == (2**64 - 1, 2**32 - 1, 0xFFFF, 0xFFFE)
    for name in (
        "avail_idx",
        "avail_flags",
        "used_event",
        "used_idx",
        "used_flags",
        "avail_event",
    ):
        getattr(ring, f"write_{name}")(0xABC1)
    ring.write_avail(7, 0x1234)
    ring.write_used(2, 0xFFFFFFFF, 5)
    words = memory.read(ring.avail_gpa, 14)
    assert words == bytes.fromhex("c1ab c1ab 0000 0000 0000 3412 c1ab")
    assert ring.read_avail(3) == 0x1234
    assert ring.read_used(2) == (0xFFFFFFFF, 5)
    assert memory.read(ring.used_gpa, 4) == bytes.fromhex("c1ab c1ab")
    assert memory.read(ring.used_gpa + 36, 2) == bytes.fromhex("c1ab")
    assert ring.read_used_flags() == ring.read_avail_event() == ring.read_avail_flags() == 0xABC1


def test_any_word_of_a_packed_ring_can_be_written_and_read(memory: GuestMemory) -> None:
    ring = PackedRing(memory, 4)
    ring.write_desc(1, 2**64 + 5, 2**32 + 6, 2**16 + 7, 2**16 + 8)
    assert ring.read_desc(1) == (5, 6, 7, 8)
    ring.write_flags(1, 0x8080)
    assert ring.read_flags(1) == 0x8080
    ring.write_driver_event(0x8003, 2)
    ring.write_device_event(0x0001, 1)
    assert memory.read(ring.driver_gpa, 4) == bytes.fromhex("0380 0200")
    assert memory.read(ring.device_gpa, 4) == bytes.fromhex("0100 0100")
    assert ring.read_driver_event() == (0x8003, 2)
    assert ring.read_device_event() == (1, 1)
