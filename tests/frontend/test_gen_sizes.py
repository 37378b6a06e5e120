"""The generator's sizes: one, or several in turn, every byte of each."""

from __future__ import annotations

import pytest
from beds import in_process

from vhostnet.backends import IMIX_SIZES, open_backend
from vhostnet.datapath import catalogue
from vhostnet_frontend import NetDriver


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    catalogue.warm(catalogue.kernels_for("gen"))


@pytest.mark.parametrize(("spec", "sizes"), [("gen:size=64", (64,)), ("gen:size=imix", IMIX_SIZES)])
def test_frames_have_the_sizes_that_were_asked_for_in_turn(spec, sizes) -> None:
    backend = open_backend(spec, 1, fill_checksums=False)
    with NetDriver(in_process(backend.queues[0]), num=64) as driver:
        backend.negotiate(driver.hdr_len, driver.features)
        driver.start()
        frames = [driver.receive(timeout=60.0) for _ in range(300)]  # several times the ring
    assert None not in frames
    assert [len(frame or b"") for frame in frames] == [sizes[k % len(sizes)] for k in range(300)]
    longest = max((frame or b"" for frame in frames), key=len)
    assert longest[14:] == bytes(k & 0xFF for k in range(max(sizes) - 14))
    assert all(longest.startswith(frame or b"?") for frame in frames)


def test_the_mix_is_seven_to_four_to_one() -> None:
    assert [IMIX_SIZES.count(size) for size in (64, 594, 1514)] == [7, 4, 1]
