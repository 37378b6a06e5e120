"""When the buffers of packets that are only copied are asked for ahead."""

from __future__ import annotations

import numpy as np
import pytest

from vhostnet.datapath import layout
from vhostnet.datapath.look_ahead import BACKLOG, MOST_BYTES, copied_ahead
from vhostnet.native._jit import kernel


@kernel
def _ask(vq_array: np.ndarray) -> int:
    return copied_ahead(vq_array[0])


@pytest.mark.parametrize("last", [0, 0xFFF0])
@pytest.mark.parametrize(
    ("backlog", "ahead"), [(0, 0), (BACKLOG, 0), (BACKLOG + 1, MOST_BYTES), (1024, MOST_BYTES)]
)
def test_in_a_split_ring_it_is_if_the_driver_is_well_ahead(
    last: int, backlog: int, ahead: int
) -> None:
    vq = np.zeros(1, layout.SPLIT_VRING)
    vq[0]["last_avail_idx"], vq[0]["avail_idx"] = last, (last + backlog) & 0xFFFF
    assert _ask(vq) == ahead


@pytest.mark.parametrize(
    ("ring", "ahead"),
    [
        (layout.PACKED_VRING, MOST_BYTES),
        (layout.REMOTE_VRING, 0),
        (layout.REMOTE_PACKED_VRING, 0),
    ],
    ids=["packed", "remote split", "remote packed"],
)
def test_in_other_rings_it_always_is_or_never(ring: np.dtype[np.void], ahead: int) -> None:
    assert _ask(np.zeros(1, ring)) == ahead
