"""Fixtures that every room of tests shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from instance import Instance

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("vhostnet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vhostnet")
if not os.access(Path.cwd(), os.W_OK):  # examples that failed are kept in it
    settings.register_profile("read-only", settings.default, database=None)
    settings.load_profile("read-only")


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
