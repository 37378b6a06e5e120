"""`translate` against a dictionary of every byte."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostnet.datapath.codes import RING_UNMAPPED
from vhostnet.datapath.guest_memory_raw import translate
from vhostnet.datapath.layout import MAPPED_REGION, SPLIT_VRING
from vhostnet.native._jit import kernel

translate_once = kernel(lambda mem, vq, gpa, size: translate(mem, vq[0], gpa, size, 1))


@st.composite
def region_tables(draw):
    """Sorted regions without overlaps, as {gpa: hva} and as the array."""
    at, rows = draw(st.integers(0, 50)), []
    for _ in range(draw(st.integers(0, 6))):
        size = draw(st.integers(1, 30))
        rows.append((at, size, draw(st.integers(1, 1000)) * 1000))
        at += size + draw(st.integers(0, 20))
    return rows


@settings(max_examples=200, deadline=None)
@given(
    rows=region_tables(),
    asks=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 200), st.integers(1, 2**32)),
        min_size=1,
        max_size=5,
    ),
)
def test_translate_finds_exactly_the_bytes_that_regions_hold(rows, asks):
    mem = np.array(rows, MAPPED_REGION) if rows else np.zeros(0, MAPPED_REGION)
    vq = np.zeros(1, SPLIT_VRING)
    where = {gpa + k: (hva + k, size - k) for gpa, size, hva in rows for k in range(size)}
    for gpa, size in asks:  # the cached region of one ask must not mislead the next
        hva, n = translate_once(mem, vq, gpa, size)
        want = where.get(gpa)
        assert (hva, n) == ((RING_UNMAPPED, 0) if want is None else (want[0], min(size, want[1])))
