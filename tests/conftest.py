"""Fixtures that every room of tests shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from instance import Instance

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("vhostnet", deadline=None)
settings.load_profile("vhostnet")


@pytest.fixture
def instance() -> Iterator[Callable[..., Instance]]:
    """A maker of queue pairs that are closed after the test."""
    made: list[Instance] = []

    def make(*, start: bool = True, **options: Any) -> Instance:
        made.append(Instance(**options))
        return made[-1].start() if start else made[-1]

    yield make
    for one in made:
        one.close()
